"""Where shards end: one pass over the parts in the order of the set, a window of rows at a time.

Every part is sorted alike, so a shard is a slice of each part. A plan holds, for each split, where each shard ends in each part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.training.building.part_files import GROUP, LENGTH, SortedPart
from pipelines.training.shards import ShardLimits

Int64s = npt.NDArray[np.int64]
WINDOW_ROWS = 2_000_000
_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class SplitShards:
    """The shards of a split: `ends` (shards + 1, parts) where each ends in each part; `rows`: (shards,)."""

    ends: Int64s
    rows: tuple[int, ...]

    def save(self, work: Path, number: int) -> None:
        """Write it where workers read it."""
        np.save(_path(work, number), self.ends)


def shard_slices(work: Path, split: int, shard: int) -> tuple[Int64s, Int64s]:
    """Where a shard begins and ends in each part."""
    ends = np.load(_path(work, split), mmap_mode="r")
    return np.array(ends[shard]), np.array(ends[shard + 1])


def plan_shards(parts: Sequence[SortedPart], splits: int, limits: ShardLimits, *, has_payload: bool) -> list[SplitShards]:
    """Cut each split into shards, as `shard_bounds` would cut all its rows at once.

    Args:
        parts: with splits assigned.
        splits: how many there are.
        limits: how large a shard may become.
        has_payload: whether bytes count; a set without payload is cut by rows alone.
    """
    cutters = [_Cutter(len(parts), limits, has_payload=has_payload) for _ in range(splits)]
    for window in _windows(parts):
        for number, cutter in enumerate(cutters):
            cutter.take(window, np.flatnonzero(window.splits == number))
    ends = np.array([part.summary.rows for part in parts], np.int64)
    return [cutter.finish(ends) for cutter in cutters]


@dataclass(frozen=True, slots=True)
class _Window:
    """Rows of all parts that follow one another, in order: the part, split and payload bytes of each.

    `low`: (parts,) where the window begins in each. A row that a limit left out has split -1.
    """

    low: Int64s
    part: Int64s
    splits: Int64s
    lengths: Int64s


class _Cutter:
    """Cuts one split, window after window."""

    def __init__(self, parts: int, limits: ShardLimits, *, has_payload: bool) -> None:
        self._limits = limits
        self._has_payload = has_payload
        self._ends = [np.zeros(parts, np.int64)]
        self._rows: list[int] = []
        self._held_rows = self._held_bytes = 0

    def take(self, window: _Window, at: Int64s) -> None:
        """Take the rows of a window that are of this split; `at`: their places in it, ascending."""
        ends = np.concatenate(([0], np.cumsum(window.lengths[at]))) if self._has_payload else np.zeros(len(at) + 1, np.int64)
        low = 0
        while low < len(at):
            room = ends[low] + self._limits.max_bytes - self._held_bytes
            fits = int(np.searchsorted(ends, room, side="right")) - 1
            high = min(max(fits, low + (not self._held_rows)), low + self._limits.max_rows - self._held_rows, len(at))
            self._held_rows += high - low
            self._held_bytes += int(ends[high] - ends[low])
            if high < len(at):
                self._end(window.low + np.bincount(window.part[: at[high]], minlength=len(window.low)))
            low = high

    def finish(self, ends: Int64s) -> SplitShards:
        """End the last shard; a split without rows has one of none."""
        if self._held_rows or not self._rows:
            self._end(ends)
        return SplitShards(np.stack(self._ends), tuple(self._rows))

    def _end(self, place: Int64s) -> None:
        self._ends.append(place.astype(np.int64))
        self._rows.append(self._held_rows)
        self._held_rows = self._held_bytes = 0


def _windows(parts: Sequence[SortedPart]) -> Iterator[_Window]:
    numbers = [part.numbers() for part in parts]
    splits = [part.splits() for part in parts]
    devices = _places_of_devices(parts)
    low = np.zeros(len(parts), np.int64)
    ends = np.array([each.shape[1] for each in numbers], np.int64)
    for bound in [*_bounds(numbers, devices, int(ends.sum())), None]:
        high = ends if bound is None else np.array(
            [_first_at(each, places, bound) for each, places in zip(numbers, devices, strict=True)], np.int64
        )  # fmt: skip
        if (high > low).any():
            yield _window(parts, numbers, splits, devices, low, high)
        low = high


def _window(
    parts: Sequence[SortedPart],
    numbers: list[Int64s],
    splits: list[Int64s],
    devices: list[Int64s | None],
    low: Int64s,
    high: Int64s,
) -> _Window:
    keys: list[Int64s] = []
    columns: tuple[list[Int64s], list[Int64s], list[Int64s]] = ([], [], [])
    for number, part in enumerate(parts):
        piece = np.array(numbers[number][:, low[number] : high[number]])
        if not piece.shape[1]:
            continue
        of_row = splits[number][piece[GROUP]]
        if part.is_limited:
            of_row = np.where(part.kept()[low[number] : high[number]], of_row, -1)
        keys.append(_comparable(piece[:GROUP], devices[number]))
        for column, values in zip(columns, (np.full(len(of_row), number), of_row, piece[LENGTH]), strict=True):
            column.append(values)
    order = np.lexsort(np.hstack(keys)[::-1])
    part_of, of_row, lengths = (np.concatenate(column)[order] for column in columns)
    return _Window(low.copy(), part_of, of_row, lengths)


def _places_of_devices(parts: Sequence[SortedPart]) -> list[Int64s | None]:
    """Where the devices of each part, and after them its rows without one, stand among those of all parts."""
    names = sorted({device for part in parts for device in part.summary.devices})
    place = {name: number for number, name in enumerate(names)}
    is_timed = any(part.summary.devices for part in parts)
    return [
        np.array([*(place[device] for device in part.summary.devices), len(names)], np.int64) if is_timed else None
        for part in parts
    ]


def _comparable(order: Int64s, places: Int64s | None) -> Int64s:
    return order if places is None else np.vstack([places[order[0]], order[1:]])


def _bounds(numbers: list[Int64s], devices: list[Int64s | None], rows: int) -> list[tuple[int, int]]:
    """Keys, of the first two columns at most, that cut all rows into windows of about the same size."""
    count = -(-rows // WINDOW_ROWS)
    if count < 2:
        return []
    step = max(1, WINDOW_ROWS // (_SAMPLES * max(1, len(numbers))))
    picked = [_comparable(np.array(each[:GROUP, ::step]), places) for each, places in zip(numbers, devices, strict=True)]
    keys = np.hstack([np.vstack([each[0], each[1] if len(each) > 1 else np.zeros_like(each[0])]) for each in picked])
    keys = keys[:, np.lexsort(keys[::-1])]
    chosen = keys[:, np.arange(1, count) * keys.shape[1] // count]
    return sorted({(int(first), int(second)) for first, second in chosen.T})


def _first_at(numbers: Int64s, places: Int64s | None, bound: tuple[int, int]) -> int:
    """Where a part's rows at or after a key begin."""
    first = numbers[0]
    if places is None:
        return int(np.searchsorted(first, bound[0], side="left"))
    local = int(np.searchsorted(places, bound[0], side="left"))
    low = int(np.searchsorted(first, local, side="left"))
    if local == len(places) or places[local] != bound[0]:
        return low
    high = int(np.searchsorted(first, local, side="right"))
    return low + int(np.searchsorted(numbers[1, low:high], bound[1], side="left"))


def _path(work: Path, number: int) -> Path:
    return work / f"split-{number:03d}.ends.npy"
