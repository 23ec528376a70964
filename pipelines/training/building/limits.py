"""Steps that look at more than one row: near-duplicates, caps, samples, gaps between splits, balance.

They run where the build was started, part by part. What they hold is bounded by the number of groups, and for
near-duplicates by the number of pictures (about 50 bytes each); rows pass in windows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.training.assemble import firsts_of_near, near_of
from pipelines.training.building.part_files import GROUP, SortedPart
from pipelines.training.grouping import group_rows, near_in_time, times_us
from pipelines.training.near_duplicates import NO_GROUP
from pipelines.training.spec import NearDuplicateSpec
from pipelines.training.split import LEFT_OUT
from pipelines.training.thin import class_numbers, row_numbers

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]
# Rows of one step in memory: some 50 bytes each.
BUCKET_ROWS = 4_000_000
_NEAR_COLUMNS = ("device", "event_time", "epoch", "seq")


def drop_near_duplicates(parts: Sequence[SortedPart], rule: NearDuplicateSpec, label: str) -> int:
    """Leave out all but the first of each group of near-duplicates and class. Returns how many."""
    rows = _columns(parts, (*_NEAR_COLUMNS, rule.column, *((label,) if label else ())))
    kinds = class_numbers(rows.column(label)) if label else np.zeros(len(rows), np.int64)
    epochs, seqs = (np.asarray(rows.column(name).to_numpy(), np.int64) for name in ("epoch", "seq"))
    kept = firsts_of_near(near_of(rows, rule), kinds, times_us(rows), epochs, seqs)
    low = 0
    for part in parts:
        high = low + part.summary.rows
        part.keep(kept[low:high])
        low = high
    return int((~kept).sum())


def alike_rows(parts: Sequence[SortedPart], rule: NearDuplicateSpec, global_groups: Sequence[Int64s]) -> tuple[Int64s, Int64s]:
    """The group, and the group of near-duplicates, of each row that is like another one.

    Args:
        parts: of the set.
        rule: what is alike.
        global_groups: for each part, the number in the whole of each of its groups.
    """
    near = near_of(_columns(parts, (*_NEAR_COLUMNS[:2], rule.column)), rule)
    of_row = [places[part.numbers()[GROUP]] for part, places in zip(parts, global_groups, strict=True)]
    kept = np.concatenate([part.kept() for part in parts]) if parts else np.zeros(0, bool)
    chosen = np.flatnonzero((near != NO_GROUP) & kept)
    return np.concatenate(of_row)[chosen], near[chosen]


@dataclass(frozen=True, slots=True)
class Lowest:
    """Of each key the rows with the lowest numbers, as many as its limit. `purpose`: what the numbers are for.

    `keys`: (rows of a part,) the key of each row, -1 for rows that stay whatever their number. `limits`: (keys,).
    """

    purpose: str
    seed: int
    keys: Callable[[SortedPart], Int64s]
    limits: Int64s


def keep_lowest(parts: Sequence[SortedPart], rule: Lowest) -> int:
    """Apply a limit. Returns how many rows it left out.

    Rows are taken in the order of their numbers, a range of numbers at a time: only a count for each key is held.
    """
    total = sum(part.summary.rows for part in parts)
    buckets = max(1, -(-total // BUCKET_ROWS))
    taken = np.zeros(len(rule.limits), np.int64)
    gone = 0
    with TemporaryDirectory(prefix="limit-", dir=parts[0].folder if parts else None) as scratch:
        spill = Spill(Path(scratch), buckets)
        for place, part in enumerate(parts):
            numbers = row_numbers(part.rows(), rule.seed, rule.purpose)
            keys = np.where(part.kept(), rule.keys(part), -1)
            at = np.flatnonzero(keys >= 0)
            # The top bits of a number say which bucket: all numbers of one are below those of the next.
            bucket = ((numbers[at] >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)
            spill.add(bucket, np.vstack([(numbers[at] >> np.uint64(1)).astype(np.int64), keys[at], np.full(len(at), place), at]))
        left: dict[int, list[Int64s]] = {}
        for number, keys, place, at in spill.buckets():
            order = np.lexsort((number, keys))
            rank = np.arange(len(order)) - np.searchsorted(keys[order], np.arange(len(rule.limits)))[keys[order]]
            beyond = order[taken[keys[order]] + rank >= rule.limits[keys[order]]]
            taken += np.bincount(keys, minlength=len(taken))
            gone += len(beyond)
            for one in np.unique(place[beyond]).tolist():
                left.setdefault(one, []).append(at[beyond][place[beyond] == one])
    for one, rows in left.items():
        kept = parts[one].kept()
        kept[np.concatenate(rows)] = False
        parts[one].keep(kept)
    return gone


def keys_of(parts: Sequence[SortedPart], columns: tuple[str, ...]) -> tuple[Callable[[SortedPart], Int64s], int]:
    """Number equal values in some columns over all parts: how to number a part's rows, and how many there are."""
    names = pa.array([], pa.string())
    for part in parts:
        names = pc.unique(pa.chunked_array([names, group_rows(part.rows(), columns).names], pa.string()))

    def keys(part: SortedPart) -> Int64s:
        groups = group_rows(part.rows(), columns)
        place = np.asarray(pc.index_in(groups.names, value_set=names).to_numpy(zero_copy_only=False), np.int64)
        return place[groups.of_row] if len(place) else groups.of_row

    return keys, len(names)


@dataclass(frozen=True, slots=True)
class NearRows:
    """Rows with a row of another split close in time: the place of the part, and the row in it."""

    part: Int64s
    row: Int64s
    split: Int64s


def near_other_splits(parts: Sequence[SortedPart], within_s: float, *, losing: Sequence[int] = ()) -> Iterator[NearRows]:
    """Find rows that have a neighbour of another split, of the same device.

    Args:
        parts: with splits assigned.
        within_s: how near a neighbour is.
        losing: splits that lose such rows, one after the other, so that the next see them gone; none: rows are only found.

    Yields:
        Some rows; with `losing` those that are to be left out.
    """
    timed = [part for part in parts if {"device", "event_time"} <= set(part.rows().schema.names)]
    total = sum(part.summary.rows for part in timed)
    names = pa.array([], pa.string())
    for part in timed:
        names = pc.unique(pa.chunked_array([names, part.rows().column("device").combine_chunks()], pa.string()))
    if not total or within_s <= 0:
        return
    with TemporaryDirectory(prefix="near-", dir=parts[0].folder) as scratch:
        spill = Spill(Path(scratch), max(1, -(-total // BUCKET_ROWS)))
        for place, part in enumerate(parts):
            rows = part.rows()
            device = np.asarray(pc.index_in(rows.column("device"), value_set=names).to_numpy(), np.int64)
            splits = np.where(part.kept(), part.splits()[part.numbers()[GROUP]], LEFT_OUT)
            at = np.flatnonzero(splits >= 0)
            columns = [device[at], times_us(rows)[at], splits[at], np.full(len(at), place), at]
            # All rows of a device are in one bucket.
            spill.add(device[at] % spill.count, np.vstack(columns))
        for device, time_us, splits, place, at in spill.buckets():
            found = near_in_time(device, time_us, splits, within_s) if not losing else np.zeros(len(at), bool)
            for number in losing:
                found |= near_in_time(device, time_us, np.where(found, LEFT_OUT, splits), within_s) & (splits == number)
            yield NearRows(place[found], at[found], splits[found])


class Spill:
    """Columns of whole numbers in files, one for each bucket, so that a bucket at a time is in memory."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._width = 0
        self.count = count

    def add(self, bucket: Int64s, columns: Int64s) -> None:
        """Add rows; `columns`: (columns, rows)."""
        self._width = len(columns)
        order = np.argsort(bucket, kind="stable")
        ends = np.searchsorted(bucket[order], np.arange(self.count + 1))
        for number in range(self.count):
            chosen = order[ends[number] : ends[number + 1]]
            if len(chosen):
                with (self._folder / str(number)).open("ab") as file:
                    file.write(np.ascontiguousarray(columns[:, chosen].T).tobytes())

    def buckets(self, *, again: bool = False) -> Iterator[Int64s]:
        """(columns, rows) of each bucket that has any, in order; rows as they were added. `again`: they are read once more."""
        for number in range(self.count):
            path = self._folder / str(number)
            if path.exists():
                yield np.ascontiguousarray(np.fromfile(path, np.int64).reshape(-1, self._width).T)
                if not again:
                    path.unlink()


def _columns(parts: Sequence[SortedPart], names: tuple[str, ...]) -> pa.Table:
    return pa.concat_tables([part.rows().select([name for name in names if name in part.rows().schema.names]) for part in parts])
