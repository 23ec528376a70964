"""The next version of a set: planned, written by the two graphs, and published. Killed at any time, it goes on.

The work folder is named by what the version follows from and is held by a lock. It is removed at the end, and after an error
that another try would meet again.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version as distribution_version
from itertools import chain
from pathlib import Path
from threading import Event, Thread

import pyarrow as pa

from catchment.runtime.clock import Clock, SystemClock
from pipelines.errors import RefusedError, RetryLaterError
from pipelines.lake.claims import held_alone
from pipelines.lake.lake import Lake
from pipelines.lake.layout import SET_DRAFT, SETS
from pipelines.lake.workplace import scratch
from pipelines.runners.engine import Engine
from pipelines.training.building.graph import write_shards
from pipelines.training.building.parts import PART_ROWS, PartRef, plan_parts
from pipelines.training.building.plan import PlanContext, SetPlan, plan_set, reassign_notes
from pipelines.training.building.recipe import PreparedRecipe, Wish, prepare
from pipelines.training.building.reuse import SharedShard, index_batches, shared_shards
from pipelines.training.building.select_part import is_selected
from pipelines.training.building.shard_plan import plan_shards
from pipelines.training.building.write_shard import (
    ShardDone,
    ShardRef,
    finished,
    index_path,
    is_finished,
    output_folder,
    shard_name,
)
from pipelines.training.line import SetLine, line_of, write_groups
from pipelines.training.manifest import ColumnEntry, FileEntry, Manifest, TagCount
from pipelines.training.publish import publish
from pipelines.training.shards import REFERENCE_COLUMNS, Progress, write_index
from pipelines.training.spec_file import plain_spec
from schemas.ids import encode_json

WORK_PREFIX = f"{SET_DRAFT}rows-"
_LOCK = ".lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LOOK_S = 0.2
NoticePlan = Callable[[SetPlan], None]


@dataclass(frozen=True, slots=True)
class Terms:
    """On which terms a version is built.

    `engine`: the runner. `allow_missing`: a split may lack a class. `reassign`: all groups are placed again. `is_stratified`:
    classes were named, so that a missing one refuses the build; else tags are balanced as far as groups allow. `part_rows`: as
    many rows are in memory at once, a few times over; the set is the same whatever it is.
    """

    engine: Engine
    allow_missing: bool = False
    reassign: bool = False
    is_stratified: bool = False
    part_rows: int = PART_ROWS


@dataclass(frozen=True, slots=True)
class _Start:
    """What a version follows from."""

    prepared: PreparedRecipe
    refs: tuple[PartRef, ...]
    line: SetLine | None

    @property
    def digest(self) -> str:
        """A name for it. A machine that was started again may have lost what was not synced: there it begins from nothing."""
        line = (self.line.number, self.line.version) if self.line else None
        more = (self.refs, line, distribution_version("catchment"), _BOOT.read_text() if _BOOT.exists() else "")
        return self.prepared.digest(encode_json(more))


@contextmanager
def planned(lake: Lake, wish: Wish, terms: Terms) -> Iterator[SetPlan]:
    """Plan the next version of a set; nothing of it stays.

    Raises:
        RefusedError: nothing was selected, or a column does not fit.
        PipelineError: a table cannot be read, or the runner failed.
    """
    start = _start(lake, wish, terms)
    with scratch(lake.root, "set-plan") as work:
        yield plan_set(_context(lake, work, start, terms), start.prepared, start.refs)


def build_version(
    lake: Lake,
    wish: Wish,
    terms: Terms,
    *,
    clock: Clock | None = None,
    progress: Progress | None = None,
    notice: NoticePlan | None = None,
) -> Manifest:
    """Build the next version of a set.

    Args:
        lake: the lake.
        wish: what it is made of.
        terms: how it is built.
        clock: tells when it was built.
        progress: is told how it goes.
        notice: is given the plan before anything of it is written.

    Raises:
        RefusedError: nothing was selected, a split would lack a class, or the same build is at work.
        CorruptLakeError: the lake lacks a file that a row refers to.
        RetryLaterError: the runner or the storage failed; the same build goes on where this one stopped.
    """
    start = _start(lake, wish, terms)
    home = lake.root / SETS / wish.spec.id
    with _working(home, start.digest) as work:
        steps = progress or Progress()
        with _watched(steps, "rows selected", [_Watched(ref.rows, partial(is_selected, work, ref)) for ref in start.refs]):
            plan = plan_set(_context(lake, work, start, terms), start.prepared, start.refs)
        plan.check(allow_missing=terms.allow_missing)
        if notice is not None:
            notice(plan)
        shared = _shared(lake, plan, start.line)
        shards = _cut(work, plan, shared)
        with _watched(steps, "samples written", [_Watched(shard.rows, partial(is_finished, work, shard)) for shard in shards]):
            write_shards(terms.engine, lake, work, len(plan.parts), shards)
        manifest = _manifest(work, plan, shards, shared, (clock or SystemClock()).now_ms())
        return publish(lake, home, output_folder(work), manifest)


def _start(lake: Lake, wish: Wish, terms: Terms) -> _Start:
    prepared = prepare(lake, wish)
    spec, rule = prepared.recipe.spec, prepared.recipe.rule
    refs = plan_parts(lake, spec, terms.part_rows)
    return _Start(prepared, refs, None if terms.reassign else line_of(lake, spec.id, rule))


def _context(lake: Lake, work: Path, start: _Start, terms: Terms) -> PlanContext:
    return PlanContext(lake, work, terms.engine, start.line, terms.is_stratified, reassign_notes(terms.reassign))


def _shared(lake: Lake, plan: SetPlan, line: SetLine | None) -> list[SharedShard]:
    """The shards of the version before that this one holds unchanged."""
    return [] if line is None else shared_shards(lake, plan.prepared.recipe, _columns(plan), plan.parts, line.version)


def _cut(work: Path, plan: SetPlan, shared: Sequence[SharedShard]) -> tuple[ShardRef, ...]:
    """Cut the rows that no shared shard holds; the files of shared shards have the first numbers of their split."""
    recipe = plan.prepared.recipe
    output_folder(work).mkdir(exist_ok=True)
    cut = plan_shards(plan.parts, len(recipe.rule.fractions), recipe.limits, has_payload=recipe.has_payload)
    refs: list[ShardRef] = []
    for number, split in enumerate(cut):
        split.save(work, number)
        first = sum(each.split == number for each in shared)
        refs += [ShardRef(number, at, rows, first + at) for at, rows in enumerate(split.rows) if rows or not first]
    return tuple(refs)


def _linked(work: Path, plan: SetPlan, shared: Sequence[SharedShard]) -> list[tuple[int, ShardDone]]:
    """Bring shared shards into the folder of the set; the number of the split of each, and what is counted of it."""
    counts: dict[int, int] = {}
    done: list[tuple[int, ShardDone]] = []
    for shard in shared:
        number = counts.get(shard.split, 0)
        counts[shard.split] = number + 1
        name = shard_name(plan.rule.fractions[shard.split][0], number)
        done.append((shard.split, shard.link(output_folder(work), name)))
    return done


def _manifest(work: Path, plan: SetPlan, shards: Sequence[ShardRef], shared: Sequence[SharedShard], created_ms: int) -> Manifest:
    recipe, folder = plan.prepared.recipe, output_folder(work)
    written = [(shard.split, finished(work, shard)) for shard in shards]
    done = sorted((*_linked(work, plan, shared), *written), key=lambda each: each[0])
    saved = sum(shard.entry.bytes for shard in shared)
    notes = (f"{len(shared):,} shards of {saved:,} bytes are those of the version before",) if shared else ()
    return Manifest(
        name=recipe.spec.id,
        version=0,
        created_ms=created_ms,
        code_version=distribution_version("catchment"),
        sources=plan.sources,
        where=recipe.where,
        seed=recipe.spec.seed,
        split=recipe.rule,
        columns=_columns(plan),
        has_payload=recipe.has_payload,
        shards=tuple(each.entry for _, each in done),
        indexes=_indexes(work, plan, shards, shared) if recipe.has_payload else (),
        tags=_tag_counts(plan, done),
        policies=tuple(sorted({policy for _, each in done for policy in each.policies})),
        left_out=plan.left_out,
        groups=write_groups(folder, plan.groups),
        coverage=plan.coverage,
        line=plan.line,
        notes=(*plan.notes, *notes),
        spec=plain_spec(recipe.spec) if recipe.is_spec else None,
        builder=recipe.builder,
    )


def _columns(plan: SetPlan) -> tuple[ColumnEntry, ...]:
    recipe, schema = plan.prepared.recipe, plan.prepared.made
    kept = [schema.field(name) for name in recipe.kept_columns(schema) if name not in REFERENCE_COLUMNS]
    balance = recipe.spec.balance
    if balance is not None and balance.weights:
        kept.append(pa.field(balance.weights, pa.float64()))
    return tuple(ColumnEntry(field.name, str(field.type)) for field in kept)


def _tag_counts(plan: SetPlan, done: Sequence[tuple[int, ShardDone]]) -> tuple[TagCount, ...]:
    counts: dict[tuple[int, str], int] = {}
    for split, each in done:
        for tag, rows in each.tags.items():
            counts[split, tag] = counts.get((split, tag), 0) + rows
    names = [name for name, _ in plan.rule.fractions]
    return tuple(TagCount(names[split], tag, rows) for (split, tag), rows in sorted(counts.items()))


def _indexes(work: Path, plan: SetPlan, shards: Sequence[ShardRef], shared: Sequence[SharedShard]) -> tuple[FileEntry, ...]:
    """The index of each split, out of those of its shards."""
    entries: list[FileEntry] = []
    for number, (split, _) in enumerate(plan.rule.fractions):
        paths = [index_path(work, shard) for shard in shards if shard.split == number]
        own = [shard for shard in shared if shard.split == number]
        schema = own[0].rows.schema if own else _schema_of(paths[0])
        batches = chain(*(index_batches(shard) for shard in own), _batches(paths))
        entries.append(write_index(output_folder(work) / f"{split}.index.arrow", split, schema, batches))
    return tuple(entries)


def _schema_of(path: Path) -> pa.Schema:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).schema


def _batches(paths: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))


@contextmanager
def _working(home: Path, digest: str) -> Iterator[Path]:
    """The work folder, held; those of builds that were killed and follow from something else are removed.

    Raises:
        RefusedError: the same build is at work.
    """
    work = home / f"{WORK_PREFIX}{digest}"
    for path in sorted(home.glob(f"{WORK_PREFIX}*")):
        if path != work:
            with held_alone(path / _LOCK, is_made=False) as is_ours:
                if is_ours:
                    shutil.rmtree(path, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    with held_alone(work / _LOCK) as is_ours:
        if not is_ours:
            raise RefusedError(f"{work}: the same build is at work in another process; wait for its end")
        try:
            yield work
        except (RetryLaterError, KeyboardInterrupt):
            raise  # the same build goes on from here
        except BaseException:
            _forget(work)
            raise
        _forget(work)


def _forget(work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    with suppress(OSError):  # others are at work, or there are versions
        work.parent.rmdir()


@dataclass(frozen=True, slots=True)
class _Watched:
    """An item of a graph: its rows, and whether it is done."""

    rows: int
    is_done: Callable[[], bool]


@contextmanager
def _watched(progress: Progress, stage: str, items: Sequence[_Watched]) -> Iterator[None]:
    """Tell the rows of finished items while a graph runs, wherever its workers are: what is done lies in files."""
    progress.stage(stage)
    progress.total(sum(item.rows for item in items))
    ended = Event()

    def look() -> None:
        left, is_last = list(items), False
        while left and not is_last:
            is_last = ended.wait(_LOOK_S)
            waiting = [item for item in left if not item.is_done()]
            rows = sum(item.rows for item in left) - sum(item.rows for item in waiting)
            left = waiting
            if rows:
                progress.wrote(rows)

    watcher = Thread(target=look, name="build-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
