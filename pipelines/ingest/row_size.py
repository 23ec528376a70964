"""How many bytes each row holds. Whole columns at a time."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

Int64s = npt.NDArray[np.int64]


def row_bytes(rows: pa.Table | pa.RecordBatch) -> Int64s:
    """Bytes of each row's values; a null counts as nothing, a fixed-width value as its width."""
    fixed = sum(column.type.bit_width // 8 for column in rows.columns if pt.is_primitive(column.type))
    total = np.full(rows.num_rows, fixed, np.int64)
    for column in rows.columns:
        if not pt.is_primitive(column.type):
            total += _value_bytes(column)
    return total


def refusals(rows: pa.Table, max_row_bytes: int) -> pa.StringArray | None:
    """For each row the reason to refuse it for its size, null where there is none; None if no row can be too large."""
    if rows.nbytes <= max_row_bytes:
        return None
    sizes = row_bytes(rows)
    large = np.flatnonzero(sizes > max_row_bytes)
    if not len(large):
        return None
    found: Any = np.full(rows.num_rows, None, object)
    found[large] = [f"row: {size} bytes are above the limit of {max_row_bytes}" for size in sizes[large].tolist()]
    return pa.array(found, pa.string())


def _value_bytes(column: Any) -> Int64s:
    type_ = column.type
    if pt.is_dictionary(type_):
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        sizes = pa.array(_value_bytes(column.dictionary))
        return np.asarray(pc.fill_null(sizes.take(column.indices), 0).to_numpy(zero_copy_only=False), np.int64)
    if _is_view(type_):
        return _view_lengths(column)
    if pt.is_string(type_) or pt.is_binary(type_) or pt.is_large_string(type_) or pt.is_large_binary(type_):
        lengths = [pc.fill_null(pc.binary_length(chunk), 0).cast(pa.int64()) for chunk in _chunks(column)]
        return np.asarray(pa.chunked_array(lengths, pa.int64()).to_numpy(), np.int64)
    width = type_.bit_width // 8 if pt.is_primitive(type_) else column.nbytes // max(1, len(column))
    return np.full(len(column), width, np.int64)


def _chunks(column: Any) -> list[Any]:
    return list(column.chunks) if isinstance(column, pa.ChunkedArray) else [column]


def _view_lengths(column: Any) -> Int64s:
    """From the 16-byte views themselves, whose first four bytes are the length: casting would be the expansion to be avoided."""
    found = [np.empty(0, np.int64)]
    for chunk in _chunks(column):
        views = np.frombuffer(chunk.buffers()[1], np.int32, count=4 * (chunk.offset + len(chunk)))[4 * chunk.offset :: 4]
        valid = np.asarray(chunk.is_valid().to_numpy(zero_copy_only=False), np.bool_)
        found.append(np.where(valid, views, 0).astype(np.int64))
    return np.concatenate(found)


def _is_view(type_: pa.DataType) -> bool:
    return bool(pt.is_string_view(type_) or pt.is_binary_view(type_))
