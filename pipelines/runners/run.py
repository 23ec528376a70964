"""Build a graph, check it, and run it to its end on the chosen runner.

Beam is imported without its complaint that BigQuery's client is not installed, because no command here reads BigQuery.
`import apache_beam` imports every connector it has. One of them logs a warning where the package `apitools` is missing, through
`logging.warning`, which also gives the root logger a handler. Everything of Beam that is used here is imported through here.

Beam's Dask runner computes the last leaf of a graph and nothing else, gives every consumer of tagged outputs all elements,
drops what `finish_bundle` returns, and forgets windows. It ends such a job as done. So a graph for it is checked first. A Dask
cluster on this machine is kept open over runs: to start one costs seconds, a run on a warm one tenths of them.

A runner with workers elsewhere is tried with one tiny graph in a process of its own before the first run: a job service waits
for workers for minutes, within calls that nothing interrupts. The graph's one step comes from this package, so a worker that
can do it has Beam and this release.
"""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError, PipelineError, RefusedError, RetryLaterError
from pipelines.runners.engine import ADDRESS_OPTIONS, JOB_ENDPOINT, PRISM_LOCATION, Engine, RunnerKind, last_line, remedy
from pipelines.stopping import end_descendants


@contextmanager
def _without_bigquery_warning() -> Iterator[None]:
    root = logging.getLogger()
    before = list(root.handlers)

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("apitools not found")

    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)
        for handler in [one for one in root.handlers if one not in before]:
            root.removeHandler(handler)


with _without_bigquery_warning():
    import apache_beam
    from apache_beam.io.iobase import Read
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.common import DoFnSignature

beam: Any = apache_beam  # it ships types for some calls and none for others

__all__ = ["DoFnSignature", "PipelineOptions", "Read", "apache_beam", "beam"]

# Steps that the Dask runner carries out as a whole; what Beam makes of them inside is not run there.
_WHOLE = (beam.Create, beam.Reshuffle, beam.GroupByKey, Read)

WITHIN_S = 60.0
# Dataflow begins machines for each job, which takes minutes and costs money.
TRIED = frozenset({RunnerKind.PORTABLE, RunnerKind.PRISM, RunnerKind.FLINK, RunnerKind.SPARK})
_LAST_BYTES = 20_000
_ANSWER_S = 5.0
# Imported, not run as a file: the workers must find its step under the same name.
_PROGRAM = "from pipelines.runners.trial_graph import main; main()"
_ROOT = Path(__file__).resolve().parents[2]


def check_graph(pipeline: Any, kind: RunnerKind) -> None:
    """Refuse a graph that the runner is known to get wrong silently.

    Args:
        pipeline: a Beam pipeline, built and not run.
        kind: the runner.

    Raises:
        RefusedError: with every reason.
    """
    found = list(dask_faults(pipeline)) if kind is RunnerKind.DASK else []
    if found:
        raise RefusedError(f"this graph would come out wrong on {kind.value}: {'; '.join(found)}. Use --runner direct")


def dask_faults(pipeline: Any) -> Iterator[str]:
    """Return why a graph is not one linear chain of plain steps; nothing if it is one."""
    steps = [step for part in pipeline.transforms_stack[0].parts for step in _steps(part)]
    consumers = Counter(id(source) for step in steps for source in step.inputs)
    leaves = [step for step in steps if not any(consumers[id(output)] for output in step.outputs.values())]
    if len(leaves) > 1:
        yield f"{len(leaves)} ends ({', '.join(step.full_label for step in leaves)}), of which only the last is computed"
    for step in steps:
        if any(consumers[id(output)] > 1 for output in step.outputs.values()):
            yield f"{step.full_label} has more than one consumer"
        yield from (f"{step.full_label} {fault}" for fault in _step_faults(step))


def _steps(node: Any) -> Iterator[Any]:
    if isinstance(node.transform, _WHOLE) or not node.parts:
        yield node
        return
    for part in node.parts:
        yield from _steps(part)


def _step_faults(step: Any) -> Iterator[str]:
    if len(step.outputs) > 1:
        yield "has tagged outputs"
    if len(step.inputs) > 1:
        yield "has more than one input"
    if step.side_inputs:
        yield "has side inputs"
    if isinstance(step.transform, Read):
        yield "reads with beam.io"
    if isinstance(step.transform, beam.WindowInto) or any(not out.windowing.is_default() for out in step.outputs.values()):
        yield "has windows"
    if isinstance(step.transform, beam.ParDo):
        yield from _function_faults(step.transform.fn)


def _function_faults(function: Any) -> Iterator[str]:
    signature: Any = DoFnSignature(function)
    if signature.is_stateful_dofn():
        yield "keeps state or timers"
    if signature.has_bundle_finalization():
        yield "waits for a bundle's end"
    if type(function).finish_bundle is not beam.DoFn.finish_bundle and not _is_wrapper(function):
        yield "may return elements from finish_bundle"
    if getattr(function, "_process_batch_defined", False):
        yield "takes batches"


def _is_wrapper(function: Any) -> bool:
    """Map and FlatMap wrap a plain function, which has no bundle."""
    return isinstance(function, beam.transforms.core.CallableWrapperDoFn)


def with_prism(engine: Engine) -> Engine:
    """Name the program of Prism where the operator did not: the one that the shell would find.

    Args:
        engine: where graphs are to run; another runner's is returned as it is.

    Raises:
        ConfigError: there is none, or what is named is no program. Beam would take it for an address and download it.
    """
    if engine.kind is not RunnerKind.PRISM or engine.has_option(JOB_ENDPOINT):
        return engine
    named = engine.option(PRISM_LOCATION)
    found = shutil.which(named or "prism")
    if found is None:
        reason = f"{named} is no program that can be run" if named else "there is no program `prism` on the path"
        raise ConfigError(f"runner prism: {reason}; build it (docs/scale.md) and name it: -- {PRISM_LOCATION}=PATH")
    return engine if named else replace(engine, options=(*engine.options, f"{PRISM_LOCATION}={found}"))


def demand_workers(engine: Engine, within_s: float = WITHIN_S) -> None:
    """Run the tiny graph.

    Args:
        engine: where.
        within_s: how long it may take; 0: it is not tried.

    Raises:
        ConfigError: it cannot work as it is configured; the message says what would.
        RetryLaterError: the job server does not answer.
    """
    if engine.kind not in TRIED or not within_s:
        return
    _demand_job_server(engine)
    with tempfile.TemporaryFile() as output:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
        command = [sys.executable, "-c", _PROGRAM, engine.runner, json.dumps(engine.options)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            code: int | None = process.wait(within_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_descendants(process.pid)
            process.kill()
            process.wait()
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _LAST_BYTES))
        text = output.read().decode(errors="replace")
    if code != 0:
        raise _failure(engine, text, within_s if code is None else None)


def _demand_job_server(engine: Engine) -> None:
    """Connect to the job server that is named, which Beam would wait for a minute."""
    host, colon, port = engine.option(JOB_ENDPOINT).rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except OSError as error:
        raise RetryLaterError(f"runner {engine.runner}: job server {host}:{port}: {error}; is it running?") from error


def _failure(engine: Engine, text: str, waited_s: float | None) -> ConfigError | RetryLaterError:
    hint = remedy(text)
    if hint:
        return ConfigError(f"runner {engine.runner}: {hint}. It said: {last_line(text)}")
    if waited_s is not None:
        return ConfigError(
            f"runner {engine.runner}: no worker did a tiny test within {waited_s:g} s: where the workers run"
            " (--environment_type, --environment_config) install this release of catchment with the same apache-beam;"
            f" if the cluster is only slow, raise run.worker_test_s. It said: {last_line(text) or 'nothing'}"
        )
    return RetryLaterError(f"runner {engine.runner}: a tiny test failed: {last_line(text)}; is the job server running?")


@contextmanager
def opened(engine: Engine, worker_test_s: float = WITHIN_S) -> Iterator[Engine]:
    """An engine with its local cluster started, if it wants one; stopped at the end.

    Args:
        engine: where graphs are to run.
        worker_test_s: how long workers elsewhere may take for a tiny test before the first run; 0: no test.

    Raises:
        ConfigError: both workers and an address are given, the runner lacks an address, Dask is not installed, or the workers
            cannot work as they are configured.
        RetryLaterError: the job server does not answer.
    """
    if engine.workers and not engine.has_option(*ADDRESS_OPTIONS):
        with local_cluster(engine.workers) as address:
            yield replace(engine, options=(*engine.options, f"--dask_client_address={address}"))
        return
    engine = with_prism(engine)
    engine.beam_options()  # what it lacks must stop the start, not the first run
    demand_workers(engine, worker_test_s)
    yield engine


def run_pipeline(engine: Engine, name: str, build: Callable[[Any], Any]) -> None:
    """Run a graph to its end.

    Args:
        engine: where.
        name: what failed, for the message.
        build: puts the graph into the pipeline that it is given.

    Raises:
        RefusedError: the runner would get this graph wrong without a word.
        RetryLaterError: the runner or a worker failed.
        ConfigError: it would fail each time; the message says what to do.
        PipelineError: a worker said what must be done first.
    """
    try:
        with _made(engine) as pipeline:
            build(pipeline)
            check_graph(pipeline, engine.kind)
            result = pipeline.run()
            try:
                result.wait_until_finish()
                _demand_done(result, name)
            finally:
                _let_go(result)
    except PipelineError:
        raise
    except Exception as error:
        if engine.kind is RunnerKind.PRISM:
            end_prism()
        # What a worker raises comes back in as many classes as there are runners. The plan stays: to run it again is always safe.
        hint = "" if engine.kind in (RunnerKind.DIRECT, RunnerKind.DASK) else remedy(error)
        if hint:
            raise ConfigError(f"{name}: {hint}. {engine.kind.value} said: {last_line(str(error))}") from error
        raise RetryLaterError(f"{name}: the graph failed on {engine.kind.value}: {error}") from error


@contextmanager
def _made(engine: Engine) -> Iterator[Any]:
    """A pipeline. Beam makes a folder for each when it is made, and removes it only if the pipeline is run."""
    pipeline = beam.Pipeline(runner=engine.beam_name, options=PipelineOptions(engine.beam_options()))
    try:
        yield pipeline
    finally:
        shutil.rmtree(pipeline.local_tempdir, ignore_errors=True)


def end_prism() -> None:
    """End the Prism of this process, if there is one: the next graph starts another.

    Beam keeps one for the life of a process, and gives graphs to it also when it has died.
    """
    from apache_beam.runners.portability.prism_runner import PrismRunner  # noqa: PLC0415  # no other runner needs it

    runner: Any = PrismRunner  # it ships no types
    server = runner.shared_handle.acquire(lambda: None)
    runner.shared_handle = type(runner.shared_handle)()
    if server is not None:
        server.stop()


def _demand_done(result: Any, name: str) -> None:
    """The Dask runner says that it is done also when the scheduler died under it and took the tasks along."""
    lost = {future.status for future in getattr(result, "futures", ()) if future.status != "finished"}
    if lost:
        raise RetryLaterError(f"{name}: the Dask scheduler lost the graph ({', '.join(sorted(lost))}); is it running?")


def _let_go(result: Any) -> None:
    """Close the connection that the Dask runner opens for every pipeline and leaves open."""
    client = getattr(result, "client", None)
    if client is not None:
        client.close()


@contextmanager
def local_cluster(workers: int) -> Iterator[str]:
    """Start worker processes and stop them at the end; one that dies is started again meanwhile.

    Args:
        workers: how many processes.

    Yields:
        The scheduler's address.

    Raises:
        ConfigError: Dask is not installed.
    """
    try:
        from distributed import LocalCluster  # noqa: PLC0415  # an extra, and slow to import
    except ImportError as error:
        raise ConfigError("runner dask needs the extra `dask`: pip install 'catchment[dask]'") from error
    start: Any = LocalCluster  # it ships no types
    with start(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield str(cluster.scheduler_address)
