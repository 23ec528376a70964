"""Give groups to splits: exact shares, and every class in every split. Pure decisions over counts.

The method is iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-label Data",
ECML PKDD 2011, section 3), over groups instead of rows: the rarest class is placed first, then the largest group; moves
and swaps that lower the cost follow. The same counts and ranks give the same answer on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.errors import RefusedError

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
FREE = -1
# Passes of improvement, and exchange partners tried for each group. Where groups are many, moves alone come near enough.
_PASSES = 4
_SWAP_GROUPS = 300
_SWAP_PARTNERS = 4


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """What each group holds, as a sparse matrix of group by class (CSR).

    `rows`: (groups,) rows of each group. `first`: (groups + 1,) where a group's entries begin. `class_of`, `amount`: the
    class of each entry and the group's rows of it. `rank`: (groups,) decides between groups that are alike.
    """

    rows: Int64s
    first: Int64s
    class_of: Int64s
    amount: Int64s
    rank: Int64s
    classes: int

    def __post_init__(self) -> None:
        if len(self.first) != len(self.rows) + 1 or len(self.rank) != len(self.rows) or len(self.class_of) != len(self.amount):
            raise RefusedError("group counts: rows, entries and ranks do not belong together")

    def entries(self, group: int) -> slice:
        """The group's part of `class_of` and `amount`."""
        return slice(int(self.first[group]), int(self.first[group + 1]))


class _Ledger:
    """Rows and class rows of each split so far, and what it would cost to add a group."""

    def __init__(self, counts: GroupCounts, shares: Sequence[float]) -> None:
        self.counts = counts
        total = float(counts.rows.sum()) or 1.0
        in_all = np.bincount(counts.class_of, counts.amount, counts.classes).astype(np.float64)
        fractions = np.asarray(shares, np.float64)
        self.rows: Float64s = np.zeros(len(fractions))
        self.of_class: Float64s = np.zeros((len(fractions), counts.classes))
        self._rows_aim, self._class_aim = fractions * total, np.outer(fractions, in_all)
        self._rows_weight = 1.0 / total**2
        # Each class counts alike, however rare; all classes together count as much as the rows.
        self._class_weight = 1.0 / (np.maximum(in_all, 1.0) ** 2 * max(1, counts.classes))

    def add(self, group: int, split: int, sign: int = 1) -> None:
        part = self.counts.entries(group)
        self.rows[split] += sign * self.counts.rows[group]
        self.of_class[split, self.counts.class_of[part]] += sign * self.counts.amount[part]

    def cost_of(self, group: int) -> Float64s:
        """How much the squared distance from the aims grows if the group joins each split; (splits,)."""
        part = self.counts.entries(group)
        kinds, amounts, rows = (
            self.counts.class_of[part],
            self.counts.amount[part].astype(np.float64),
            float(self.counts.rows[group]),
        )
        of_rows = self._rows_weight * (2.0 * (self.rows - self._rows_aim) * rows + rows**2)
        apart = self.of_class[:, kinds] - self._class_aim[:, kinds]
        grown: Float64s = of_rows + ((2.0 * apart * amounts + amounts**2) * self._class_weight[kinds]).sum(axis=1)
        return grown

    def gains(self, split_of: Int64s) -> Float64s:
        """By how much the cost would fall if each group alone moved to the split that suits it best; (groups,)."""
        counts, owner = self.counts, np.repeat(np.arange(len(self.counts.rows)), np.diff(self.counts.first))
        rows, amounts = counts.rows.astype(np.float64), counts.amount.astype(np.float64)
        apart = (self.of_class - self._class_aim)[:, counts.class_of]
        weight = self._class_weight[counts.class_of]
        cost = np.stack([
            self._rows_weight * (2.0 * (self.rows[split] - self._rows_aim[split]) * rows + rows**2)
            + np.bincount(owner, (2.0 * apart[split] * amounts + amounts**2) * weight, len(rows))
            for split in range(len(self.rows))
        ])  # fmt: skip
        # Where a group stands it is counted already: it was added to itself twice.
        twice = 2.0 * (self._rows_weight * rows**2 + np.bincount(owner, amounts**2 * weight, len(rows)))
        here = cost[split_of, np.arange(len(rows))] - twice
        return np.asarray(here - cost.min(axis=0), np.float64)

    def covers(self, group: int) -> Int64s:
        """How many classes each split lacks and would get from the group; (splits,)."""
        kinds = self.counts.class_of[self.counts.entries(group)]
        return np.asarray((self.of_class[:, kinds] == 0).sum(axis=1), np.int64)


def allocate(counts: GroupCounts, shares: Sequence[float], fixed: Int64s | None = None) -> Int64s:
    """Give each group one split.

    Args:
        counts: what the groups hold.
        shares: of the rows that each split should get; they sum to 1.
        fixed: (groups,) the split of a group that must not move, else `FREE`.

    Returns:
        (groups,) the number of each group's split.
    """
    split_of = np.full(len(counts.rows), FREE, np.int64) if fixed is None else fixed.astype(np.int64)
    ledger = _Ledger(counts, shares)
    for group in np.flatnonzero(split_of != FREE).tolist():
        ledger.add(group, int(split_of[group]))
    free = np.flatnonzero(split_of == FREE)
    _cover(ledger, split_of, shares)
    order = free[np.lexsort((counts.rank[free], -counts.rows[free]))]
    for group in order.tolist():
        if split_of[group] == FREE:
            _put(ledger, split_of, group, _cheapest(ledger.covers(group), ledger.cost_of(group)))
    _improve(ledger, split_of, order)
    return split_of


def _put(ledger: _Ledger, split_of: Int64s, group: int, split: int) -> None:
    split_of[group] = split
    ledger.add(group, split)


def _cheapest(covers: Int64s, cost: Float64s) -> int:
    """The split that gets most missing classes; of those the cheapest; of those the first."""
    return int(np.lexsort((np.arange(len(cost)), cost.round(15), -covers))[0])


def _cover(ledger: _Ledger, split_of: Int64s, shares: Sequence[float]) -> None:
    """Give every split a group of every class, the rarest class first, the smallest split first."""
    counts = ledger.counts
    owner = np.repeat(np.arange(len(counts.rows), dtype=np.int64), np.diff(counts.first))
    by_class = np.argsort(counts.class_of, kind="stable")
    bounds = np.searchsorted(counts.class_of[by_class], np.arange(counts.classes + 1))
    smallest_first = np.argsort(np.asarray(shares), kind="stable").tolist()
    for kind in np.argsort(np.diff(bounds), kind="stable").tolist():
        holders = owner[by_class[bounds[kind] : bounds[kind + 1]]]
        for split in smallest_first:
            left = holders[split_of[holders] == FREE]
            if not len(left):
                break
            if ledger.of_class[split, kind] == 0:
                _put(ledger, split_of, _best_of(ledger, left, split), split)


def _best_of(ledger: _Ledger, groups: Int64s, split: int) -> int:
    """Of some groups the one that costs this split least next to the others; small ones first, where many are alike."""
    counts = ledger.counts
    tried = groups[np.lexsort((counts.rank[groups], counts.rows[groups]))][:_SWAP_PARTNERS].tolist()
    costs = [ledger.cost_of(group) for group in tried]
    return int(tried[int(np.argmin([cost[split] - cost.min() for cost in costs]))])


def _improve(ledger: _Ledger, split_of: Int64s, order: Int64s) -> None:
    """Move single groups, then exchange pairs, while that lowers the cost and takes no class from a split."""
    for _ in range(_PASSES):
        gains = ledger.gains(split_of)[order]
        worth = order[np.argsort(-gains, kind="stable")][: int((gains > 1e-12).sum())]
        moved = sum(_move(ledger, split_of, group) for group in worth.tolist())
        if len(order) <= _SWAP_GROUPS:
            moved += sum(_exchange(ledger, split_of, group, order) for group in order.tolist())
        if not moved:
            return


def _move(ledger: _Ledger, split_of: Int64s, group: int) -> bool:
    here = int(split_of[group])
    ledger.add(group, here, -1)
    covers, cost = ledger.covers(group), ledger.cost_of(group)
    best = _cheapest(covers, cost)
    better = covers[best] > covers[here] or (covers[best] == covers[here] and cost[best] < cost[here] - 1e-12)
    _put(ledger, split_of, group, best if better else here)
    return bool(better)


def _exchange(ledger: _Ledger, split_of: Int64s, group: int, order: Int64s) -> bool:
    """Exchange the group with one of another split, if the two together then cost less."""
    here = int(split_of[group])
    others = order[split_of[order] != here]
    nearest = np.argsort(np.abs(ledger.counts.rows[others] - ledger.counts.rows[group]), kind="stable")[:_SWAP_PARTNERS]
    for other in others[nearest].tolist():
        there = int(split_of[other])
        stay, swap = _pair_cost(ledger, group, here, other, there)
        if swap < stay:
            split_of[group], split_of[other] = there, here
            ledger.add(group, there)
            ledger.add(other, here)
            return True
        ledger.add(group, here)
        ledger.add(other, there)
    return False


def _pair_cost(ledger: _Ledger, group: int, here: int, other: int, there: int) -> tuple[tuple[int, float], tuple[int, float]]:
    """What two groups cost as they stand and exchanged, as (classes lacking, distance); both are out of the ledger after."""
    ledger.add(group, here, -1)
    ledger.add(other, there, -1)
    costs = []
    for first, second in ((here, there), (there, here)):
        covered, cost = int(ledger.covers(group)[first]), float(ledger.cost_of(group)[first])
        ledger.add(group, first)
        covered += int(ledger.covers(other)[second])
        cost += float(ledger.cost_of(other)[second])
        ledger.add(group, first, -1)
        costs.append((-covered, round(cost, 12)))
    return costs[0], costs[1]
