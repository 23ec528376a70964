"""Build one version of a training set: select, split by group, shuffle once, write, publish by one rename."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version as distribution_version
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catchment.runtime.clock import Clock, SystemClock
from pipelines.errors import RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import SET_DRAFT, SETS
from pipelines.lake.workplace import scratch
from pipelines.runners.engine import Engine
from pipelines.training.array_draft import (
    ARRAY_ROW,
    ArrayDraft,
    ArrayRule,
    ArraySource,
    carried_columns,
    draft_of_pictures,
    draft_of_windows,
    write_arrays,
)
from pipelines.training.array_rules import WindowRule
from pipelines.training.assemble import GROUP_COLUMN
from pipelines.training.building.plan import SplitFacts, check_coverage, reassign_notes, split_notes
from pipelines.training.building.recipe import Wish
from pipelines.training.building.versions import Terms, build_version
from pipelines.training.device_rows import FILE_ROWS, RowQuery, rows_by_device
from pipelines.training.grouping import neighbours_elsewhere
from pipelines.training.line import line_of, write_groups
from pipelines.training.manifest import (
    ClassCount,
    ColumnEntry,
    LeftOut,
    Manifest,
    Source,
    SplitRule,
    TagCount,
    checked_set_name,
)
from pipelines.training.publish import publish
from pipelines.training.select import Compiler, policy_compiler, select_rows
from pipelines.training.shards import REFERENCE_COLUMNS, Progress, ShardLimits, write_tabular_split
from pipelines.training.spec import SetSpec, SourceSpec, parse_duration_s
from pipelines.training.split import LEFT_OUT, Int64s, SplitPlan, plan_splits, shuffled_rows
from pipelines.training.window_draft import GridFiles, WindowDraft, draft_windows
from pipelines.training.windows import window_columns

DEFAULT_SPLIT: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
_MIB = 1024 * 1024
_NO_COLUMNS = (*REFERENCE_COLUMNS, ARRAY_ROW)


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build, beyond which rows. `with_payload` None: with it where every stream has one.

    `stratify`: columns of classes; each must stand in every split unless `allow_missing`. Empty: the tags, which are balanced
    as far as groups allow. `reassign`: place all groups again instead of keeping those of the version before. `arrays`: build a
    set of Zarr arrays, windows or pixels, in this process; None: of Parquet alone, on `engine`. `held_rows`: windows are cut from
    about so many rows at a time, and of one device at least.
    """

    split: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SPLIT))
    group: tuple[str, ...] = ("device",)
    stratify: tuple[str, ...] = ()
    block_s: float = 0.0
    gap_s: float = 0.0
    allow_missing: bool = False
    reassign: bool = False
    columns: tuple[str, ...] | None = None
    with_payload: bool | None = None
    versions: Mapping[str, int] = field(default_factory=dict)
    limits: ShardLimits = field(default_factory=ShardLimits)
    compiler: Compiler = policy_compiler
    arrays: ArrayRule | None = None
    engine: Engine = field(default_factory=Engine)
    held_rows: int = FILE_ROWS


@dataclass(frozen=True, slots=True)
class SetDraft:
    """What a build would write: the rows, the split of each, and what is said about them. Nothing is written yet."""

    name: str
    where: str
    seed: int
    rows: pa.Table
    plan: SplitPlan
    rule: SplitRule
    is_stratified: bool
    sources: tuple[Source, ...]
    left_out: tuple[LeftOut, ...]
    line: int
    notes: tuple[str, ...]
    arrays: ArraySource

    def check(self, allow_missing: bool) -> None:
        """Refuse a draft in which a split lacks a class that it was to hold.

        Raises:
            RefusedError: it does, and the classes were named.
        """
        if self.is_stratified and not allow_missing:
            check_coverage(self.plan.coverage, self.rule)

    @property
    def coverage(self) -> tuple[ClassCount, ...]:
        """The rows of each class in each split."""
        return self.plan.coverage

    def neighbours(self, within_s: float) -> dict[str, int]:
        """The rows of each split with a row of another one, of the same device, close in time; only splits that have some."""
        near = neighbours_elsewhere(self.rows, self.plan.splits, within_s)
        counts = {name: int((near & (self.plan.splits == at)).sum()) for at, (name, _) in enumerate(self.rule.fractions)}
        return {name: count for name, count in counts.items() if count}

    @property
    def split_rows(self) -> dict[str, int]:
        """Rows of each split, in the order of the rule."""
        sizes = np.bincount(self.plan.splits[self.plan.splits >= 0], minlength=len(self.rule.fractions))
        return {split: int(rows) for (split, _), rows in zip(self.rule.fractions, sizes, strict=True)}


def build_set(
    lake: Lake,
    name: str,
    streams: tuple[str, ...],
    where: str = "",
    *,
    seed: int = 0,
    options: BuildOptions | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Build the next version of the set `name`.

    Args:
        lake: the lake.
        name: of the set.
        streams: the stream tables to select from.
        where: an expression over columns and tags; empty keeps all rows.
        seed: of split and shuffle; the same seed, rows and code give the same shards.
        options: split, group, columns, payload.
        clock: tells when it was built.
        progress: is told the rows in all, and each few rows written.

    Raises:
        RefusedError: nothing was selected, a name, split or column does not fit, or a split would lack a class.
        CorruptLakeError: the lake lacks a file that a row refers to.
    """
    options = options or BuildOptions()
    if options.arrays is None:
        wish = wish_of(name, streams, where, seed, options)
        return build_version(lake, wish, terms_of(options), clock=clock, progress=progress)
    draft = draft_set(lake, name, streams, where, seed=seed, options=options)
    return write_set(lake, draft, options, clock=clock, progress=progress)


def wish_of(name: str, streams: tuple[str, ...], where: str, seed: int, options: BuildOptions) -> Wish:
    """What options ask for, as a spec says it.

    Raises:
        RefusedError: a name, a stream or the split does not fit.
    """
    checked_set_name(name)
    if not streams:
        raise RefusedError("give at least one stream to build a set from")
    sources = tuple(SourceSpec(stream, options.versions.get(stream), where) for stream in streams)
    spec = SetSpec(id=name, sources=sources, payload=options.with_payload, seed=seed)
    return Wish(spec, rule_of(options), where, options.limits, options.columns, is_spec=False)


def wish_of_spec(spec: SetSpec) -> Wish:
    """What a set of this spec is made of, and how it is split and written.

    Raises:
        RefusedError: a duration or the split does not fit.
    """
    label = (spec.label.name, *filter(None, [spec.label.shapes])) if spec.label is not None else ()
    added = (*label, *(name for join in spec.joins for name in join.gives), *(each.name for each in spec.derive))
    rule = SplitRule(
        (*spec.split.group, *((GROUP_COLUMN,) if spec.split.expression else ())),
        tuple(spec.split.shares.items()),
        spec.split.stratify,
        parse_duration_s(spec.split.block),
        parse_duration_s(spec.split.gap),
        "stratified",
    )
    return Wish(
        spec=spec,
        rule=rule,
        where=_where(spec),
        limits=ShardLimits(max_rows=spec.shards.max_rows, max_bytes=spec.shards.max_mib * _MIB),
        columns=tuple(dict.fromkeys((*spec.columns, *added))) if spec.columns else None,
        is_spec=True,
    )


def _where(spec: SetSpec) -> str:
    """The conditions of a spec in one line, for lists and cards."""
    parts = [source.where for source in spec.sources if source.where] + ([spec.where] if spec.where else [])
    return parts[0] if len(parts) == 1 else " AND ".join(f"({part})" for part in parts)


def rule_of(options: BuildOptions) -> SplitRule:
    """The split that options ask for."""
    return SplitRule(options.group, tuple(options.split.items()), options.stratify, options.block_s, options.gap_s, "stratified")


def terms_of(options: BuildOptions) -> Terms:
    """On which terms a version is built."""
    return Terms(
        engine=options.engine,
        allow_missing=options.allow_missing,
        reassign=options.reassign,
        is_stratified=bool(options.stratify),
    )


def write_set(
    lake: Lake, draft: SetDraft, options: BuildOptions, *, clock: Clock | None = None, progress: Progress | None = None
) -> Manifest:
    """Write a drafted set of arrays as the next version of its name.

    Raises:
        RefusedError: a split would lack a class, or a payload is too large.
        CorruptLakeError: the lake lacks a file that a row refers to.
    """
    home = lake.root / SETS / draft.name
    try:
        draft.check(options.allow_missing)
        folder = _fresh_folder(home)
        try:
            manifest = _written(lake, folder, draft, options, progress or Progress(), (clock or SystemClock()).now_ms())
            return publish(lake, home, folder, manifest)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        _forget(draft.arrays.grid if isinstance(draft.arrays, WindowDraft) else None)


def _written(lake: Lake, folder: Path, draft: SetDraft, options: BuildOptions, progress: Progress, created_ms: int) -> Manifest:
    """Write the files of a draft; the manifest that names them."""
    rule, splits = draft.rule, draft.plan.splits
    parts = [(split, shuffled_rows(draft.rows, splits, number, draft.seed)) for number, (split, _) in enumerate(rule.fractions)]
    parts, arrays = write_arrays(lake, folder, draft.arrays, parts, progress)
    shards = [entry for split, part in parts for entry in write_tabular_split(folder, split, part, options.limits, Progress())]
    return Manifest(
        name=draft.name,
        version=0,
        created_ms=created_ms,
        code_version=distribution_version("catchment"),
        sources=draft.sources,
        where=draft.where,
        seed=draft.seed,
        split=rule,
        columns=_columns(draft.rows),
        has_payload=False,
        shards=tuple(shards),
        tags=_tag_counts(draft.rows, splits, rule),
        policies=_policies(draft.rows),
        left_out=draft.left_out,
        groups=write_groups(folder, draft.plan.groups),
        coverage=draft.plan.coverage,
        line=draft.line,
        notes=draft.notes,
        arrays=arrays.part,
        array_files=arrays.files,
    )


def draft_set(
    lake: Lake,
    name: str,
    streams: tuple[str, ...],
    where: str = "",
    *,
    seed: int = 0,
    options: BuildOptions | None = None,
    with_values: bool = True,
) -> SetDraft:
    """Select the rows of the next version of a set of arrays and plan its splits. Writes nothing that stays.

    Args and errors are those of `build_set`; `with_values`: whether the draft is to be written, and not only looked at.
    """
    options = options or BuildOptions()
    checked_set_name(name)
    if not streams:
        raise RefusedError("give at least one stream to build a set from")
    names = (*(options.columns or ()), *options.group, *options.stratify)
    query = RowQuery(streams, where, options.versions, options.compiler, names)
    if isinstance(options.arrays, WindowRule):
        grid = GridFiles.beneath(lake.root / SETS / name, f"{SET_DRAFT}windows-") if with_values else None
        try:
            return draft_of(lake, name, _windows(lake, query, options, options.arrays, grid), seed, options)
        except BaseException:
            _forget(grid)
            raise
    assert options.arrays is not None
    selection = select_rows(lake, streams, where, options.versions, options.compiler, names)
    rows, left_out = usable_rows(selection.rows, is_wanted=True)
    return draft_of(
        lake, name, Chosen(draft_of_pictures(rows, options.arrays), selection.sources, left_out, where), seed, options
    )


@dataclass(frozen=True, slots=True)
class Chosen:
    """The samples that a set is to hold and where they came from."""

    drafted: ArrayDraft
    sources: tuple[Source, ...]
    left_out: tuple[LeftOut, ...]
    where: str


def _windows(lake: Lake, query: RowQuery, options: BuildOptions, rule: WindowRule, grid: GridFiles | None) -> Chosen:
    """Cut the windows of the rows of a few devices at a time."""
    carried = carried_columns(rule, options.group, options.stratify)
    with scratch(lake.root, "set-windows") as folder:
        files = rows_by_device(lake, folder, query, partial(window_columns, rule=rule, carried=carried), options.held_rows)
        windows = draft_windows(files.tables(), rule, carried, grid)
    return Chosen(draft_of_windows(windows), files.sources, (), query.where)


def _forget(grid: GridFiles | None) -> None:
    if grid is not None:
        grid.remove()
        with suppress(OSError):  # there are versions, or others are at work
            grid.folder.parent.rmdir()


def draft_of(lake: Lake, name: str, chosen: Chosen, seed: int, options: BuildOptions) -> SetDraft:
    """Plan the splits of the samples of a set of arrays.

    Raises:
        RefusedError: there are none, or a split or column does not fit.
    """
    drafted = chosen.drafted
    rows, left_out = drafted.rows, (*chosen.left_out, *drafted.left_out)
    if not len(rows):
        streams = ", ".join(source.stream for source in chosen.sources)
        lost = "".join(f"; {part.rows:,} left out: {part.reason}" for part in left_out)
        raise RefusedError(f"no row of {streams} fulfils {chosen.where!r}{lost}; nothing to build")
    rule = rule_of(replace(options, gap_s=options.gap_s + drafted.gap_s))
    if not rule.stratify and "tags" in rows.schema.names:
        rule = msgspec.structs.replace(rule, stratify=("tags",))
    line = None if options.reassign else line_of(lake, name, rule)
    plan = plan_splits(rows, rule, seed, line.earlier if line else None)
    return SetDraft(
        name=name,
        where=chosen.where,
        seed=seed,
        rows=rows,
        plan=plan,
        rule=rule,
        is_stratified=bool(options.stratify),
        sources=chosen.sources,
        left_out=(*left_out, *_too_near(plan, rule)),
        line=line.number if line else 0,
        notes=(*split_notes(_facts(plan, rule), rule, line), *reassign_notes(options.reassign)),
        arrays=drafted.source,
    )


def _facts(plan: SplitPlan, rule: SplitRule) -> SplitFacts:
    sizes = np.bincount(plan.splits[plan.splits >= 0], minlength=len(rule.fractions)).tolist()
    rows = dict(zip((name for name, _ in rule.fractions), sizes, strict=True))
    return SplitFacts(len(plan.groups), plan.null_rows, plan.kept_groups, plan.joined_groups, plan.torn_groups, rows)


def _too_near(plan: SplitPlan, rule: SplitRule) -> tuple[LeftOut, ...]:
    near = int((plan.splits == LEFT_OUT).sum())
    return (LeftOut(f"within {rule.gap_s:g} s of another split", near),) if near else ()


def _columns(rows: pa.Table) -> tuple[ColumnEntry, ...]:
    return tuple(ColumnEntry(column.name, str(column.type)) for column in rows.schema if column.name not in _NO_COLUMNS)


def usable_rows(rows: pa.Table, *, is_wanted: bool) -> tuple[pa.Table, tuple[LeftOut, ...]]:
    """Rows that can stand in the set: pixels are made of payloads, windows are not. The others are left out, and counted."""
    if not is_wanted:
        return rows, ()
    if any(name not in rows.schema.names for name in REFERENCE_COLUMNS):
        raise RefusedError("these streams have no payload; build the set without it (--tabular)")
    there = rows.filter(pc.is_valid(rows.column("payload_shard")))
    gone = len(rows) - len(there)
    return there, (LeftOut("no payload", gone),) if gone else ()


def _tag_counts(rows: pa.Table, splits: Int64s, rule: SplitRule) -> tuple[TagCount, ...]:
    if "tags" not in rows.schema.names:
        return ()
    tags = rows.column("tags").combine_chunks()
    pairs = pa.table({
        "split": pa.array(splits).take(pc.list_parent_indices(tags)),
        "tag": pc.list_flatten(tags),
    })  # fmt: skip
    pairs = pairs.filter(pc.greater_equal(pairs.column("split"), 0))
    counted = (
        pairs.group_by(["split", "tag"]).aggregate([([], "count_all")]).sort_by([("split", "ascending"), ("tag", "ascending")])
    )
    return tuple(TagCount(rule.fractions[row["split"]][0], row["tag"], row["count_all"]) for row in counted.to_pylist())


def _policies(rows: pa.Table) -> tuple[str, ...]:
    """Every `<policy>@<version>` that gave a tag to a row of the set."""
    if "tag_rules" not in rows.schema.names:
        return ()
    return tuple(sorted(filter(None, pc.unique(pc.list_flatten(rows.column("tag_rules"))).to_pylist())))


def _fresh_folder(home: Path) -> Path:
    """A folder of this process's own next to the versions; one that an earlier process of the same id left is removed."""
    folder = home / f"{SET_DRAFT}{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
