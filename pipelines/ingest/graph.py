"""The run as a Beam pipeline: one linear chain of small references, the same on every runner.

    work items -> spread over workers -> settle each (files written) -> all results together -> prepared.json

Rows never leave a step, and a rejected sample rides in the same result, never in a tagged output: runners differ there,
some silently. The last step writes the one file that says that all items are done.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from pipelines.ingest.work import ItemResult, Prepared, Work, keep_failures, raise_failures
from pipelines.ingest.worker_main import local_folder, settle_or_fail
from pipelines.ingest.workers import WorkerPool
from pipelines.lake.lake import Lake, lake_at
from pipelines.lake.layout import failed_path, prepared_path
from pipelines.runners.engine import Engine, RunnerKind
from pipelines.runners.run import apache_beam, beam, run_pipeline

# Beam ships annotations for some of its calls and none for others: to the type checker it is one untyped library.


class Settle(apache_beam.DoFn):
    """Settles work items.

    Args:
        worker_count: how many child processes settle them (see `worker_pool`); 0: this process does.
    """

    def __init__(self, worker_count: int = 0) -> None:
        self._worker_count = worker_count

    def process(self, element: bytes) -> Iterable[tuple[int, bytes]]:
        """Work items in, results out, both as JSON: every runner can carry bytes."""
        works = msgspec.json.decode(element, type=tuple[Work, ...])
        results = worker_pool(self._worker_count).settle_all(works) if self._worker_count else map(settle_or_fail, works)
        for result in results:
            yield 0, msgspec.json.encode(result)


class Prepare(apache_beam.DoFn):
    """Writes down that all items of a run are done, and what they wrote."""

    def __init__(self, lake: Lake, run: int) -> None:
        self._root, self._run, self._remote = str(lake.root), run, lake.store.remote_config

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterable[int]:
        """All results in, the run's number out."""
        _key, bodies = element
        lake = lake_at(local_folder(self._root, self._remote))
        results = {result.item: result for result in (msgspec.json.decode(body, type=ItemResult) for body in bodies)}
        if any(result.failure for result in results.values()):
            keep_failures(lake, self._run, [results[item] for item in sorted(results)])
            yield self._run
            return
        prepared = Prepared(self._run, tuple(results[item] for item in sorted(results)))
        prepared_path(lake.root, self._run).parent.mkdir(parents=True, exist_ok=True)
        lake.put(prepared_path(lake.root, self._run), msgspec.json.encode(prepared))
        yield self._run


def build(
    pipeline: apache_beam.Pipeline, works: Sequence[Work], lake: Lake, run: int, worker_count: int = 0, *, spread: bool = True
) -> Any:
    """Build the graph of a run. `spread`: the runner spreads the items; else one element holds them, and the worker pool does."""
    elements = [(work,) for work in works] if spread else [tuple(works)]
    return (
        pipeline
        | "Work items" >> beam.Create([msgspec.json.encode(element) for element in elements], reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Settle" >> beam.ParDo(Settle(worker_count))
        | "Together" >> beam.GroupByKey()
        | "Prepare" >> beam.ParDo(Prepare(lake, run))
    )


def run_graph(works: Sequence[Work], lake: Lake, run: int, engine: Engine, worker_count: int = 0) -> None:
    """Run the graph to its end.

    Args:
        works: the work items; at least one.
        lake: the lake, whose root the workers see under the same path.
        run: the run's number.
        engine: where it runs.
        worker_count: child processes of each worker that settle the items; 0: the worker itself does.

    Raises:
        RefusedError: the runner would get the graph wrong.
        RetryLaterError: the runner failed, or something was away.
        FaultError: our own code failed on these segments.
        PipelineError: a worker said what must be done first.
    """
    lake.delete(failed_path(lake.root, run))
    # A runner with workers of its own spreads the items itself; each of its workers then needs but one child.
    here = engine.kind is RunnerKind.DIRECT
    size = worker_count if here else min(1, worker_count)
    run_pipeline(engine, f"run {run}", lambda pipeline: build(pipeline, works, lake, run, size, spread=not (here and size)))
    raise_failures(lake, run)


@lru_cache(maxsize=1)
def worker_pool(size: int) -> WorkerPool:
    """The worker pool of this process; its workers stay warm from run to run."""
    return WorkerPool(size)
