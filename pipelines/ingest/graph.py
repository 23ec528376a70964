"""The run as a Beam pipeline: one linear chain of small references, the same on every runner.

    work items -> spread over workers -> settle each (files written) -> all results together -> prepared.json

Rows never leave a step, and a rejected sample rides in the same result, never in a tagged output: runners differ there,
some silently. The last step writes the one file that says that all items are done.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import apache_beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.atomic import write_atomic
from pipelines.errors import PipelineError, RetryLaterError
from pipelines.ingest.crew import Crew
from pipelines.ingest.member import settle_or_fail
from pipelines.ingest.outcome import keep_failures, raise_failures
from pipelines.ingest.work import ItemResult, Prepared, Work
from pipelines.lake.layout import failed_path, prepared_path

# Not "DirectRunner": that one tries to download another runner first, and which one runs would depend on the network.
RUNNER = "FnApiRunner"

# Beam ships annotations for some of its calls and none for others: to the type checker it is one untyped library.
beam: Any = apache_beam


class Settle(apache_beam.DoFn):
    """Settles work items.

    Args:
        workers: how many child processes settle them (see `crew`); 0: this process does.
    """

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers

    def process(self, element: bytes) -> Iterable[tuple[int, bytes]]:
        """Work items in, results out, both as JSON: every runner can carry bytes."""
        works = msgspec.json.decode(element, type=tuple[Work, ...])
        results = crew(self._workers).settle_all(works) if self._workers else map(settle_or_fail, works)
        for result in results:
            yield 0, msgspec.json.encode(result)


class Prepare(apache_beam.DoFn):
    """Writes down that all items of a run are done, and what they wrote."""

    def __init__(self, root: str, run: int) -> None:
        self._root, self._run = root, run

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterable[int]:
        """All results in, the run's number out."""
        _key, bodies = element
        results = {result.item: result for result in (msgspec.json.decode(body, type=ItemResult) for body in bodies)}
        if any(result.failure for result in results.values()):
            keep_failures(Path(self._root), self._run, [results[item] for item in sorted(results)])
            yield self._run
            return
        prepared = Prepared(self._run, tuple(results[item] for item in sorted(results)))
        write_atomic(prepared_path(Path(self._root), self._run), msgspec.json.encode(prepared), mode=0o644)
        yield self._run


def build(pipeline: apache_beam.Pipeline, works: Sequence[Work], root: str, run: int, workers: int = 0) -> Any:
    """The graph of a run. With a crew one element holds all items, and the crew spreads them; else the runner does."""
    elements = [tuple(works)] if workers else [(work,) for work in works]
    return (
        pipeline
        | "Work items" >> beam.Create([msgspec.json.encode(element) for element in elements], reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Settle" >> beam.ParDo(Settle(workers))
        | "Together" >> beam.GroupByKey()
        | "Prepare" >> beam.ParDo(Prepare(root, run))
    )


def run_graph(  # where and how a graph runs
    works: Sequence[Work], root: str, run: int, runner: str = RUNNER, options: Sequence[str] = (), workers: int = 0
) -> None:
    """Run the graph to its end.

    Args:
        works: the work items; at least one.
        root: the lake root, as the workers see it.
        run: the run's number.
        runner: a Beam runner's name.
        options: further Beam options, as on a command line.
        workers: child processes of each Beam worker; 0: the worker itself settles.

    Raises:
        RetryLaterError: the runner failed, or something was away.
        FaultError: our own code failed on these segments.
        PipelineError: a worker said what must be done first.
    """
    failed_path(Path(root), run).unlink(missing_ok=True)
    pipeline: Any = beam.Pipeline(runner=runner, options=PipelineOptions(list(options)))
    build(pipeline, works, root, run, workers)
    try:
        pipeline.run().wait_until_finish()
    except PipelineError:
        raise
    except Exception as error:
        # What a runner raises comes in as many classes as there are runners. The plan stays: to run it again is always safe.
        raise RetryLaterError(f"run {run}: the graph failed on {runner}: {error}") from error
    raise_failures(Path(root), run)


@lru_cache(maxsize=1)
def crew(workers: int) -> Crew:
    """The crew of this process; its members stay warm from run to run."""
    return Crew(workers)
