"""The two graphs of a build: one linear chain of numbers each, the same on every runner. What passes between them lies in files.

    parts  -> spread over workers -> select each (sorted files)        shards -> spread over workers -> write each

No runner shuffles rows: Beam's Dask runner cannot, and a sort by files gives the same bytes on all of them.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from pipelines import errors
from pipelines.errors import PipelineError
from pipelines.lake.lake import Lake, lake_at
from pipelines.runners.engine import Engine, RunnerKind
from pipelines.training.building.parts import PartRef
from pipelines.training.building.recipe import WorkerRecipe, load_recipe
from pipelines.training.building.select_part import select_part
from pipelines.training.building.write_shard import ShardRef, write_shard

# So few items are done here: to start a graph takes longer.
_FEW_ITEMS = 8
_FAILED = "failed-"


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One piece of work: a part to select, or a shard to write of so many parts."""

    lake: str
    work: str
    part: PartRef | None = None
    shard: ShardRef | None = None
    parts: int = 0


class _Failure(msgspec.Struct, frozen=True):
    """Why an item could not be done: the class of the error by name, because runners hand errors back in forms of their own."""

    kind: str
    text: str


def select_parts(engine: Engine, lake: Lake, work: Path, parts: Sequence[PartRef]) -> None:
    """Select all parts.

    Raises:
        PipelineError: a part could not be selected, or the runner failed.
    """
    _run(engine, work, "select", [Item(str(lake.root), str(work), part=part) for part in parts])


def write_shards(engine: Engine, lake: Lake, work: Path, parts: int, shards: Sequence[ShardRef]) -> None:
    """Write all shards.

    Raises:
        PipelineError: a shard could not be written, or the runner failed.
    """
    _run(engine, work, "write", [Item(str(lake.root), str(work), shard=shard, parts=parts) for shard in shards])


def do_item(body: bytes) -> int:
    """Do one item; what keeps it from being done is left as a file, and keeps the others from being begun."""
    item = msgspec.json.decode(body, type=Item)
    work = Path(item.work)
    if any(work.glob(f"{_FAILED}*")):
        return 0
    number = item.part.number if item.part is not None else item.shard.number if item.shard is not None else 0
    try:
        _do(item, work)
    except PipelineError as error:
        name = f"{_FAILED}{type(error).__name__}-{number:06d}"
        (work / f".{name}").write_bytes(msgspec.json.encode(_Failure(type(error).__name__, str(error))))
        (work / f".{name}").replace(work / name)
    return number


def build(pipeline: Any, name: str, bodies: Sequence[bytes]) -> Any:
    """The chain itself."""
    from pipelines.runners.run import beam  # noqa: PLC0415  # slow to import, and small sets do without

    return (
        pipeline
        | f"Items to {name}" >> beam.Create(list(bodies), reshuffle=False)
        | "Spread" >> beam.Reshuffle()
        | f"Do {name}" >> beam.Map(do_item)
    )


def _do(item: Item, work: Path) -> None:
    found = _recipe(item.work)
    lake = lake_at(Path(item.lake))
    if item.part is not None:
        select_part(lake, work, found, item.part)
    elif item.shard is not None:
        write_shard(lake, work, found.recipe, item.parts, item.shard)


def _run(engine: Engine, work: Path, name: str, items: Sequence[Item]) -> None:
    for path in work.glob(f"{_FAILED}*"):
        path.unlink()
    bodies = [msgspec.json.encode(item) for item in items]
    if engine.kind is RunnerKind.DIRECT and len(bodies) <= _FEW_ITEMS:
        for body in bodies:
            do_item(body)
    elif bodies:
        from pipelines.runners.run import run_pipeline  # noqa: PLC0415  # likewise

        run_pipeline(engine, f"set build: {name}", lambda pipeline: build(pipeline, name, bodies))
    _raise_failures(sorted(work.glob(f"{_FAILED}*")))


def _raise_failures(paths: Iterable[Path]) -> None:
    for path in paths:
        failure = msgspec.json.decode(path.read_bytes(), type=_Failure)
        known = getattr(errors, failure.kind, PipelineError)
        raise known(failure.text) if issubclass(known, PipelineError) else PipelineError(failure.text)


@lru_cache(maxsize=4)
def _recipe(work: str) -> WorkerRecipe:
    """A recipe never changes: its folder is named by its hash."""
    return load_recipe(Path(work))
