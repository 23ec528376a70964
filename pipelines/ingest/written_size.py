"""Compute the bytes that a body's rows take once cast to their contract: from lengths and codes, never by casting.

A body of kilobytes can stand for gigabytes: a few codes name one long text, a list of codes names it often, a null takes no
byte until it has a type, and a column that is left out costs as much as one that is there. Whole columns at a time; what a
count itself needs is in proportion to the body's own buffers.
"""

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

Int64s = npt.NDArray[np.int64]
Each: TypeAlias = "int | Int64s"
"""Bytes of each element: one number where all are alike."""

_OFFSET_BYTES = 4
_BLOCK = 1 << 20


class UnreadableTypeError(Exception):
    """A column's type is none that is read, or holds more elements than can be counted; the message says which."""


@lru_cache(maxsize=256)
def check_types(schema: pa.Schema) -> None:
    """Make sure that each column is of a type that is read.

    Raises:
        UnreadableTypeError: one is not. Types that can name the same bytes again and again, and that no contract has, are none.
    """
    for field in schema:
        _check_type(field.name, field.type)


def written_bytes(batch: pa.RecordBatch, wanted: pa.Schema | None, max_bytes: int) -> int:
    """Bytes of a batch's rows once each has values of its own, in the contract's types; columns that it lacks included.

    Args:
        batch: validated in full.
        wanted: the contract's rows; None: the batch's own types.
        max_bytes: the limit; a dictionary with so many entries that counting them takes this much is refused uncounted.

    Raises:
        UnreadableTypeError: such a dictionary.
    """
    per_row, places = _plan(batch.schema, wanted)
    total: int = batch.num_rows * per_row
    for place in places:
        type_ = None if wanted is None else _named(wanted, batch.schema.field(place).name)
        total += _Counter(max(1, max_bytes // 8)).total(batch.column(place), type_)
    return total


@lru_cache(maxsize=256)
def row_width(wanted: pa.Schema) -> int:
    """Bytes that each row takes at least, whatever its values."""
    return max(1, sum(_width(field.type) for field in wanted))


@lru_cache(maxsize=256)
def _plan(schema: pa.Schema, wanted: pa.Schema | None) -> tuple[int, tuple[int, ...]]:
    """Return the cost of each row by its types alone, and the columns that must be measured."""
    per_row, places = 0, []
    for place, field in enumerate(schema):
        type_ = None if wanted is None else _named(wanted, field.name)
        if _is_fixed(field.type):
            per_row += max(_width(field.type), _width(type_))
        else:
            places.append(place)
    absent = [] if wanted is None else [field.type for field in wanted if field.name not in schema.names]
    return per_row + sum(map(_width, absent)), tuple(places)


class _Counter:
    """Counts one column."""

    def __init__(self, max_elements: int) -> None:
        self._max_elements = max_elements

    def total(self, array: Any, wanted: pa.DataType | None) -> int:
        """Bytes of all elements together. In a list each of its values stands once, so that no list of sizes is needed."""
        type_, count = array.type, len(array)
        if pt.is_dictionary(type_):
            return self._total_of_codes(array, wanted)
        if pt.is_struct(type_):
            parts = [array.field(index) for index in range(type_.num_fields)]
            inner = sum(self.total(part, _field(wanted, type_.field(index).name)) for index, part in enumerate(parts))
            return inner + count * _absent_width(type_, wanted)
        if pt.is_fixed_size_list(type_):
            values = array.values.slice(array.offset * type_.list_size, count * type_.list_size)
            return self.total(values, _values(wanted)) + count * _OFFSET_BYTES
        if _is_list(type_):
            values = array.values.slice(*_reach(array)) if count else array.values.slice(0, 0)
            return self.total(values, _values(wanted)) + count * _OFFSET_BYTES
        if _is_bytes(type_) and not _is_text_view(type_):
            return _reach(array)[1] + count * _OFFSET_BYTES
        each = self._each(array, wanted)
        return count * each if isinstance(each, int) else int(each.sum())

    def _total_of_codes(self, array: Any, wanted: pa.DataType | None) -> int:
        each = self._each(array.dictionary, wanted)
        if isinstance(each, int):
            return len(array) * each
        total, codes = len(array) * _OFFSET_BYTES, array.indices
        for low in range(0, len(codes), _BLOCK):
            block = np.asarray(codes.slice(low, _BLOCK).drop_null().to_numpy(zero_copy_only=False), np.int64)
            total += int(each[block].sum())
        return total

    def _each(self, array: Any, wanted: pa.DataType | None) -> Each:
        """Bytes of each element. Only of what a dictionary holds, and of texts: these have buffers of their own to count from."""
        type_ = array.type
        if _is_fixed(type_):
            return max(_width(type_), _width(wanted))
        if len(array) > self._max_elements:
            raise UnreadableTypeError(f"{len(array)} values of {type_} in one column are too many")
        if _is_bytes(type_):
            return _text_lengths(array) + _OFFSET_BYTES
        if pt.is_dictionary(type_):
            return self._each_of_codes(array, wanted)
        if pt.is_struct(type_):
            return self._each_of_struct(array, wanted)
        return self._each_of_list(array, wanted)

    def _each_of_codes(self, array: Any, wanted: pa.DataType | None) -> Each:
        each = self._each(array.dictionary, wanted)
        if isinstance(each, int):
            return each
        codes = np.asarray(array.indices.fill_null(0).to_numpy(zero_copy_only=False), np.int64)
        return np.asarray(each[codes], np.int64) if len(each) else np.zeros(len(codes), np.int64)

    def _each_of_struct(self, array: Any, wanted: pa.DataType | None) -> Each:
        total: Any = _absent_width(array.type, wanted)
        for index in range(array.type.num_fields):
            total = total + self._each(array.field(index), _field(wanted, array.type.field(index).name))
        return total if isinstance(total, int) else np.asarray(total, np.int64)

    def _each_of_list(self, array: Any, wanted: pa.DataType | None) -> Each:
        if pt.is_fixed_size_list(array.type):
            size = array.type.list_size
            inner = self._each(array.values.slice(array.offset * size, len(array) * size), _values(wanted))
            if isinstance(inner, int):
                return inner * int(size) + _OFFSET_BYTES
            return np.asarray(inner.reshape(len(array), size).sum(axis=1) + _OFFSET_BYTES, np.int64)
        offsets = _offsets(array)
        inner = self._each(array.values, _values(wanted))
        if isinstance(inner, int):
            return np.asarray(np.diff(offsets) * inner + _OFFSET_BYTES, np.int64)
        sums = np.concatenate(([0], np.cumsum(inner)))
        return np.asarray(sums[offsets[1:]] - sums[offsets[:-1]] + _OFFSET_BYTES, np.int64)


def _check_type(name: str, type_: pa.DataType) -> None:
    if isinstance(type_, pa.BaseExtensionType):
        raise UnreadableTypeError(f"column {name[:80]!r}: {str(type_)[:80]} is no type that is read")
    if pt.is_dictionary(type_):
        _check_type(name, type_.value_type)
    elif pt.is_nested(type_) and (pt.is_struct(type_) or pt.is_fixed_size_list(type_) or _is_list(type_)):
        for index in range(type_.num_fields):
            _check_type(name, type_.field(index).type)
    elif not (_is_fixed(type_) or _is_bytes(type_)):
        raise UnreadableTypeError(f"column {name[:80]!r}: {str(type_)[:80]} is no type that is read")


def _is_fixed(type_: pa.DataType) -> bool:
    """Whether each element takes the same bytes."""
    return bool(pt.is_primitive(type_) or pt.is_null(type_) or pt.is_decimal(type_) or pt.is_fixed_size_binary(type_))


def _is_bytes(type_: pa.DataType) -> bool:
    return bool(
        pt.is_string(type_)
        or pt.is_binary(type_)
        or pt.is_large_string(type_)
        or pt.is_large_binary(type_)
        or _is_text_view(type_)
    )


def _is_text_view(type_: pa.DataType) -> bool:
    return bool(pt.is_string_view(type_) or pt.is_binary_view(type_))


def _is_list(type_: pa.DataType) -> bool:
    return bool(pt.is_list(type_) or pt.is_large_list(type_) or pt.is_map(type_))


def _reach(array: Any) -> tuple[int, int]:
    """Return where a list's elements, or a text's bytes, begin, and how many there are."""
    offsets = _raw_offsets(array)
    return int(offsets[0]), int(offsets[-1]) - int(offsets[0])


def _offsets(array: Any) -> Int64s:
    """The offsets of a text or list, one more than it has elements."""
    return np.asarray(_raw_offsets(array), np.int64)


def _raw_offsets(array: Any) -> Any:
    """The same in place; a buffer that is missing stands for nothing."""
    is_large = pt.is_large_list(array.type) or pt.is_large_string(array.type) or pt.is_large_binary(array.type)
    kind: Any = np.dtype(np.int64 if is_large else np.int32)
    buffer = array.buffers()[1]
    if buffer is None or not buffer.size:
        return np.zeros(len(array) + 1, np.int64)
    return np.frombuffer(buffer, kind, count=len(array) + 1, offset=array.offset * kind.itemsize)


def _text_lengths(array: Any) -> Int64s:
    return _view_lengths(array) if _is_text_view(array.type) else np.diff(_offsets(array))


def _view_lengths(array: Any) -> Int64s:
    """From the 16-byte views themselves, whose first four bytes are the length."""
    buffer = array.buffers()[1]
    if not len(array) or buffer is None:
        return np.zeros(len(array), np.int64)
    views = np.frombuffer(buffer, np.int32, count=4 * len(array), offset=16 * array.offset)[::4]
    valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    return np.where(valid, views, 0).astype(np.int64)


def _width(type_: pa.DataType | None) -> int:
    """Bytes that one element takes at least, whatever its value."""
    if type_ is None or pt.is_null(type_):
        return 0
    if pt.is_boolean(type_):
        return 1
    if _is_fixed(type_):
        return int(type_.bit_width + 7) // 8
    if pt.is_struct(type_):
        return sum(_width(field.type) for field in type_)
    if pt.is_fixed_size_list(type_):
        return int(type_.list_size) * _width(type_.value_type)
    return _OFFSET_BYTES


def _absent_width(given: pa.DataType, wanted: pa.DataType | None) -> int:
    """Return the cost of the fields that a struct lacks."""
    if wanted is None or not pt.is_struct(wanted):
        return 0
    names = {given.field(index).name for index in range(given.num_fields)}
    return sum(_width(field.type) for field in wanted if field.name not in names)


def _values(wanted: pa.DataType | None) -> pa.DataType | None:
    is_any_list = wanted is not None and (_is_list(wanted) or pt.is_fixed_size_list(wanted))
    return wanted.value_type if wanted is not None and is_any_list and not pt.is_map(wanted) else None


def _field(wanted: pa.DataType | None, name: str) -> pa.DataType | None:
    if wanted is None or not pt.is_struct(wanted) or wanted.get_field_index(name) < 0:
        return None
    return wanted.field(name).type


def _named(wanted: pa.Schema, name: str) -> pa.DataType | None:
    place = wanted.get_field_index(name)
    return None if place < 0 else wanted.field(place).type
