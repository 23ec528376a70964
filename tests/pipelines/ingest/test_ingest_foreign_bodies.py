"""Bodies from writers that are not ours: what they do differently is read, or refused with a reason that they understand."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from deltalake import DeltaTable

from pipelines.contracts.check import conform
from pipelines.contracts.json_rows import JsonBodyError, rows_from_json
from pipelines.ingest import loop as ingest_loop
from pipelines.ingest import quarantine as ingest_quarantine
from pipelines.ingest.decode import DecodeError, arrow_rows, plain_body
from pipelines.ingest.quarantine import Request, write_request
from pipelines.ingest.work import Limits
from pipelines.lake.lake import lake_at
from schemas.contract import Column, ColumnType
from schemas.envelope import ARROW_STREAM, JSON, parse_time, read_head
from schemas.errors import EnvelopeError
from schemas.ids import DeviceId, StreamName
from tests.plant.core import Core, MakeEnvelope

LIMIT = 2**20
HEAD = (DeviceId("car-1"), StreamName("probe"))


def stream(columns: dict[str, pa.Array], *, as_file: bool = False, compression: str | None = None) -> pa.Buffer:
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with (pa.ipc.new_file if as_file else pa.ipc.new_stream)(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_buffers_compressed_one_by_one_count_as_what_they_unpack_to(compression: str) -> None:
    body = stream({"note": pa.array(["a" * 1_000] * 2_000)}, compression=compression)
    assert body.size < LIMIT / 10
    with pytest.raises(DecodeError, match=r"unpacks to .* above the limit of 1048576"):
        arrow_rows(body, 2_000, LIMIT)
    rows = arrow_rows(body, 2_000, 4 * LIMIT)
    assert rows.bytes >= 2_000_000, "so that a group of such bodies is written before it fills the memory"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (stream({"a": pa.array([1])}, as_file=True), "Arrow IPC file"),
        (pa.py_buffer(b"PAR1" + bytes(40)), "Parquet file"),
        (pa.py_buffer(zstandard.compress(b"{}")), "contentencoding does not say so"),
    ],
)
def test_a_body_of_another_form_is_called_by_its_name(body: pa.Buffer, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        arrow_rows(body, 1, LIMIT)


def test_a_zstd_frame_that_is_cut_off_is_refused_as_such() -> None:
    whole = zstandard.compress(bytes(range(256)) * 8)
    with pytest.raises(DecodeError, match="cut off"):
        plain_body(pa.py_buffer(whole[:-20]), "zstd", LIMIT)


def test_nanoseconds_are_cut_in_a_dictionary_as_they_are_outside_one(contract_with: Callable[..., Any]) -> None:
    times = pa.array([1_700_000_000_000_000_001], pa.timestamp("ns", "UTC"))
    contract = contract_with(columns=(Column("at", ColumnType.TIMESTAMP),))
    plain, coded = (conform(pa.table({"event_time": times, "at": at}), contract) for at in (times, times.dictionary_encode()))
    assert coded.equals(plain)


def test_a_key_given_twice_inside_an_object_refuses_the_row(contract_with: Callable[..., Any]) -> None:
    place = Column("place", ColumnType.STRUCT, fields=(Column("lat", ColumnType.FLOAT64),))
    found = rows_from_json(b'[{"place": {"lat": 1, "lat": 2}}, {"place": {"lat": 3}}]', contract_with(columns=(place,)), 0)
    assert found.indexes == (1,)
    assert [each.reason for each in found.rejected] == ["place: a key is given twice"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"n": ' + b"9" * 5_000 + b"}", "more than 4300 digits$"),
        (b" ", "it is empty"),
        (b"20.5 C", "begins with '20.5 C'"),
        (b"\xef\xbb\xbf{}", r"begins with '\\ufeff"),
    ],
)
def test_why_a_body_is_no_json_is_reported_in_words_for_its_sender(
    contract_with: Callable[..., Any], body: bytes, words: str
) -> None:
    with pytest.raises(JsonBodyError, match=words):
        rows_from_json(body, contract_with(), 0)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2026-01-01t00:00:00.5z", "2026-01-01T00:00:00.5Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2016-12-31T18:59:60.25-05:00", "2017-01-01T00:00:00.25Z"),
    ],
)
def test_every_time_that_rfc_3339_allows_is_read(given: str, meant: str) -> None:
    assert parse_time(given) == parse_time(meant)


@pytest.mark.parametrize("given", ["2016-12-31T23:59:61Z", "2016-12-31T23:59:60", "2016-12-31T23:60:60Z", "60", ""])
def test_a_time_that_only_looks_like_a_leap_second_is_refused(given: str) -> None:
    with pytest.raises(EnvelopeError):
        parse_time(given)


@pytest.mark.parametrize("given", ["application/json; charset=utf-8", "Application/JSON", "application/json;charset=UTF-8"])
def test_a_content_type_has_no_case_and_may_have_parameters(given: str) -> None:
    assert read_head(*HEAD, given, []).content_type == JSON
    with pytest.raises(EnvelopeError, match="needs the properties"):
        read_head(*HEAD, f"{ARROW_STREAM}; x=y", [])


def test_properties_that_are_not_ours_may_be_long_and_stand_twice() -> None:
    assert read_head(*HEAD, JSON, [("traceparent", "a"), ("traceparent", "b"), ("baggage", "x" * 5_000)]).span is None
    with pytest.raises(EnvelopeError, match="given twice"):
        read_head(*HEAD, JSON, [("time", "2026-01-01T00:00:00Z")] * 2)


@pytest.mark.slow
def test_what_is_refused_is_written_before_it_fills_the_memory_and_is_replayed_from_every_file(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_loop, "Limits", partial(Limits, flush_bytes=20_000))
    monkeypatch.setattr(ingest_quarantine, "MAX_BYTES", 50_000)
    body = json.dumps([{"speed_mps": 1, "vin": "x" * 9_000}] * 3).encode()
    core.landing.seal([envelope(3 * n, 3, device=f"car-{n}", content_type=JSON, body=body) for n in range(6)])
    loop = core.run()
    refused = core.rows("quarantine")
    assert len(refused) == len({row["id"] for row in refused}) == 18
    assert len(DeltaTable(core.root / "quarantine").file_uris()) > 3
    write_request(lake_at(core.root), Request("replay", tuple(row["id"] for row in refused), 1))
    runs = loop.ledger.run
    assert core.run().ledger.run - runs > 1, "a replay is cut into runs of so many bytes"
    assert [(books.quarantined, books.received) for books in core.loop().ledger.books.values()] == [(3, 3)] * 6
