"""The run as a Beam pipeline: one linear chain of small references, the same on every runner.

    work items -> spread over workers -> settle each (files written) -> all results together -> prepared.json

Rows never leave a step, and a rejected sample rides in the same result, never in a tagged output: runners differ there,
some silently. The last step writes the one file that says that all items are done.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import apache_beam
import msgspec

from pipelines.atomic import write_atomic
from pipelines.ingest.settle import settle_item
from pipelines.ingest.work import ItemResult, Prepared, Work
from pipelines.lake.layout import prepared_path
from pipelines.runners.engine import Engine
from pipelines.runners.run import run_pipeline

# Beam ships annotations for some of its calls and none for others: to the type checker it is one untyped library.
beam: Any = apache_beam


class Settle(apache_beam.DoFn):
    """Settles one work item."""

    def process(self, element: bytes) -> Iterable[tuple[int, bytes]]:
        """Work item in, result out, both as JSON: every runner can carry bytes."""
        result = settle_item(msgspec.json.decode(element, type=Work))
        yield 0, msgspec.json.encode(result)


class Prepare(apache_beam.DoFn):
    """Writes down that all items of a run are done, and what they wrote."""

    def __init__(self, root: str, run: int) -> None:
        self._root, self._run = root, run

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterable[int]:
        """All results in, the run's number out."""
        _key, bodies = element
        results = {result.item: result for result in (msgspec.json.decode(body, type=ItemResult) for body in bodies)}
        prepared = Prepared(self._run, tuple(results[item] for item in sorted(results)))
        write_atomic(prepared_path(Path(self._root), self._run), msgspec.json.encode(prepared), mode=0o644)
        yield self._run


def build(pipeline: apache_beam.Pipeline, works: Sequence[Work], root: str, run: int) -> Any:
    """The graph of a run."""
    return (
        pipeline
        | "Work items" >> beam.Create([msgspec.json.encode(work) for work in works], reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | "Settle" >> beam.ParDo(Settle())  # type: ignore[no-untyped-call]  # its base class is untyped
        | "Together" >> beam.GroupByKey()
        | "Prepare" >> beam.ParDo(Prepare(root, run))
    )


def run_graph(works: Sequence[Work], root: str, run: int, engine: Engine) -> None:
    """Run the graph to its end.

    Args:
        works: the work items; at least one.
        root: the lake root, as the workers see it.
        run: the run's number.
        engine: where it runs.

    Raises:
        RefusedError: the runner would get the graph wrong.
        RetryLaterError: the runner or a worker failed.
        PipelineError: a worker said what must be done first.
    """
    run_pipeline(engine, f"run {run}", lambda pipeline: build(pipeline, works, root, run))
