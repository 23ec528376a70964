"""A set planned without holding its rows: parts selected by the first graph, splits placed from counts, shards cut by a pass.

A build that was killed goes on where it stopped: its work folder is named by what it follows from, and finished items stay.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RefusedError
from pipelines.lake.lake import Lake
from pipelines.runners.engine import Engine
from pipelines.training.assemble import check_unlisted, label_notes
from pipelines.training.building.graph import select_parts
from pipelines.training.building.limits import (
    Lowest,
    alike_rows,
    drop_near_duplicates,
    keep_lowest,
    keys_of,
    near_other_splits,
)
from pipelines.training.building.part_files import GROUP, SortedPart
from pipelines.training.building.parts import PartRef
from pipelines.training.building.recipe import PreparedRecipe, balance_column
from pipelines.training.building.select_part import NO_PAYLOAD, NOT_SAMPLED
from pipelines.training.building.write_shard import Weights
from pipelines.training.grouping import Groups, GroupTable, classes_of_rows, merge_groups, tabulate_groups
from pipelines.training.line import SetLine
from pipelines.training.manifest import ClassCount, LeftOut, Source, SplitRule
from pipelines.training.split import Placement, alike_groups, groups_table, place_groups
from pipelines.training.thin import sampled
from schemas.chip_contract import slide_stream

Int64s = npt.NDArray[np.int64]
_NO_LIMIT = np.iinfo(np.int64).max
_SHARE_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class SetPlan:
    """What a build would write, from counts: `parts` hold the rows, `groups` says where each group goes.

    `split_rows`: rows of each split, in the order of the rule.
    """

    prepared: PreparedRecipe
    parts: tuple[SortedPart, ...]
    groups: pa.Table
    split_rows: Mapping[str, int]
    coverage: tuple[ClassCount, ...]
    sources: tuple[Source, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    line: int
    is_stratified: bool

    @property
    def rule(self) -> SplitRule:
        """How rows are split."""
        return self.prepared.recipe.rule

    def check(self, *, allow_missing: bool) -> None:
        """Refuse a plan in which a split lacks a class that it was to hold.

        Raises:
            RefusedError: it does, and the classes were named.
        """
        if self.is_stratified and not allow_missing:
            check_coverage(self.coverage, self.rule)

    def neighbours(self, within_s: float) -> dict[str, int]:
        """The rows of each split with a row of another one, of the same device, close in time; only splits that have some."""
        names = [name for name, _ in self.rule.fractions]
        counts = np.zeros(len(names), np.int64)
        for found in near_other_splits(self.parts, within_s):
            counts += np.bincount(found.split, minlength=len(names))
        return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def check_coverage(coverage: Iterable[ClassCount], rule: SplitRule) -> None:
    """Refuse a split that lacks a class.

    Raises:
        RefusedError: one does.
    """
    lacking = [count for count in coverage if not count.rows]
    if lacking:
        listed = ", ".join(f"{count.split} has no {count.name}" for count in lacking[:10])
        more = f" and {len(lacking) - 10:,} more" if len(lacking) > 10 else ""
        raise RefusedError(
            f"classes are missing: {listed}{more}; too few groups of {', '.join(rule.group)} hold them: "
            "group by finer columns or blocks of time, merge classes, or allow it (--allow-missing)"
        )


@dataclass(frozen=True, slots=True)
class PlanContext:
    """Where a plan is made and what it continues. `line`: None for a first version, or where all groups are placed again."""

    lake: Lake
    work: Path
    engine: Engine
    line: SetLine | None
    is_stratified: bool
    notes: tuple[str, ...] = ()


def plan_set(context: PlanContext, prepared: PreparedRecipe, refs: Sequence[PartRef]) -> SetPlan:
    """Select the rows of a set and plan its splits.

    Raises:
        RefusedError: nothing was selected, or a class is not listed.
        PipelineError: a table cannot be read, or the runner failed.
    """
    prepared.save(context.work)
    select_parts(context.engine, context.lake, context.work, refs)
    parts = tuple(SortedPart(context.work, ref.number) for ref in refs)
    for part in parts:
        part.reset()
    check_unlisted(name for part in parts for name in part.summary.unlisted)
    tally = _Tally(prepared, parts)
    table = _limited(prepared, parts, tally)
    if not int(table.rows.sum()):
        raise _nothing(prepared, tally)
    placed = _place(prepared, parts, table, context.line)
    rule = prepared.recipe.rule
    counts = table.in_splits(placed.split_of_group, len(rule.fractions))
    sizes = _split_sizes(table, placed, rule)
    if _thinned(prepared, parts, tally):
        sizes, counts = _counted(parts, rule, table.classes)
    rows = dict(zip([name for name, _ in rule.fractions], sizes.tolist(), strict=True))
    facts = SplitFacts(len(table.names), table.null_rows, placed.kept_groups, placed.joined_groups, placed.torn_groups, rows)
    return SetPlan(
        prepared=prepared,
        parts=parts,
        groups=groups_table(table, placed, rule),
        split_rows=rows,
        coverage=_coverage(table, counts, rule),
        sources=_sources(prepared, refs, parts),
        left_out=tuple(LeftOut(reason, gone) for reason, gone in tally.left_out.items() if gone),
        notes=(
            *_absent(prepared, refs, parts),
            *tally.notes(),
            *_labelled_by(prepared, parts),
            *split_notes(facts, rule, context.line),
            *context.notes,
        ),
        line=context.line.number if context.line else 0,
        is_stratified=context.is_stratified,
    )


def _nothing(prepared: PreparedRecipe, tally: "_Tally") -> RefusedError:
    streams = ", ".join(dict.fromkeys(source.title for source in prepared.recipe.spec.sources))
    lost = "".join(f"; {rows:,} left out: {reason}" for reason, rows in tally.left_out.items() if rows)
    return RefusedError(f"no row of {streams} fulfils {prepared.recipe.where!r}{lost}; nothing to build")


def _coverage(table: GroupTable, counts: Int64s, rule: SplitRule) -> tuple[ClassCount, ...]:
    return tuple(
        ClassCount(split, kind, int(counts[number, at]))
        for at, kind in enumerate(table.classes)
        for number, (split, _) in enumerate(rule.fractions)
    )


class _Tally:
    """What is to be said of the parts taken together."""

    def __init__(self, prepared: PreparedRecipe, parts: Sequence[SortedPart]) -> None:
        self._spec = prepared.recipe.spec
        self.left_out: dict[str, int] = {}
        self._lacking: dict[str, int] = {}
        self._torn = 0
        self._joined = 0
        for part in parts:
            summary = part.summary
            for counts, more in ((self.left_out, summary.left_out), (self._lacking, summary.lacking)):
                for name, rows in more.items():
                    counts[name] = counts.get(name, 0) + rows
            self._torn += summary.torn
            self._joined += summary.selected - summary.left_out.get(NO_PAYLOAD, 0)

    def add(self, reason: str, rows: int) -> None:
        """Rows were left out."""
        self.left_out[reason] = self.left_out.get(reason, 0) + rows

    def notes(self) -> tuple[str, ...]:
        """What a person should know about joins and labels, in words."""
        notes = [
            f"{rows:,} of {self._joined:,} rows have no {what}; they hold null" for what, rows in self._lacking.items() if rows
        ]
        if self._torn and self._spec.label is not None:
            notes.append(
                f"{self._torn:,} rows have labels that differ between authors; `resolve: {self._spec.label.resolve}` decided"
            )
        return tuple(notes)


def _limited(prepared: PreparedRecipe, parts: Sequence[SortedPart], tally: _Tally) -> GroupTable:
    """Apply what limits rows before the split, and add up what the groups of the rest hold."""
    recipe, spec = prepared.recipe, prepared.recipe.spec
    near = spec.near_duplicates
    if near is not None and near.action == "drop":
        tally.add("near-duplicate of another row", drop_near_duplicates(parts, near, spec.label.name if spec.label else ""))
    for cap in spec.caps:
        keys, count = keys_of(parts, cap.per)
        gone = keep_lowest(parts, Lowest("cap", spec.seed, keys, np.full(count, cap.rows, np.int64)))
        tally.add(f"above {cap.rows:,} rows per {', '.join(cap.per)}", gone)
    if spec.sample.share < 1 and not recipe.samples_early:
        tally.add(NOT_SAMPLED, sum(_sample(part, spec.seed, spec.sample.share) for part in parts))
    if spec.sample.rows:
        limit = np.array([spec.sample.rows], np.int64)
        tally.add(NOT_SAMPLED, keep_lowest(parts, Lowest("sample", spec.seed, _one_key, limit)))
    return merge_groups(_group_table(part, prepared) for part in parts)


def _one_key(part: SortedPart) -> Int64s:
    return np.zeros(part.summary.rows, np.int64)


def _sample(part: SortedPart, seed: int, share: float) -> int:
    before = part.kept()
    kept = before & sampled(part.rows(), seed, share)
    part.keep(kept)
    return int(before.sum() - kept.sum())


def _group_table(part: SortedPart, prepared: PreparedRecipe) -> GroupTable:
    """What the groups of a part hold; counted again where a limit has left rows out."""
    table = part.group_table()
    if not part.is_limited:
        return table
    kept = part.kept()
    rows = part.rows().filter(pa.array(kept))
    of_row = np.array(part.numbers()[GROUP])[kept]
    there, place = np.unique(of_row, return_inverse=True)
    rule = prepared.recipe.rule
    nulls = np.logical_and.reduce([pc.is_null(rows.column(name)).to_numpy() for name in rule.group])
    groups = Groups(table.names.take(pa.array(there)), place.astype(np.int64), int(nulls.sum()))
    return tabulate_groups(groups, classes_of_rows(rows, rule.stratify))


def _place(prepared: PreparedRecipe, parts: Sequence[SortedPart], table: GroupTable, line: SetLine | None) -> Placement:
    """Decide the split of each group, and write it down for each part."""
    recipe = prepared.recipe
    places = [_numbers_of(part.group_table().names, table.names) for part in parts]
    near = recipe.spec.near_duplicates
    alike = None
    if near is not None and near.action == "group":
        alike = alike_groups(*alike_rows(parts, near, places))
    placed = place_groups(table, recipe.rule, recipe.spec.seed, line.earlier if line else None, alike)
    with_none = np.concatenate((placed.split_of_group, [-1]))
    for part, place in zip(parts, places, strict=True):
        part.assign(with_none[place])
    return placed


def _numbers_of(names: pa.Array, among: pa.Array) -> Int64s:
    """Where names stand among others; -1 for those that a limit has left nothing of."""
    place = pc.fill_null(pc.index_in(names, value_set=among), -1)
    return np.asarray(place.to_numpy(zero_copy_only=False), np.int64)


def _split_sizes(table: GroupTable, placed: Placement, rule: SplitRule) -> Int64s:
    return np.bincount(placed.split_of_group, table.rows, len(rule.fractions)).astype(np.int64)


def _thinned(prepared: PreparedRecipe, parts: Sequence[SortedPart], tally: _Tally) -> bool:
    """Apply what limits rows after the split; whether anything does."""
    rule, balance = prepared.recipe.rule, prepared.recipe.spec.balance
    if rule.gap_s > 0:
        # The larger split loses rows: it can spare them.
        order = sorted(range(len(rule.fractions)), key=lambda each: -rule.fractions[each][1])[:-1]
        gone = 0
        for found in near_other_splits(parts, rule.gap_s, losing=order):
            gone += len(found.row)
            for place in np.unique(found.part).tolist():
                kept = parts[place].kept()
                kept[found.row[found.part == place]] = False
                parts[place].keep(kept)
        tally.add(f"within {rule.gap_s:g} s of another split", gone)
    if balance is not None:
        column = balance_column(prepared.recipe.spec)
        gone = _balanced(prepared, parts, column)
        tally.add(f"balance of {', '.join(balance.splits)} by {column}", gone)
    return rule.gap_s > 0 or balance is not None


def _balanced(prepared: PreparedRecipe, parts: Sequence[SortedPart], column: str) -> int:
    """Even the classes of the splits that are to be balanced, and write the weights down. Returns how many rows it left out."""
    spec, names = prepared.recipe.spec, [name for name, _ in prepared.recipe.rule.fractions]
    rule = spec.balance
    assert rule is not None
    classes = pa.array([], pa.string())
    for part in parts:
        values = pc.cast(part.rows().column(column), pa.string())
        classes = pc.drop_null(pc.unique(pa.chunked_array([classes, *values.chunks], pa.string())))
    gone = 0
    weights: dict[str, dict[str, float]] = {}
    for name in rule.splits:
        keys = _ClassKeys(column, classes, names.index(name))
        counts = keys.counts(parts)
        most = rule.rows_per_class or _NO_LIMIT
        if rule.undersample and (counts > 0).any():
            most = min(most, int(counts[counts > 0].min()))
        gone += keep_lowest(parts, Lowest("balance", spec.seed, keys, np.full(len(classes), most, np.int64)))
        counts = np.minimum(counts, most)
        kinds = max(1, int((counts > 0).sum()))
        shares = [float(counts.sum()) / (kinds * max(1, int(count))) for count in counts.tolist()]
        weights[name] = dict(zip(classes.to_pylist(), shares, strict=True))
    if rule.weights:
        Weights(rule.weights, weights).save(parts[0].folder)
    return gone


@dataclass(frozen=True, slots=True)
class _ClassKeys:
    """The number of the class of each row of one split; -1 for other rows, and those without a class."""

    column: str
    classes: pa.Array
    split: int

    def __call__(self, part: SortedPart) -> Int64s:
        values = pc.cast(part.rows().column(self.column), pa.string())
        place = pc.fill_null(pc.index_in(values, value_set=self.classes, skip_nulls=True), -1)
        return np.where(part.splits()[part.numbers()[GROUP]] == self.split, np.asarray(place.to_numpy(), np.int64), -1)

    def counts(self, parts: Sequence[SortedPart]) -> Int64s:
        """The rows of each class that are in the split."""
        counts = np.zeros(len(self.classes), np.int64)
        for part in parts:
            keys = np.where(part.kept(), self(part), -1)
            counts += np.bincount(keys[keys >= 0], minlength=len(counts))
        return counts


def _counted(parts: Sequence[SortedPart], rule: SplitRule, kinds: tuple[str, ...]) -> tuple[Int64s, Int64s]:
    """(splits,) rows, and (splits, classes) rows, counted again after rows were left out."""
    sizes, counts = np.zeros(len(rule.fractions), np.int64), np.zeros((len(rule.fractions), len(kinds)), np.int64)
    place = {name: number for number, name in enumerate(kinds)}
    for part in parts:
        splits = np.where(part.kept(), part.splits()[part.numbers()[GROUP]], -1)
        sizes += np.bincount(splits[splits >= 0], minlength=len(sizes))
        classes = classes_of_rows(part.rows().select(list(rule.stratify)), rule.stratify)
        of_split = splits[classes.row]
        inside = of_split >= 0
        numbers = np.array([place.get(name, 0) for name in classes.names] or [0], np.int64)
        np.add.at(counts, (of_split[inside], numbers[classes.kind[inside]]), 1)
    return sizes, counts


def _absent(prepared: PreparedRecipe, refs: Sequence[PartRef], parts: Sequence[SortedPart]) -> tuple[str, ...]:
    """Notes of samples that a source lists and its stream lacks."""
    notes: list[str] = []
    for place, source in enumerate(prepared.recipe.spec.sources):
        there = {at for ref, part in zip(refs, parts, strict=True) if ref.source == place for at in part.summary.listed}
        if len(there) < len(source.samples):
            lacking = len(source.samples) - len(there)
            notes.append(f"{lacking:,} of {len(source.samples):,} listed samples are not in {source.title}")
    return tuple(notes)


def _labelled_by(prepared: PreparedRecipe, parts: Sequence[SortedPart]) -> tuple[str, ...]:
    """Notes of the labels that the classes come from."""
    label = prepared.recipe.spec.label
    if label is None or prepared.labels is None:
        return ()
    return label_notes(prepared.labels, label, (part.rows().filter(pa.array(part.kept())) for part in parts))


def _sources(prepared: PreparedRecipe, refs: Sequence[PartRef], parts: Sequence[SortedPart]) -> tuple[Source, ...]:
    """The streams that were read. Of a joined one: how many rows of the set found a row there.

    The slides of chips are one where the spec names their columns.
    """
    spec = prepared.recipe.spec
    selected = np.zeros(len(spec.sources), np.int64)
    matched = np.zeros(len(spec.joins), np.int64)
    for ref, part in zip(refs, parts, strict=True):
        selected[ref.source] += part.summary.selected
        matched += np.array(part.summary.matched, np.int64)
    slides = [
        Source(slide_stream(each.stream), each.slide_version, int(rows))
        for each, rows in zip(spec.sources, selected, strict=True)
        if each.slide_version is not None
    ]
    return (
        *(Source(each.title, each.version or 0, int(rows)) for each, rows in zip(spec.sources, selected, strict=True)),
        *slides,
        *(Source(each.stream, each.version or 0, int(rows)) for each, rows in zip(spec.joins, matched, strict=True)),
        *((prepared.labels.source,) if prepared.labels else ()),
    )


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """What notes about splits speak of."""

    groups: int
    null_rows: int
    kept_groups: int
    joined_groups: int
    torn_groups: int
    split_rows: Mapping[str, int]


def split_notes(found: SplitFacts, rule: SplitRule, line: SetLine | None) -> tuple[str, ...]:
    """What a person should know about the splits, in words."""
    notes: list[str] = []
    if found.null_rows:
        notes.append(f"{found.null_rows:,} rows have no {', '.join(rule.group)}; they stay together as a group of their own")
    if found.joined_groups:
        notes.append(f"{found.joined_groups:,} groups share near-duplicates with another and are placed together")
    if found.torn_groups:
        notes.append(
            f"{found.torn_groups:,} groups stand apart from their near-duplicates, where an earlier version put them (--reassign)"
        )
    if line is not None:
        fresh = found.groups - found.kept_groups
        notes.append(f"{found.kept_groups:,} groups keep the split of version {line.version}, {fresh:,} groups are new")
    total = max(1, sum(found.split_rows.values()))
    for split, share in rule.fractions:
        got = found.split_rows[split] / total
        if not found.split_rows[split]:
            notes.append(f"split {split} is empty: there are too few groups of {', '.join(rule.group)}; group by finer columns")
        elif abs(got - share) > _SHARE_TOLERANCE:
            notes.append(f"split {split} has {got:.1%} of the rows, not {share:.1%}: whole groups come no nearer")
    return tuple(notes)


def reassign_notes(is_reassigned: bool) -> tuple[str, ...]:
    """What is said of a version that places all groups again."""
    return ("all groups were placed again (--reassign): a new line begins",) if is_reassigned else ()
