"""A small body is measured by what its rows become, not by what it takes: no cast takes more than the limit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.arrow import row_schema
from pipelines.contracts.check import ContractMismatchError, conform
from pipelines.contracts.json_rows import JsonBodyError, rows_from_json
from pipelines.ingest.decode import DecodeError, arrow_rows, decode, json_rows
from pipelines.ingest.written_size import written_bytes
from schemas.contract import Column, ColumnType, Contract
from schemas.envelope import ARROW_STREAM

MIB = 1 << 20
LIMIT = 4 * MIB
_TIME = pa.timestamp("us", "UTC")
CONTRACT = Contract(
    name="probe",
    version="1.0.0",
    columns=(
        Column("text", ColumnType.STRING),
        Column("texts", ColumnType.LIST_STRING),
        Column("number", ColumnType.FLOAT64),
        Column("numbers", ColumnType.LIST_FLOAT64),
        Column("whole", ColumnType.INT64),
        Column("parts", ColumnType.STRUCT, fields=(Column("a", ColumnType.STRING), Column("b", ColumnType.LIST_INT64))),
    ),
)


def _body(columns: dict[str, pa.Array], rows: int, *, compression: str | None = "zstd") -> pa.Buffer:
    columns = {"event_time": pa.array(np.zeros(rows, np.int64)).cast(_TIME), **columns}
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _codes(count: int, values: pa.Array, kind: pa.DataType | None = None) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int8), kind or pa.int8()), values)


def _list(values: pa.Array, rows: int, *, large: bool = False) -> pa.Array:
    kind = pa.LargeListArray if large else pa.ListArray
    offsets = np.linspace(0, len(values), rows + 1).astype(np.int64 if large else np.int32)
    return kind.from_arrays(pa.array(offsets), values)


def _views(count: int, text: bytes) -> pa.Array:
    """Views that all refer to the same bytes."""
    view = len(text).to_bytes(4, "little") + text[:4] + bytes(8)
    return pa.Array.from_buffers(pa.string_view(), count, [None, pa.py_buffer(view * count), pa.py_buffer(text)])


_LONG = pa.array(["y" * 20_000])
BOMBS: dict[str, Callable[[], tuple[dict[str, Any], int]]] = {
    "codes": lambda: ({"text": _codes(2_000, _LONG)}, 2_000),
    "a list of codes": lambda: ({"texts": _list(_codes(2_000, _LONG), 10)}, 10),
    "a large list of codes": lambda: ({"texts": _list(_codes(2_000, _LONG), 10, large=True)}, 10),
    "a list of fixed size of codes": lambda: ({"texts": pa.FixedSizeListArray.from_arrays(_codes(2_000, _LONG), 200)}, 10),
    "codes of a list": lambda: ({"texts": _codes(2_000, pa.array([["y" * 20_000]]))}, 2_000),
    "codes of a list of codes": lambda: ({"texts": _codes(100, _list(_codes(100, _LONG), 1))}, 100),
    "a field of codes": lambda: ({"parts": pa.StructArray.from_arrays([_codes(2_000, _LONG)], ["a"])}, 2_000),
    "codes of numbers": lambda: ({"number": _codes(MIB, pa.array([1.5]))}, MIB),
    "a list of codes of numbers": lambda: ({"numbers": _list(_codes(MIB, pa.array([1.5])), 10)}, 10),
    "views of one text": lambda: ({"text": _views(2_000, b"y" * 20_000)}, 2_000),
    "a list of views of one text": lambda: ({"texts": _list(_views(2_000, b"y" * 20_000), 10)}, 10),
    "narrow numbers": lambda: ({"whole": pa.array(np.zeros(MIB, np.int8))}, MIB),
    "a list of narrow numbers": lambda: ({"numbers": _list(pa.array(np.zeros(MIB, np.int8)), 10)}, 10),
    "a list of nulls": lambda: ({"numbers": _list(pa.nulls(200 * MIB), 10)}, 10),
    "a list of fixed size of nulls": lambda: ({"numbers": pa.FixedSizeListArray.from_arrays(pa.nulls(200 * MIB), 20 * MIB)}, 10),
    "columns that are left out": lambda: ({}, 200_000),
    "columns of nulls": lambda: ({name: pa.nulls(200_000) for name in ("text", "number", "whole")}, 200_000),
    "fields that are left out": lambda: ({"parts": pa.StructArray.from_arrays([pa.nulls(200_000)], ["a"])}, 200_000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_body_that_becomes_large_is_refused_before_it_is_cast(bomb: str) -> None:
    columns, rows = BOMBS[bomb]()
    body = _body(columns, rows)
    assert body.size < LIMIT / 4
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(DecodeError, match="above the limit"):
        arrow_rows(body, rows, LIMIT, row_schema(CONTRACT))
    assert pa.default_memory_pool().max_memory() - before < 8 * LIMIT


@pytest.mark.parametrize(
    "column",
    [
        pa.RunEndEncodedArray.from_arrays(pa.array([1_000], pa.int32()), pa.array(["y" * 20_000])),
        pa.ListViewArray.from_arrays(pa.array([0] * 1_000, pa.int32()), pa.array([1] * 1_000, pa.int32()), _LONG),
        pa.LargeListViewArray.from_arrays(pa.array([0] * 1_000), pa.array([1] * 1_000), _LONG),
        pa.UnionArray.from_dense(pa.array([0] * 1_000, pa.int8()), pa.array([0] * 1_000, pa.int32()), [_LONG]),
        _list(pa.RunEndEncodedArray.from_arrays(pa.array([2_000], pa.int32()), pa.array(["y" * 20_000])), 1_000),
        pa.ExtensionArray.from_storage(pa.bool8(), pa.array(np.zeros(1_000, np.int8))),
    ],
    ids=lambda column: str(column.type)[:40],
)
def test_a_type_that_no_contract_has_is_refused_by_its_name(column: pa.Array) -> None:
    body = _body({"text": column}, 1_000, compression=None)
    with pytest.raises(DecodeError, match=r"column 'text': .* is no type that is read"):
        arrow_rows(body, 1_000, 1 << 40, row_schema(CONTRACT))


def test_the_body_that_took_two_gigabytes_is_refused(shared_data: Path) -> None:
    path = shared_data / "odd" / "hostile" / "list-of-codes.arrow.zst"
    if not path.exists():
        pytest.skip("the shared data hold no such body")
    body = pa.py_buffer(path.read_bytes())
    plain = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
    with pa.ipc.open_stream(plain) as reader:
        batch = reader.read_next_batch()
    types = {"list": ColumnType.LIST_STRING}
    name = next(field.name for field in batch.schema if pa.types.is_list(field.type))
    contract = Contract(name="probe", version="1.0.0", columns=(Column(name, types["list"]),))
    with pytest.raises(DecodeError, match="above the limit"):
        decode(body, content_type=ARROW_STREAM, encoding="zstd", count=batch.num_rows, first_seq=0, contract=contract,
               received_us=0, max_bytes=256 * MIB)  # fmt: skip


_texts = st.one_of(st.none(), st.text(max_size=20))
_numbers = st.one_of(st.none(), st.integers(-100, 100))
_columns = st.lists(
    st.fixed_dictionaries({
        "text": _texts,
        "texts": st.one_of(st.none(), st.lists(_texts, max_size=5)),
        "number": st.one_of(st.none(), st.floats(allow_nan=False)),
        "numbers": st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(allow_nan=False)), max_size=5)),
        "whole": _numbers,
        "parts": st.one_of(st.none(), st.fixed_dictionaries({"a": _texts, "b": st.lists(_numbers, max_size=4)})),
    }),
    min_size=1,
    max_size=20,
)  # fmt: skip
_FORMS: dict[str, list[pa.DataType]] = {
    "text": [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())],
    "texts": [pa.list_(pa.string()), pa.large_list(pa.large_string()), pa.list_(pa.string_view())],
    "number": [pa.float64(), pa.dictionary(pa.int16(), pa.float64())],
    "numbers": [pa.list_(pa.float64()), pa.large_list(pa.float64())],
    "whole": [pa.int8(), pa.int64(), pa.dictionary(pa.int8(), pa.int32())],
    "parts": [
        pa.struct([("a", pa.string()), ("b", pa.list_(pa.int8()))]),
        pa.struct([("a", pa.large_string()), ("b", pa.large_list(pa.int64()))]),
    ],
}


@given(_columns, st.data())
@settings(deadline=None)
def test_the_count_is_never_below_what_the_cast_gives_and_never_far_above(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    columns = {"event_time": pa.array([0] * len(rows), _TIME)}
    for name, forms in _FORMS.items():
        if data.draw(st.booleans(), name):
            columns[name] = pa.array([row[name] for row in rows], data.draw(st.sampled_from(forms), name))
    batch = pa.record_batch(columns)
    low = data.draw(st.integers(0, len(rows) - 1))
    batch = batch.slice(low, data.draw(st.integers(1, len(rows) - low)))
    try:
        cast = conform(batch, CONTRACT)
    except ContractMismatchError:
        return
    found = written_bytes(batch, row_schema(CONTRACT), LIMIT)
    least = sum(pa.concat_arrays([column]).nbytes for column in cast.columns)
    bitmaps_and_ends = 40 * len(cast.columns) + sum(len(column) for column in cast.columns)
    assert found >= least - bitmaps_and_ends
    assert found <= 2 * least + 40 * batch.num_rows


def test_codes_of_codes_count_as_what_the_innermost_stand_for() -> None:
    batch = pa.record_batch({"text": _codes(2_000, _codes(3, _LONG))})
    assert written_bytes(batch, None, LIMIT) == 2_000 * (20_000 + 2 * 4)


def test_empty_json_rows_count_with_the_columns_they_lack() -> None:
    body = pa.py_buffer(b"[" + b",".join([b"{}"] * 200_000) + b"]")
    with pytest.raises(DecodeError, match=r"200000 rows of contract probe take \d+ bytes, above the limit"):
        json_rows(body, 200_000, CONTRACT, 0, LIMIT)
    with pytest.raises(DecodeError, match="more than 95325 rows"):
        json_rows(body, 1, CONTRACT, 0, LIMIT)
    with pytest.raises(JsonBodyError, match="more than 3 rows"):
        rows_from_json(b"[{},{},{},{}]", CONTRACT, 0, max_rows=3)


def test_a_dictionary_with_millions_of_entries_is_refused_before_they_are_counted() -> None:
    entries = pa.Array.from_buffers(pa.string(), 600_000, [None, pa.py_buffer(np.zeros(600_001, np.int32)), pa.py_buffer(b"")])
    body = _body({"text": _codes(10, entries)}, 10)
    with pytest.raises(DecodeError, match="600000 values of string in one column are too many"):
        arrow_rows(body, 10, LIMIT, row_schema(CONTRACT))
