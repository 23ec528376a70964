"""Build one version of a training set: select, split by group, shuffle once, write, publish by one rename."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catchment.runtime.atomic_files import sync_folder, write_atomic
from catchment.runtime.clock import Clock, SystemClock
from pipelines.errors import ConflictError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import SET_DRAFT
from pipelines.training.array_draft import ARRAY_ROW, ArrayRule, ArraySource, draft_arrays, write_arrays
from pipelines.training.array_rules import PictureRule
from pipelines.training.bucket_sets import share_set, take_number, taken_numbers
from pipelines.training.card import card_facts, render_card
from pipelines.training.line import SetLine, line_of, write_groups
from pipelines.training.manifest import (
    MANIFEST_NAME,
    ColumnEntry,
    FileEntry,
    LeftOut,
    Manifest,
    Source,
    SplitRule,
    TagCount,
    checked_set_name,
    encode_manifest,
)
from pipelines.training.select import KEY, Compiler, policy_compiler, select_rows
from pipelines.training.shards import (
    REFERENCE_COLUMNS,
    Progress,
    ShardLimits,
    write_payload_split,
    write_tabular_split,
)
from pipelines.training.split import LEFT_OUT, Int64s, SplitPlan, plan_splits, rows_in_time_order, shuffled_rows

DEFAULT_SPLIT: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
_PUBLISH_ATTEMPTS = 100
_SHARE_TOLERANCE = 0.02
_NO_COLUMNS = (*REFERENCE_COLUMNS, ARRAY_ROW)
_LINEAGE = (*KEY, "payload_sha256", "tags", "tag_rules")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build, beyond which rows. `with_payload` None: with it where every stream has one.

    `stratify`: columns of classes; each must stand in every split unless `allow_missing`. Empty: the tags, which are balanced
    as far as groups allow. `reassign`: place all groups again instead of keeping those of the version before. `arrays`: build a
    set of Zarr arrays, windows or pixels; None: of Parquet alone.
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
    has_payload: bool
    sources: tuple[Source, ...]
    left_out: tuple[LeftOut, ...]
    line: int
    notes: tuple[str, ...]
    arrays: ArraySource | None = None
    order: Literal["shuffled", "time"] = "shuffled"
    spec: Mapping[str, Any] | None = None

    def check(self, allow_missing: bool) -> None:
        """Refuse a draft in which a split lacks a class that it was to hold.

        Raises:
            RefusedError: it does, and the classes were named.
        """
        lacking = self.plan.missing
        if lacking and self.is_stratified and not allow_missing:
            listed = ", ".join(f"{count.split} has no {count.name}" for count in lacking[:10])
            more = f" and {len(lacking) - 10:,} more" if len(lacking) > 10 else ""
            raise RefusedError(
                f"classes are missing: {listed}{more}; too few groups of {', '.join(self.rule.group)} hold them: "
                "group by finer columns or blocks of time, merge classes, or allow it (--allow-missing)"
            )

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
    draft = draft_set(lake, name, streams, where, seed=seed, options=options)
    return write_set(lake, draft, options, clock=clock, progress=progress)


def write_set(
    lake: Lake, draft: SetDraft, options: BuildOptions, *, clock: Clock | None = None, progress: Progress | None = None
) -> Manifest:
    """Write a drafted set as the next version of its name.

    Raises:
        RefusedError: a split would lack a class, or a payload is too large.
        CorruptLakeError: the lake lacks a file that a row refers to.
    """
    draft.check(options.allow_missing)
    rule, splits = draft.rule, draft.plan.splits
    home = lake.root / "sets" / draft.name
    folder = _fresh_folder(home)
    try:
        parts = [(split, _ordered(draft, number)) for number, (split, _) in enumerate(rule.fractions)]
        progress, arrays = progress or Progress(), None
        if draft.arrays is not None:
            parts, arrays = write_arrays(lake, folder, draft.arrays, parts, progress)
            progress = Progress()
        shards, indexes = _write_splits(lake, folder, parts, draft.has_payload, options.limits, progress)
        manifest = Manifest(
            name=draft.name,
            version=0,
            created_ms=(clock or SystemClock()).now_ms(),
            code_version=distribution_version("catchment"),
            sources=draft.sources,
            where=draft.where,
            seed=draft.seed,
            split=rule,
            columns=_columns(draft.rows),
            has_payload=draft.has_payload,
            shards=shards,
            indexes=indexes,
            tags=_tag_counts(draft.rows, splits, rule),
            policies=_policies(draft.rows),
            left_out=draft.left_out,
            groups=write_groups(folder, draft.plan.groups),
            coverage=draft.plan.coverage,
            line=draft.line,
            notes=draft.notes,
            arrays=arrays.part if arrays else None,
            array_files=arrays.files if arrays else (),
            spec=None if draft.spec is None else dict(draft.spec),
        )
        return _publish(lake, home, folder, manifest)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def draft_set(
    lake: Lake, name: str, streams: tuple[str, ...], where: str = "", *, seed: int = 0, options: BuildOptions | None = None
) -> SetDraft:
    """Select the rows of the next version of a set and plan its splits. Writes nothing.

    Args and errors are those of `build_set`.
    """
    options = options or BuildOptions()
    checked_set_name(name)
    if not streams:
        raise RefusedError("give at least one stream to build a set from")
    selection = select_rows(lake, streams, where, options.versions, options.compiler)
    rows, has_payload, left_out = usable_rows(selection.rows, _wants_payload(options))
    return draft_of(lake, name, Chosen(rows, has_payload, selection.sources, left_out, where), seed, options)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The rows that a set is to hold and where they came from. `near`: (rows,) their groups of near-duplicates, if any."""

    rows: pa.Table
    has_payload: bool
    sources: tuple[Source, ...]
    left_out: tuple[LeftOut, ...]
    where: str
    near: Int64s | None = None
    notes: tuple[str, ...] = ()


def draft_of(lake: Lake, name: str, chosen: Chosen, seed: int, options: BuildOptions) -> SetDraft:
    """Plan the splits of chosen rows.

    Raises:
        RefusedError: there are none, or a split or column does not fit.
    """
    source, gap_s = None, options.gap_s
    if options.arrays is not None:
        drafted = draft_arrays(chosen.rows, options.arrays, options.group, options.stratify)
        source, gap_s = drafted.source, gap_s + drafted.gap_s
        chosen = replace(
            chosen,
            rows=drafted.rows,
            has_payload=False,
            left_out=(*chosen.left_out, *drafted.left_out),
            near=drafted.near(chosen.near),
        )
    rows = chosen.rows
    if not len(rows):
        streams = ", ".join(source.stream for source in chosen.sources)
        lost = "".join(f"; {part.rows:,} left out: {part.reason}" for part in chosen.left_out)
        raise RefusedError(f"no row of {streams} fulfils {chosen.where!r}{lost}; nothing to build")
    classes = options.stratify or (("tags",) if "tags" in rows.schema.names else ())
    shares = tuple(options.split.items())
    rule = SplitRule(options.group, shares, classes, options.block_s, gap_s, "stratified")
    line = None if options.reassign else line_of(lake, name, rule)
    plan = plan_splits(rows, rule, seed, line.earlier if line else None, chosen.near)
    return SetDraft(
        name=name,
        where=chosen.where,
        seed=seed,
        rows=_project(rows, options.columns, chosen.has_payload) if source is None else rows,
        plan=plan,
        rule=rule,
        is_stratified=bool(options.stratify),
        has_payload=chosen.has_payload,
        sources=chosen.sources,
        left_out=(*chosen.left_out, *_too_near(plan, rule)),
        line=line.number if line else 0,
        notes=(*chosen.notes, *_notes(plan, rule, line, options.reassign)),
        arrays=source,
    )


def _wants_payload(options: BuildOptions) -> bool | None:
    """Pixels are made of payloads; windows are not, and leave no row out for want of one."""
    return options.with_payload if options.arrays is None else isinstance(options.arrays, PictureRule)


def _ordered(draft: SetDraft, number: int) -> pa.Table:
    if draft.order == "time":
        return rows_in_time_order(draft.rows, draft.plan.splits, number)
    return shuffled_rows(draft.rows, draft.plan.splits, number, draft.seed)


def _too_near(plan: SplitPlan, rule: SplitRule) -> tuple[LeftOut, ...]:
    near = int((plan.splits == LEFT_OUT).sum())
    return (LeftOut(f"within {rule.gap_s:g} s of another split", near),) if near else ()


def _notes(plan: SplitPlan, rule: SplitRule, line: SetLine | None, is_reassigned: bool) -> tuple[str, ...]:
    """What a person should know about the splits, in words."""
    notes: list[str] = []
    if plan.null_rows:
        notes.append(f"{plan.null_rows:,} rows have no {', '.join(rule.group)}; they stay together as a group of their own")
    if plan.joined_groups:
        notes.append(f"{plan.joined_groups:,} groups share near-duplicates with another and are placed together")
    if plan.torn_groups:
        notes.append(
            f"{plan.torn_groups:,} groups stand apart from their near-duplicates, where an earlier version put them (--reassign)"
        )
    if line is not None:
        fresh = len(plan.groups) - plan.kept_groups
        notes.append(f"{plan.kept_groups:,} groups keep the split of version {line.version}, {fresh:,} groups are new")
    if is_reassigned:
        notes.append("all groups were placed again (--reassign): a new line begins")
    sizes = np.bincount(plan.splits[plan.splits >= 0], minlength=len(rule.fractions))
    for (split, share), rows in zip(rule.fractions, sizes.tolist(), strict=True):
        got = rows / max(1, int(sizes.sum()))
        if not rows:
            notes.append(f"split {split} is empty: there are too few groups of {', '.join(rule.group)}; group by finer columns")
        elif abs(got - share) > _SHARE_TOLERANCE:
            notes.append(f"split {split} has {got:.1%} of the rows, not {share:.1%}: whole groups come no nearer")
    return tuple(notes)


def _columns(rows: pa.Table) -> tuple[ColumnEntry, ...]:
    return tuple(ColumnEntry(column.name, str(column.type)) for column in rows.schema if column.name not in _NO_COLUMNS)


def _write_splits(
    lake: Lake, folder: Path, parts: list[tuple[str, pa.Table]], has_payload: bool, limits: ShardLimits, progress: Progress
) -> tuple[tuple[FileEntry, ...], tuple[FileEntry, ...]]:
    shards: list[FileEntry] = []
    indexes: list[FileEntry] = []
    progress.total(sum(len(rows) for _, rows in parts))
    for split, rows in parts:
        if has_payload:
            written, index = write_payload_split(lake, folder, split, rows, limits, progress)
            indexes.append(index)
        else:
            written = write_tabular_split(folder, split, rows, limits, progress)
        shards.extend(written)
    return tuple(shards), tuple(indexes)


def usable_rows(rows: pa.Table, wanted: bool | None) -> tuple[pa.Table, bool, tuple[LeftOut, ...]]:
    """Rows that can stand in the set; those without a payload are left out of a set with payload, and counted."""
    possible = all(name in rows.schema.names for name in REFERENCE_COLUMNS)
    if wanted and not possible:
        raise RefusedError("these streams have no payload; build the set without it (--tabular)")
    if not possible or wanted is False:
        return rows, False, ()
    there = rows.filter(pc.is_valid(rows.column("payload_shard")))
    gone = len(rows) - len(there)
    if not len(there) and wanted is None:
        return rows, False, ()
    return there, True, (LeftOut("no payload", gone),) if gone else ()


def _project(rows: pa.Table, columns: tuple[str, ...] | None, has_payload: bool) -> pa.Table:
    """The chosen columns beside those that tell where a row came from."""
    missing = [name for name in columns or () if name not in rows.schema.names]
    if missing:
        raise RefusedError(f"no column {', '.join(missing)}; there are {', '.join(rows.schema.names)}")
    keep = set(rows.schema.names) if columns is None else {*columns, *_LINEAGE}
    keep = keep | set(REFERENCE_COLUMNS) if has_payload else keep - set(REFERENCE_COLUMNS)
    head = [name for name in KEY if name in keep]
    return rows.select(head + [name for name in rows.schema.names if name in keep and name not in head])


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
    """A folder of this process's own beside the versions; one that an earlier process of the same id left is removed."""
    folder = home / f"{SET_DRAFT}{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _publish(lake: Lake, home: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Give the folder the next free version number; a number that somebody else took meanwhile is skipped.

    Raises:
        ConflictError: others were faster every time.
    """
    for _ in range(_PUBLISH_ATTEMPTS):
        taken = [int(path.name) for path in home.iterdir() if path.name.isdecimal()]
        taken += taken_numbers(lake, home.name)
        number = max(taken, default=0) + 1
        numbered = msgspec.structs.replace(manifest, version=number, line=manifest.line or number)
        write_atomic(folder / MANIFEST_NAME, encode_manifest(numbered), mode=0o644)
        card = render_card(numbered, folder, card_facts(lake, numbered, folder))
        write_atomic(folder / "card.html", card.encode(), mode=0o644)
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
        sync_folder(folder)
        final = home / str(numbered.version)
        try:
            take_number(lake, home.name, numbered.version)
            folder.rename(final)
        except (OSError, ConflictError) as error:
            if isinstance(error, OSError) and not final.exists():
                raise
            continue
        sync_folder(home)
        share_set(lake, final)
        return numbered
    raise ConflictError(f"{home}: {_PUBLISH_ATTEMPTS} times another build took the version number first; try again")
