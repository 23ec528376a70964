"""Encoding: what pyarrow reads back is what the source saw."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.capture.encode import BatchLimits, Encoder, join_batches, may_join
from edge_agent.errors import EncodingError, SourceError
from edge_agent.sources.api import SampleBatch
from edge_agent.spool.records import NewEnvelope, ObjectRef
from pipelines.contracts.arrow import row_schema
from schemas.contract import Column, ColumnType, Contract, PayloadSpec
from schemas.ids import Digest

VALUES = {
    ColumnType.STRING: st.text(max_size=20),
    ColumnType.BOOL: st.booleans(),
    ColumnType.INT32: st.integers(-(2**31), 2**31 - 1),
    ColumnType.INT64: st.integers(-(2**63), 2**63 - 1),
    ColumnType.FLOAT32: st.floats(width=32, allow_nan=False),
    ColumnType.FLOAT64: st.floats(allow_nan=False),
    ColumnType.TIMESTAMP: st.integers(0, 2**50),
    ColumnType.BINARY: st.binary(max_size=20),
}
CONTRACT = Contract("all", "1.0.0", tuple(Column(f"c_{kind}", kind) for kind in VALUES), PayloadSpec(("image/jpeg",), 1 << 30))


def put_object(payload: bytes | Path) -> ObjectRef:
    return ObjectRef(Digest("ab" * 32), len(payload) if isinstance(payload, bytes) else payload.stat().st_size)


def read(envelope: NewEnvelope) -> pa.Table:
    body = zstandard.decompress(envelope.body) if envelope.encoding else envelope.body
    table = pa.ipc.open_stream(io.BytesIO(body)).read_all()
    table.validate(full=True)
    assert table.num_rows == envelope.count
    return table


@st.composite
def batches(draw: st.DrawFn) -> SampleBatch:
    rows = draw(st.integers(1, 40))
    kinds = draw(st.lists(st.sampled_from(list(VALUES)), unique=True))
    columns: dict[str, list[Any]] = {f"c_{k}": draw(st.lists(st.none() | VALUES[k], min_size=rows, max_size=rows)) for k in kinds}
    payloads = draw(st.none() | st.lists(st.none() | st.binary(max_size=300), min_size=rows, max_size=rows))
    return SampleBatch(list(range(rows)), columns, payloads)


@given(batches(), st.booleans())
def test_every_value_and_null_comes_back(batch: SampleBatch, compress: bool) -> None:
    envelopes = Encoder(CONTRACT, BatchLimits(400, 200), put_object, compress=compress).encode(batch, 0)
    table = pa.concat_tables(read(envelope) for envelope in envelopes)
    assert table.num_rows == len(batch)
    assert table["event_time"].type == pa.timestamp("us", "UTC")
    for name, values in batch.columns.items():
        column = table[name]
        found = column.cast(pa.int64()).to_pylist() if pa.types.is_timestamp(column.type) else column.to_pylist()
        assert found == list(values)
    if batch.payloads is not None:
        large = [isinstance(payload, bytes) and len(payload) > 200 for payload in batch.payloads]
        expected = [None if is_large else payload for payload, is_large in zip(batch.payloads, large, strict=True)]
        assert table["payload"].to_pylist() == expected
        assert [digest is None for digest in table["payload_sha256"].to_pylist()] == [p is None for p in batch.payloads]
        assert sum(envelope.large is not None for envelope in envelopes) == sum(large)


def test_a_value_of_another_type_is_the_sources_fault() -> None:
    encoder = Encoder(CONTRACT, BatchLimits(1000, 1000), put_object)
    for name, value in (("c_int32", "x"), ("c_int32", 2**40), ("c_string", 3), ("c_bool", 1), ("nowhere", 1)):
        with pytest.raises(SourceError, match=name):
            encoder.encode(SampleBatch([0], {name: [value]}), 0)


def test_joined_batches_end_where_the_last_ends() -> None:
    one = SampleBatch([1, 2], {"c_int64": [1, 2]}, position=b"a")
    two = SampleBatch([3], {"c_int64": [3]}, position=b"b")
    assert may_join(one, two)
    assert join_batches([one, two]) == SampleBatch([1, 2, 3], {"c_int64": [1, 2, 3]}, position=b"b")
    assert not may_join(one, SampleBatch([3], {}, position=b"b"))


def test_a_nested_column_that_a_source_names_travels_as_null() -> None:
    contract = Contract("nested", "1.0.0", (Column("labels", ColumnType.LIST_STRING), Column("x", ColumnType.BOOL)))
    batch = SampleBatch([1, 2], {"labels": [None, None], "x": [True, None]}, None)
    (envelope,) = Encoder(contract, BatchLimits(400, 200), put_object, compress=False).encode(batch, 0)
    assert read(envelope).select(["labels", "x"]).to_pydict() == {"labels": [None, None], "x": [True, None]}


def test_a_list_that_a_source_fills_is_refused_by_name() -> None:
    contract = Contract("nested", "1.0.0", (Column("labels", ColumnType.LIST_STRING),))
    batch = SampleBatch([1], {"labels": ["cat"]}, None)
    with pytest.raises(EncodingError, match="labels"):
        Encoder(contract, BatchLimits(400, 200), put_object, compress=False).encode(batch, 0)


NESTED = Contract("nested", "1.0.0", (
    Column("labels", ColumnType.LIST_STRING), Column("counts", ColumnType.LIST_INT64), Column("flags", ColumnType.LIST_BOOL),
    Column("v", ColumnType.VECTOR_FLOAT32, length=2),
    Column("place", ColumnType.STRUCT, fields=(
        Column("lat", ColumnType.FLOAT64), Column("note", ColumnType.STRING), Column("ids", ColumnType.LIST_INT32),
        Column("at", ColumnType.TIMESTAMP),
    )),
    Column("boxes", ColumnType.LIST_STRUCT, fields=(
        Column("label", ColumnType.STRING), Column("corners", ColumnType.LIST_FLOAT64),
    )),
))  # fmt: skip


def lists(items: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.none() | st.lists(st.none() | items, max_size=4)


PLACES = st.fixed_dictionaries({
    "lat": st.none() | st.floats(allow_nan=False), "note": st.none() | st.text(max_size=5),
    "ids": lists(st.integers(-(2**31), 2**31 - 1)), "at": st.none() | st.integers(0, 2**50),
})  # fmt: skip
BOXES = st.fixed_dictionaries({"label": st.none() | st.text(max_size=5), "corners": lists(st.floats(allow_nan=False))})
ROWS = st.fixed_dictionaries({
    "labels": lists(st.text(max_size=5)), "counts": lists(st.integers(-(2**63), 2**63 - 1)), "flags": lists(st.booleans()),
    "v": st.none() | st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2), "place": st.none() | PLACES,
    "boxes": lists(BOXES),
})  # fmt: skip


@given(st.lists(ROWS, min_size=1, max_size=8))
def test_lists_vectors_and_structs_come_out_as_they_went_in(rows: list[dict[str, Any]]) -> None:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    (envelope,) = Encoder(NESTED, BatchLimits(1 << 20, 200), put_object, compress=False).encode(
        SampleBatch([1] * len(rows), columns), 0
    )
    table = read(envelope)
    assert table.schema.field("place").type == row_schema(NESTED).field("place").type
    found = table.drop_columns(["event_time"]).to_pylist()
    for row in found:
        if row["place"] is not None and row["place"]["at"] is not None:
            row["place"]["at"] = round(row["place"]["at"].timestamp() * 1e6)
    assert found == rows
