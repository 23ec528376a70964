"""Build a graph and run it to its end on the chosen runner.

A Dask cluster on this machine, kept open over runs: to start one costs seconds, a run on a warm one tenths of them.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pipelines.errors import ConfigError, PipelineError, RetryLaterError
from pipelines.runners.beam import PipelineOptions, beam
from pipelines.runners.check import check_graph
from pipelines.runners.engine import ADDRESS_OPTIONS, Engine, RunnerKind
from pipelines.runners.failure import last_line, remedy
from pipelines.runners.trial import WITHIN_S, demand_workers


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
