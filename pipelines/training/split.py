"""Which split a row goes to, and in which order the rows of a split lie. Pure decisions over columns."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.training.allocation import FREE, allocate
from pipelines.training.grouping import (
    Classes,
    GroupTable,
    classes_of_rows,
    group_rows,
    neighbours_elsewhere,
    tabulate_groups,
)
from pipelines.training.manifest import ClassCount, SplitRule
from pipelines.training.near_duplicates import NO_GROUP, connected
from pipelines.training.permutation import Permutation

Int64s = npt.NDArray[np.int64]
LEFT_OUT = -1
_SEPARATOR = "\x1f"


def group_unit(seed: int, group: str) -> float:
    """A number in [0, 1) that hangs on the seed and the group alone: it decides between groups that are alike."""
    digest = hashlib.sha256(f"{seed}{_SEPARATOR}{group}".encode()).digest()
    return int.from_bytes(digest[:7], "little") / 2**56


@dataclass(frozen=True, slots=True)
class EarlierSplits:
    """The groups that an earlier version of the set assigned, and the number of the split of each."""

    names: pa.Array
    splits: Int64s


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Where each row goes and what each split gets.

    `splits`: (rows,) the number of the split; `LEFT_OUT`: none, because a row of another split is too near in time.
    `groups`: a table of `group`, `split` (its name) and `rows`. `coverage`: rows of each class in each split, zeros included.
    `joined_groups`: how many groups fewer there were to place, because near-duplicates join them;
    `torn_groups`: how many of those an earlier version had put into another split, where they stay.
    """

    splits: Int64s
    groups: pa.Table
    coverage: tuple[ClassCount, ...]
    null_rows: int
    kept_groups: int
    joined_groups: int = 0
    torn_groups: int = 0

    @property
    def missing(self) -> tuple[ClassCount, ...]:
        """The classes that a split lacks."""
        return tuple(count for count in self.coverage if not count.rows)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where whole groups go.

    `split_of_group`: (groups,) the number of each group's split. `kept_groups`: those that an earlier version had assigned.
    `joined_groups`, `torn_groups`: as in a plan.
    """

    split_of_group: Int64s
    kept_groups: int
    joined_groups: int
    torn_groups: int


def plan_splits(
    rows: pa.Table, rule: SplitRule, seed: int, earlier: EarlierSplits | None = None, near: Int64s | None = None
) -> SplitPlan:
    """Decide the split of each row: whole groups, exact shares, every class in every split where its groups allow.

    Args:
        rows: the selected rows, with the columns that the rule names.
        rule: groups, shares, classes, blocks of time and the gap between splits.
        seed: decides between groups that are alike.
        earlier: groups that keep the split they have.
        near: (rows,) the group of near-duplicates of each row, `NO_GROUP` for none: groups that share one go to one split,
            unless `earlier` has them apart.

    Raises:
        RefusedError: there is no such column, or it cannot be grouped or stratified by.
    """
    groups = group_rows(rows, rule.group, rule.block_s)
    classes = classes_of_rows(rows, rule.stratify)
    table = tabulate_groups(groups, classes)
    alike = None if near is None else alike_groups(groups.of_row, near)
    placed = place_groups(table, rule, seed, earlier, alike)
    splits = _apart(rows, placed.split_of_group[groups.of_row], rule)
    coverage = count_coverage(splits, classes, rule)
    named = groups_table(table, placed, rule)
    return SplitPlan(splits, named, coverage, groups.null_rows, placed.kept_groups, placed.joined_groups, placed.torn_groups)


def place_groups(
    table: GroupTable, rule: SplitRule, seed: int, earlier: EarlierSplits | None, alike: tuple[Int64s, Int64s] | None = None
) -> Placement:
    """Decide the split of each group.

    Args:
        table: the groups and what they hold; the answer does not depend on their order.
        rule: the shares.
        seed: decides between groups that are alike.
        earlier: groups that keep the split they have.
        alike: pairs of groups that share near-duplicates.
    """
    fixed = _fixed(table.names, earlier)
    together = _together(len(table.names), alike)
    units = np.array([group_unit(seed, name) for name in table.names.take(pa.array(together.first)).to_pylist()], np.float64)
    rank = np.argsort(np.argsort(units, kind="stable")).astype(np.int64)
    counts = table.counts(together.of_group, rank)
    placed = allocate(counts, [share for _, share in rule.fractions], _fixed_together(fixed, together))
    split_of_group = np.where(fixed != FREE, fixed, placed[together.of_group])
    torn = int((split_of_group != split_of_group[together.first][together.of_group]).sum())
    return Placement(split_of_group, int((fixed != FREE).sum()), len(table.names) - len(together.first), torn)


def groups_table(table: GroupTable, placed: Placement, rule: SplitRule) -> pa.Table:
    """Every group, the name of its split, and its rows."""
    names = pa.array([name for name, _ in rule.fractions], pa.string())
    return pa.table({"group": table.names, "split": names.take(pa.array(placed.split_of_group)), "rows": table.rows})


def alike_groups(of_row: Int64s, near: Int64s) -> tuple[Int64s, Int64s]:
    """Pairs of groups that share a group of near-duplicates.

    Args:
        of_row: (rows,) the group of each row.
        near: (rows,) its group of near-duplicates, `NO_GROUP` for none.
    """
    rows = np.flatnonzero(near != NO_GROUP)
    order = rows[np.argsort(near[rows], kind="stable")]
    alike = near[order[1:]] == near[order[:-1]]
    return of_row[order[1:]][alike], of_row[order[:-1]][alike]


@dataclass(frozen=True, slots=True)
class _Together:
    """Groups that near-duplicates join: `of_group` (groups,) the union of each, `first` (unions,) the first group of each."""

    of_group: Int64s
    first: Int64s


def _together(count: int, alike: tuple[Int64s, Int64s] | None) -> _Together:
    roots = np.arange(count, dtype=np.int64) if alike is None else connected(count, iter([alike]))
    first, of_group = np.unique(roots, return_inverse=True)
    return _Together(of_group.astype(np.int64), first.astype(np.int64))


def _fixed_together(fixed: Int64s, together: _Together) -> Int64s:
    """The split of a union whose groups have one already: that of the first of them."""
    found = np.full(len(together.first), FREE, np.int64)
    has = np.flatnonzero(fixed != FREE)[::-1]
    found[together.of_group[has]] = fixed[has]
    return found


def _fixed(names: pa.Array, earlier: EarlierSplits | None) -> Int64s:
    if earlier is None:
        return np.full(len(names), FREE, np.int64)
    at = pc.index_in(names, value_set=earlier.names)
    found = np.asarray(pc.fill_null(at, -1).to_numpy(zero_copy_only=False), np.int64)
    return np.where(found < 0, FREE, np.concatenate((earlier.splits, [FREE]))[found])


def _apart(rows: pa.Table, splits: Int64s, rule: SplitRule) -> Int64s:
    """Leave out the rows that lie too near to a row of another split: those of the larger split, for it can spare them."""
    apart = splits.copy()
    if rule.gap_s > 0:
        for number in sorted(range(len(rule.fractions)), key=lambda each: -rule.fractions[each][1])[:-1]:
            apart[neighbours_elsewhere(rows, apart, rule.gap_s) & (apart == number)] = LEFT_OUT
    return apart


def count_coverage(splits: Int64s, classes: Classes, rule: SplitRule) -> tuple[ClassCount, ...]:
    """The rows of each class in each split, zeros included."""
    kinds = max(1, len(classes.names))
    of_split = splits[classes.row]
    inside = of_split >= 0
    shape = (len(rule.fractions), kinds)
    table = np.bincount(of_split[inside] * kinds + classes.kind[inside], minlength=shape[0] * shape[1]).reshape(shape)
    return tuple(
        ClassCount(split, name, int(table[number, kind]))
        for kind, name in enumerate(classes.names)
        for number, (split, _) in enumerate(rule.fractions)
    )


def shuffled_rows(rows: pa.Table, splits: Int64s, number: int, seed: int) -> pa.Table:
    """The rows of one split in the order that the seed gives; it is the same wherever and whenever it is computed."""
    members = np.flatnonzero(splits == number)
    order = Permutation(len(members), seed, epoch=-1 - number).at(np.arange(len(members), dtype=np.int64))
    return rows.take(pa.array(members[order]))


def shard_bounds(sizes: Int64s, max_rows: int, max_bytes: int) -> list[tuple[int, int]]:
    """Half-open row spans of at most `max_rows` and about `max_bytes`; at least one span, even for no rows."""
    ends = np.concatenate(([0], np.cumsum(sizes)))
    bounds: list[tuple[int, int]] = []
    low = 0
    while low < len(sizes):
        fits = int(np.searchsorted(ends, ends[low] + max_bytes, side="right")) - 1
        high = min(max(fits, low + 1), low + max_rows, len(sizes))
        bounds.append((low, high))
        low = high
    return bounds or [(0, 0)]
