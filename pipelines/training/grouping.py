"""Which rows belong together, and which classes they carry. Pure functions over columns."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RefusedError
from pipelines.training.allocation import GroupCounts

Int64s = npt.NDArray[np.int64]
MAX_CLASSES = 1_000
_SEPARATOR = "\x1f"
_NULL = "-"
_BLOCK_TIME = "event_time"
_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of some rows: `names` (groups,) texts, `of_row` (rows,) the group of each row, `null_rows` without any value."""

    names: pa.Array
    of_row: Int64s
    null_rows: int


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of some rows: `names`, and for each occurrence its row and its class."""

    names: tuple[str, ...]
    row: Int64s
    kind: Int64s


@dataclass(frozen=True, slots=True)
class GroupTable:
    """What each group holds: the one thing about rows that grows with the groups alone.

    `names`, `rows`: (groups,). `pair_group`, `pair_class`, `pair_amount`: (pairs,) how many rows of a class a group holds, by
    group and class. `null_rows`: rows without a value in any group column.
    """

    names: pa.Array
    rows: Int64s
    pair_group: Int64s
    pair_class: Int64s
    pair_amount: Int64s
    classes: tuple[str, ...]
    null_rows: int

    def counts(self, union_of_group: Int64s, rank: Int64s) -> GroupCounts:
        """The same for unions of groups; `rank`: (unions,) decides between unions that are alike."""
        count, kinds = len(rank), max(1, len(self.classes))
        rows = np.zeros(count, np.int64)
        np.add.at(rows, union_of_group, self.rows)
        pairs, place = np.unique(union_of_group[self.pair_group] * kinds + self.pair_class, return_inverse=True)
        amount = np.zeros(len(pairs), np.int64)
        np.add.at(amount, place, self.pair_amount)
        first = np.searchsorted(pairs // kinds, np.arange(count + 1)).astype(np.int64)
        return GroupCounts(rows, first, (pairs % kinds).astype(np.int64), amount, rank, len(self.classes))

    def in_splits(self, split_of_group: Int64s, splits: int) -> Int64s:
        """(splits, classes) the rows of each class in each split."""
        kinds = len(self.classes)
        table = np.zeros((splits, kinds), np.int64)
        np.add.at(table, (split_of_group[self.pair_group], self.pair_class), self.pair_amount)
        return table


def group_rows(rows: pa.Table, columns: tuple[str, ...], block_s: float = 0.0) -> Groups:
    """Find the groups of rows: equal values in all columns and, with blocks, the same block of event time.

    A null is a value of its own, unlike any text. Names are unambiguous: each value stands behind its length.

    Raises:
        RefusedError: there is no such column, or it holds lists or structs.
    """
    missing = [name for name in columns if name not in rows.schema.names]
    if missing:
        raise RefusedError(f"no column {', '.join(missing)} to group by; there are {', '.join(rows.schema.names)}")
    texts = [_text(rows.column(name), name) for name in columns]
    nulls = np.logical_and.reduce([pc.is_null(text).to_numpy() for text in texts]) if len(rows) else np.zeros(0, bool)
    if block_s > 0:
        texts.append(pc.cast(pa.array(_blocks(rows, block_s)), pa.string()))
    named = [_named(text) for text in texts]
    joined = pc.binary_join_element_wise(*named, _SEPARATOR) if len(named) > 1 else named[0]
    encoded = pa.chunked_array(joined, pa.string()).combine_chunks().dictionary_encode()
    of_row = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), np.int64)
    return Groups(encoded.dictionary, of_row, int(nulls.sum()))


def classes_of_rows(rows: pa.Table, columns: tuple[str, ...]) -> Classes:
    """The classes that some columns give: each value of a column, each item of a list; a null gives none.

    Raises:
        RefusedError: there is no such column, or it has too many values to be classes.
    """
    names: list[str] = []
    owners, kinds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for column in columns:
        if column not in rows.schema.names:
            raise RefusedError(f"no column {column} to stratify by; there are {', '.join(rows.schema.names)}")
        values, row = _items(rows.column(column))
        encoded = _text(values, column).combine_chunks().dictionary_encode()
        _check_kinds(column, len(encoded.dictionary))
        there = np.asarray(pc.is_valid(encoded).to_numpy(zero_copy_only=False), bool)
        owners.append(row[there])
        kinds.append(np.asarray(encoded.indices.drop_null().to_numpy(zero_copy_only=False), np.int64) + len(names))
        names += [f"{column}={value}" for value in encoded.dictionary.to_pylist()]
    return Classes(tuple(names), np.concatenate(owners), np.concatenate(kinds))


def tabulate_groups(groups: Groups, classes: Classes) -> GroupTable:
    """What each group holds."""
    count, kinds = len(groups.names), max(1, len(classes.names))
    pairs, amount = np.unique(groups.of_row[classes.row] * kinds + classes.kind, return_counts=True)
    rows = np.bincount(groups.of_row, minlength=count).astype(np.int64)
    return GroupTable(groups.names, rows, pairs // kinds, pairs % kinds, amount.astype(np.int64), classes.names, groups.null_rows)


def merge_groups(tables: Iterable[GroupTable]) -> GroupTable:
    """Add up the tables of several parts of the rows; groups and classes lie by name, whatever the parts were.

    Raises:
        RefusedError: a column has too many values to be classes.
    """
    none = np.zeros(0, np.int64)
    whole = GroupTable(pa.array([], pa.string()), none, none, none, none, (), 0)
    for table in tables:
        whole = _added(whole, table)
    by_column: dict[str, int] = {}
    for name in whole.classes:
        column = name.partition("=")[0]
        by_column[column] = by_column.get(column, 0) + 1
        _check_kinds(column, by_column[column])
    return whole


def _check_kinds(column: str, kinds: int) -> None:
    if kinds > MAX_CLASSES:
        raise RefusedError(f"{column} has more than {MAX_CLASSES:,} values; stratify by a column of classes, or derive one")


def _added(one: GroupTable, other: GroupTable) -> GroupTable:
    names, (of_one, of_other) = _united(one.names, other.names)
    kinds, (kind_one, kind_other) = _united(pa.array(one.classes, pa.string()), pa.array(other.classes, pa.string()))
    rows = np.zeros(len(names), np.int64)
    rows[of_one] += one.rows
    rows[of_other] += other.rows
    width = max(1, len(kinds))
    keys = np.concatenate((
        of_one[one.pair_group] * width + kind_one[one.pair_class],
        of_other[other.pair_group] * width + kind_other[other.pair_class],
    ))  # fmt: skip
    pairs, place = np.unique(keys, return_inverse=True)
    amount = np.zeros(len(pairs), np.int64)
    np.add.at(amount, place, np.concatenate((one.pair_amount, other.pair_amount)))
    return GroupTable(
        names, rows, pairs // width, pairs % width, amount, tuple(kinds.to_pylist()), one.null_rows + other.null_rows
    )


def _united(one: pa.Array, other: pa.Array) -> tuple[pa.Array, tuple[Int64s, Int64s]]:
    """The distinct names of both, ascending, and where those of each stand among them."""
    both = pc.unique(pa.chunked_array([one, other], pa.string()))
    names = both.take(pc.sort_indices(both))
    places = [np.asarray(pc.index_in(part, value_set=names).to_numpy(zero_copy_only=False), np.int64) for part in (one, other)]
    return names, (places[0], places[1])


def neighbours_elsewhere(rows: pa.Table, splits: Int64s, gap_s: float) -> npt.NDArray[np.bool_]:
    """Whether a row of another split, of the same device and epoch of time, lies within `gap_s`; (rows,).

    Rows of split -1 are nobody's neighbours.
    """
    if gap_s <= 0 or not (splits >= 0).any() or _BLOCK_TIME not in rows.schema.names:
        return np.zeros(len(rows), bool)
    device = rows.column("device").combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return near_in_time(np.asarray(device, np.int64), times_us(rows), splits, gap_s)


def near_in_time(devices: Int64s, times: Int64s, splits: Int64s, gap_s: float) -> npt.NDArray[np.bool_]:
    """The same over numbers: (rows,) device, event time in microseconds, and split of each row."""
    near = np.zeros(len(splits), bool)
    inside = np.flatnonzero(splits >= 0)
    if gap_s <= 0 or not len(inside):
        return near
    device, time_us = devices[inside], times[inside]
    order = np.lexsort((time_us, device))
    device, time_us, split = device[order], time_us[order], splits[inside][order]
    step = round(gap_s * _US)
    is_near = np.zeros(len(order), bool)
    # In runs of equal split, the nearest row of another split is the end of the run before or the start of the one after.
    change = np.flatnonzero((device[1:] != device[:-1]) | (split[1:] != split[:-1])) + 1
    starts = np.concatenate(([0], change))
    run = np.searchsorted(starts, np.arange(len(order)), side="right") - 1
    before, after = starts[run] - 1, np.concatenate((starts[1:], [len(order)]))[run]
    for other, is_there in ((before, before >= 0), (after, after < len(order))):
        at = np.clip(other, 0, len(order) - 1)
        is_near |= is_there & (device[at] == device) & (np.abs(time_us - time_us[at]) <= step)
    near[inside[order]] = is_near
    return near


def _text(values: pa.ChunkedArray, column: str) -> pa.ChunkedArray:
    if pa.types.is_nested(values.type):
        raise RefusedError(f"{column} holds {values.type}; name a column of plain values, or derive one")
    try:
        return pc.cast(values, pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RefusedError(f"{column} holds {values.type}, which cannot be distinguished as text; name another column") from error


def _named(text: pa.ChunkedArray) -> pa.ChunkedArray:
    sizes = pc.cast(pc.utf8_length(text), pa.string())
    return pc.fill_null(pc.binary_join_element_wise(sizes, text, ":"), _NULL)


def _items(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Int64s]:
    """The plain values of a column, lists flattened, and the row of each."""
    if not (pa.types.is_list(values.type) or pa.types.is_large_list(values.type)):
        return values, np.arange(len(values), dtype=np.int64)
    whole = values.combine_chunks()
    return pa.chunked_array([pc.list_flatten(whole)]), np.asarray(pc.list_parent_indices(whole).to_numpy(), np.int64)


def _blocks(rows: pa.Table, block_s: float) -> Int64s:
    if _BLOCK_TIME not in rows.schema.names:
        raise RefusedError(f"no column {_BLOCK_TIME}, which blocks of time need")
    return np.asarray(times_us(rows) // max(1, round(block_s * _US)), np.int64)


def times_us(rows: pa.Table) -> Int64s:
    """Event times in microseconds; 0 for a null."""
    times = pc.cast(pc.cast(rows.column(_BLOCK_TIME), pa.timestamp("us", "UTC")), pa.int64())
    return np.asarray(pc.fill_null(times, 0).to_numpy(), np.int64)
