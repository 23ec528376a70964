"""Cut telemetry and logs into windows: a grid of time for each device, and values and holes on it. Pure functions over columns.

Rows are laid on one line of time, stretch after stretch, so that all devices of a block are searched at once. A stretch is of
one device and epoch, and ends where nothing came for longer than a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RefusedError
from pipelines.training.array_rules import Resample, WindowRule
from pipelines.training.manifest import LeftOut
from pipelines.training.window_facts import tag_lists, window_labels

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
_US = 1_000_000
# What lies beyond is a hole: it would be infinite as a channel. So is what is not a number.
_LARGEST = float(np.finfo(np.float32).max)
_TIME = "event_time"
_SERIES = ("device", "epoch")
_FACTS = ("stream", "device", "epoch", "seq")
_TAGS = ("tags", "tag_rules")
MAX_WINDOWS = 1_000_000_000
_RUN_ROWS = 16


@dataclass(frozen=True, slots=True)
class Stretches:
    """The stretches of the rows, and the part of the grid that the windows of each need.

    `line_us`: (rows,) where each row lies on the line of time. `base_us`: (stretches,) what is added to a time of a stretch to
    lay it there. `first_step`: of the grid since 1970. `windows`: of each. `grid_first`: (stretches + 1,) in the grid's arrays.
    """

    line_us: Int64s
    base_us: Int64s
    first_step: Int64s
    windows: Int64s
    grid_first: Int64s

    @property
    def grid_steps(self) -> int:
        """Steps of the grid in all."""
        return int(self.grid_first[-1])


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The windows of some rows: `rows` sorted by device, epoch and time; `keys` a table with a row for each window.

    `first`: (windows,) where the window begins in the arrays of the grid.
    """

    rule: WindowRule
    rows: pa.Table
    stretches: Stretches
    keys: pa.Table
    first: Int64s
    left_out: tuple[LeftOut, ...]


def plan_windows(rows: pa.Table, rule: WindowRule, carried: tuple[str, ...] = ()) -> WindowPlan:
    """Decide which windows the rows give, and describe each by a row of keys, tags and label.

    Args:
        rows: selected rows with device, epoch, seq and event time.
        rule: how windows are cut.
        carried: columns in which a window has one value: no window crosses a change of it.

    Raises:
        RefusedError: a column is missing or holds no numbers, or there are too many windows.
    """
    _check_columns(rows, rule, carried)
    timed, time_us, is_change = _in_order(rows.select(_needed(rows.schema, rule, carried)), carried)
    stretches = _stretches(time_us, is_change, rule)
    total = int(stretches.windows.sum())
    if total > MAX_WINDOWS:
        raise RefusedError(f"{total:,} windows are more than {MAX_WINDOWS:,}; choose a longer stride, or fewer rows (--where)")
    first, start_us, line_us = _starts(stretches, rule)
    low, high = (np.searchsorted(stretches.line_us, line_us + add) for add in (0, _window_us(rule)))
    kept = high > low
    first, start_us, low, high = first[kept], start_us[kept], low[kept].astype(np.int64), high[kept].astype(np.int64)
    untimed, idle = len(rows) - len(timed), int(len(kept) - kept.sum())
    short = len(timed) - _covered(low, high, len(timed))
    left_out = [
        LeftOut("no event time", untimed),
        LeftOut("in no whole window", short),
        LeftOut("windows without any row", idle),
    ]
    keys = _keys(timed, rule, carried, start_us, low, high)
    return WindowPlan(rule, timed, stretches, keys, first, tuple(part for part in left_out if part.rows))


def resample_blocks(plan: WindowPlan, block_steps: int) -> Iterator[tuple[slice, npt.NDArray[np.float32], Bools]]:
    """Values and holes of the grid, a block of steps at a time: (steps, channels) each; True where there is a value."""
    signals = _signals(plan.rows, plan.rule)
    lines = [plan.stretches.line_us if signal.rows is None else plan.stretches.line_us[signal.rows] for signal in signals]
    for low in range(0, plan.stretches.grid_steps, block_steps):
        high = min(low + block_steps, plan.stretches.grid_steps)
        at, following = _grid_lines(plan, low, high)
        blocks = [resample(line, signal.numbers, at, following, plan.rule) for line, signal in zip(lines, signals, strict=True)]
        if len(signals) == 1:
            values, mask = _one_block(*blocks[0])
        else:
            values = np.empty((high - low, len(plan.rule.columns)), np.float32)
            mask = np.empty(values.shape, bool)
            for signal, block in zip(signals, blocks, strict=True):
                values[:, signal.channels], mask[:, signal.channels] = _one_block(*block)
        yield slice(low, high), values, mask


def _one_block(found: Floats, there: Bools) -> tuple[npt.NDArray[np.float32], Bools]:
    values = found.astype(np.float32, copy=False)
    if not there.all():
        values[~there] = np.nan
    return values, np.broadcast_to(there[:, None], values.shape)


def resample(line: Int64s, numbers: Floats, at: Int64s, following: Int64s, rule: WindowRule) -> tuple[Floats, Bools]:
    """The values at each step of the grid, and whether there are any.

    Args:
        line: (rows,) times of the rows, ascending.
        numbers: (rows, channels) their values; of 32 bits where they are only copied.
        at: (steps,) times of the steps, ascending.
        following: (steps,) time at which the next step begins.
        rule: which rows count, and how far away they may lie.

    Returns:
        (steps, channels) values, and (steps,) whether they count.
    """
    hole_us = round(rule.hole_s * _US)
    if not len(line):
        return np.zeros((len(at), numbers.shape[1])), np.zeros(len(at), bool)
    if rule.resample is Resample.MEAN:
        return _mean(numbers, np.searchsorted(line, at), np.searchsorted(line, following))
    before = np.searchsorted(line, at, side="right") - 1
    previous, after = np.maximum(before, 0), np.minimum(before + 1, len(line) - 1)
    back = np.where(before >= 0, at - line[previous], np.iinfo(np.int64).max)
    if rule.resample is Resample.PREVIOUS:
        return numbers[previous], back <= hole_us
    ahead = np.where(before + 1 < len(line), line[after] - at, np.iinfo(np.int64).max)
    if rule.resample is Resample.NEAREST:
        return numbers[np.where(back <= ahead, previous, after)], np.minimum(back, ahead) <= hole_us
    is_between = (before >= 0) & (before + 1 < len(line))
    span = np.where(is_between, line[after] - line[previous], hole_us + 1)
    share = np.where(is_between, at - line[previous], 0) / np.maximum(span, 1)
    values = numbers[previous]
    values += np.where(back == 0, 0.0, share)[:, None] * (numbers[after] - values)
    return values, (back == 0) | (span <= hole_us)


def gather(grid: npt.NDArray[np.generic], first: Int64s, steps: int) -> npt.NDArray[np.generic]:
    """Windows of an array of the grid, (windows, steps, channels); each is copied whole, as its steps lie together."""
    channels = grid.shape[1]
    flat = grid.reshape(-1)
    every = np.lib.stride_tricks.as_strided(
        flat, (max(0, len(grid) - steps + 1), steps * channels), (channels * grid.itemsize, grid.itemsize), writeable=False
    )
    return every[first].reshape(len(first), steps, channels)


def _mean(numbers: Floats, low: npt.NDArray[np.intp], high: npt.NDArray[np.intp]) -> tuple[Float64s, Bools]:
    there = high > low
    values = np.zeros((len(low), numbers.shape[1]))
    if there.any():
        # Sums of parts, not differences of running sums: those lose the small values of long series.
        edges = np.stack([low[there], high[there]], axis=1).reshape(-1)
        padded = np.concatenate([numbers, np.zeros((1, numbers.shape[1]))])
        values[there] = np.add.reduceat(padded, edges, axis=0)[::2] / (high - low)[there][:, None]
    return values, there


def _stretches(time_us: Int64s, is_change: Bools, rule: WindowRule) -> Stretches:
    longest = _window_us(rule)
    is_start = is_change.copy()
    is_start[1:] |= np.diff(time_us) > longest
    starts = np.flatnonzero(is_start)
    ends = np.append(starts[1:], len(time_us))[: len(starts)]
    first_us, last_us = time_us[starts], time_us[ends - 1]
    stride = rule.stride_steps
    first_step = -(-_step_at_or_after(first_us, rule) // stride) * stride
    last_step = _step_at_or_after(last_us + 1, rule) - 1
    windows = np.maximum(0, (last_step - first_step - rule.steps + 1) // stride + 1)
    grid = np.where(windows > 0, (windows - 1) * stride + rule.steps, 0)
    # So far apart on the line, no row is near a step of another stretch.
    apart = longest + round(rule.hole_s * _US) + 2 * _US
    offsets = np.concatenate(([0], np.cumsum(last_us - first_us + apart)))[:-1].astype(np.int64)
    base_us = offsets - first_us
    line_us = time_us + np.repeat(base_us, ends - starts)
    return Stretches(line_us, base_us, first_step, windows, np.concatenate(([0], np.cumsum(grid))).astype(np.int64))


def _starts(stretches: Stretches, rule: WindowRule) -> tuple[Int64s, Int64s, Int64s]:
    """Of each window: where it begins in the grid, since 1970 in us, and on the line of time."""
    of = np.repeat(np.arange(len(stretches.windows)), stretches.windows)
    number = np.arange(len(of), dtype=np.int64) - np.repeat(np.cumsum(stretches.windows) - stretches.windows, stretches.windows)
    offset = number * rule.stride_steps
    start_us = _step_us(stretches.first_step[of] + offset, rule)
    return stretches.grid_first[of] + offset, start_us, start_us + stretches.base_us[of]


def _grid_lines(plan: WindowPlan, low: int, high: int) -> tuple[Int64s, Int64s]:
    """Where steps low..high of the grid lie on the line of time, and where the step after each does."""
    edges = plan.stretches.grid_first
    # The stretches that have a part of this block, and how many of its steps each has.
    first, last = (int(np.searchsorted(edges, step, side="right")) - 1 for step in (low, high - 1))
    inside = np.clip(edges[first : last + 2], low, high)
    counts = inside[1:] - inside[:-1]
    shift = plan.stretches.first_step[first : last + 1] - edges[first : last + 1]
    step = np.arange(low, high, dtype=np.int64) + np.repeat(shift, counts)
    base_us = np.repeat(plan.stretches.base_us[first : last + 1], counts)
    at = _step_us(step, plan.rule)
    following = at + period_us if (period_us := _period_us(plan.rule)) else _step_us(step + 1, plan.rule)
    return at + base_us, following + base_us


def _keys(rows: pa.Table, rule: WindowRule, carried: tuple[str, ...], start_us: Int64s, low: Int64s, high: Int64s) -> pa.Table:
    label = rule.label
    facts = [name for name in dict.fromkeys((*_FACTS, *carried)) if name in rows.schema.names and name not in {label, _TIME}]
    keys = rows.select(facts).take(pa.array(low))
    at = next((number for number, name in enumerate(facts) if name == "seq"), len(facts) - 1) + 1
    keys = keys.add_column(at, _TIME, pa.array(start_us).cast(pa.timestamp("us", "UTC")))
    keys = keys.add_column(at + 1, "window_rows", pa.array(high - low))
    if label:
        keys = keys.append_column(label, window_labels(rows.column(label), low, high, rule.label_rule))
    for name in _TAGS:
        if name in rows.schema.names:
            keys = keys.append_column(name, tag_lists(rows.column(name), low, high))
    return keys


@dataclass(frozen=True, slots=True)
class _Signal:
    """Channels that have values in the same rows: their numbers, those rows (None: all), and (rows, channels) the values."""

    channels: list[int]
    rows: npt.NDArray[np.intp] | None
    numbers: Floats


def _signals(rows: pa.Table, rule: WindowRule) -> list[_Signal]:
    """The channels' values, those of the same rows together: the rows near each step are then sought once."""
    # Values that are copied are 32 bits wide from the start; those that are computed with, only at the end.
    kind = np.float32 if rule.resample in {Resample.PREVIOUS, Resample.NEAREST} else np.float64
    together: list[tuple[npt.NDArray[np.intp] | None, list[int], list[Float64s]]] = []
    for channel, name in enumerate(rule.columns):
        there, numbers = _signal(rows, rule, name)
        for others, channels, found in together:
            if _are_same(others, there):
                channels.append(channel)
                found.append(numbers)
                break
        else:
            together.append((there, [channel], [numbers]))
    return [_Signal(channels, there, _matrix(found, kind)) for there, channels, found in together]


def _are_same(one: npt.NDArray[np.intp] | None, other: npt.NDArray[np.intp] | None) -> bool:
    return one is other if one is None or other is None else bool(np.array_equal(one, other))


def _matrix(columns: list[Float64s], kind: type[np.floating[Any]]) -> Floats:
    whole = np.empty((len(columns[0]), len(columns)), kind)
    for number, column in enumerate(columns):
        whole[:, number] = column
    return whole


def _signal(rows: pa.Table, rule: WindowRule, name: str) -> tuple[npt.NDArray[np.intp] | None, Float64s]:
    """Which rows have a value of a channel (None: all), and the values."""
    named = None
    if rule.signal_column:
        column = rows.column(rule.value_column)
        is_named = pc.fill_null(pc.equal(rows.column(rule.signal_column), pa.scalar(name)), fill_value=False)
        named = np.asarray(is_named.to_numpy(), bool)
    else:
        column = rows.column(name)
    if pa.types.is_boolean(column.type):
        column = pc.cast(column, pa.int8())
    # A null becomes a value that is not finite.
    numbers = np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), np.float64)
    there = np.abs(numbers) <= _LARGEST
    there = there if named is None else there & named
    if there.all():
        return None, numbers
    return np.flatnonzero(there), numbers[there]


def _check_columns(rows: pa.Table, rule: WindowRule, carried: tuple[str, ...]) -> None:
    channels = (rule.value_column,) if rule.signal_column else rule.columns
    needed = (*_SERIES, "seq", _TIME, *channels, *carried, *filter(None, (rule.signal_column, rule.label)))
    missing = [name for name in dict.fromkeys(needed) if name not in rows.schema.names]
    if missing:
        raise RefusedError(f"windows: no column {', '.join(missing)}; there are {', '.join(rows.schema.names)}")
    for name in channels:
        kind = rows.schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise RefusedError(f"windows: column {name} holds {kind}; channels are numbers or booleans")
    for name in carried:
        if pa.types.is_nested(rows.schema.field(name).type):
            raise RefusedError(f"windows: column {name} holds {rows.schema.field(name).type}; name a column of plain values")


def window_columns(schema: pa.Schema, rule: WindowRule, carried: tuple[str, ...]) -> list[str]:
    """The columns that windows are made of.

    Raises:
        RefusedError: a column is missing or holds no numbers.
    """
    _check_columns(schema.empty_table(), rule, carried)
    return _needed(schema, rule, carried)


def _needed(schema: pa.Schema, rule: WindowRule, carried: tuple[str, ...]) -> list[str]:
    channels = (rule.signal_column, rule.value_column) if rule.signal_column else rule.columns
    wanted = {*_FACTS, _TIME, *carried, *channels, rule.label, *_TAGS}
    return [name for name in schema.names if name in wanted]


def _in_order(rows: pa.Table, carried: tuple[str, ...]) -> tuple[pa.Table, Int64s, Bools]:
    """The rows that have a time, by series, time and seq; their times; and whether a row begins a series."""
    timed = rows if not rows.column(_TIME).null_count else rows.filter(pc.is_valid(rows.column(_TIME)))
    series = [_ranks(timed.column(name)) for name in (*_SERIES, *(name for name in carried if name not in _SERIES))]
    keys = [*series, _times_us(timed), np.asarray(timed.column("seq").to_numpy())]
    same, is_behind = np.ones(max(0, len(timed) - 1), bool), np.zeros(max(0, len(timed) - 1), bool)
    for key in keys:
        is_behind |= same & (key[1:] < key[:-1])
        same &= key[1:] == key[:-1]
    if is_behind.any():
        order = np.lexsort(keys[::-1])
        timed, keys = timed.take(pa.array(order)), [key[order] for key in keys]
    is_change = np.zeros(len(timed), bool)
    is_change[:1] = True
    for key in keys[: len(series)]:
        is_change[1:] |= key[1:] != key[:-1]
    return timed, keys[len(series)], is_change


def _ranks(column: pa.ChunkedArray) -> Int64s:
    """Numbers that compare as the values do; a null comes last."""
    if pa.types.is_int64(column.type) and not column.null_count:
        return np.asarray(column.to_numpy(), np.int64)
    whole = column.combine_chunks()
    if pa.types.is_string(column.type) and len(whole):
        runs = pc.run_end_encode(whole)
        # Rows mostly come device after device; then few values are looked at.
        if _RUN_ROWS * len(runs.values) < len(whole):
            return np.repeat(_ranks_of(runs.values), np.diff(runs.run_ends.to_numpy(), prepend=0))
    return _ranks_of(whole)


def _ranks_of(values: pa.Array) -> Int64s:
    codes = values.dictionary_encode()
    order = np.asarray(pc.sort_indices(codes.dictionary).to_numpy(), np.int64)
    rank = np.empty(len(order) + 1, np.int64)
    rank[order] = np.arange(len(order))
    rank[len(order)] = len(order)
    return rank[np.asarray(pc.fill_null(codes.indices, len(order)).to_numpy(zero_copy_only=False), np.int64)]


def _covered(low: Int64s, high: Int64s, rows: int) -> int:
    """How many rows lie in at least one window."""
    depth = np.bincount(low, minlength=rows + 1) - np.bincount(high, minlength=rows + 1)
    return int((np.cumsum(depth)[:rows] > 0).sum())


def _window_us(rule: WindowRule) -> int:
    return round(rule.window_s * _US)


def _step_us(step: Int64s, rule: WindowRule) -> Int64s:
    """Time of a step since 1970; whole seconds apart, because the product would not fit 64 bits."""
    if period_us := _period_us(rule):
        return step * period_us
    per, of = rule.rate.numerator, rule.rate.denominator
    turns, rest = np.divmod(step, per)
    return np.asarray(turns * (of * _US) + rest * (of * _US) // per, np.int64)


def _period_us(rule: WindowRule) -> int:
    """Microseconds from a step to the next, where that is a whole number; else 0."""
    whole, rest = divmod(rule.rate.denominator * _US, rule.rate.numerator)
    return 0 if rest else whole


def _step_at_or_after(time_us: Int64s, rule: WindowRule) -> Int64s:
    per, of = rule.rate.numerator, rule.rate.denominator
    turns, rest = np.divmod(time_us, of * _US)
    step = np.asarray(turns * per + -(-rest * per // (of * _US)), np.int64)
    # Steps are rounded down to whole us: the one before may lie at this very time.
    return np.where(_step_us(step - 1, rule) >= time_us, step - 1, step)


def _times_us(rows: pa.Table) -> Int64s:
    return np.asarray(pc.cast(pc.cast(rows.column(_TIME), pa.timestamp("us", "UTC")), pa.int64()).to_numpy(), np.int64)
