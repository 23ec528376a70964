"""Bodies against contracts: conforming types, reasons to refuse a row, JSON rows."""

import base64
import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.arrow import TIMESTAMP, row_schema
from pipelines.contracts.check import ContractMismatchError, conform, reasons
from pipelines.contracts.json_rows import JsonBodyError, rows_from_json
from schemas.contract import Column, ColumnType, Contract, PayloadSpec, QualityRule

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
NOW_US = 1_767_614_400_000_000
CONTRACT = Contract(
    "probe", "1.0.0",
    (
        Column("speed", ColumnType.FLOAT64, required=True, minimum=-50, maximum=150),
        Column("count", ColumnType.INT64, minimum=0),
        Column("port", ColumnType.INT32),
        Column("kind", ColumnType.STRING, allowed=("car", "bus")),
        Column("note", ColumnType.STRING, max_length=3),
        Column("blob", ColumnType.BINARY, max_length=3),
        Column("is_up", ColumnType.BOOL),
        Column("seen_at", ColumnType.TIMESTAMP),
        Column("ratio", ColumnType.FLOAT32),
    ),
    payload=PayloadSpec(("image/png",), 10),
    quality=(QualityRule("slow_when_many", "count < 10 OR speed < 100"),),
)  # fmt: skip
PAYLOAD = b"12345"
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
GOOD: dict[str, Any] = {"event_time": NOW, "speed": 1.0, "payload": PAYLOAD, "payload_sha256": DIGEST}


def rows(*changes: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{**GOOD, **change} for change in changes], schema=row_schema(CONTRACT))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"event_time": None}, "event_time: missing"),
        (
            {"event_time": datetime(1970, 1, 1, tzinfo=UTC)},
            "event_time: before 1990-01-01T00:00:00Z or after 2100-01-01T00:00:00Z",
        ),
        (
            {"event_time": datetime(2101, 1, 1, tzinfo=UTC)},
            "event_time: before 1990-01-01T00:00:00Z or after 2100-01-01T00:00:00Z",
        ),
        ({"speed": None}, "speed: required, but null"),
        ({"speed": float("nan")}, "speed: NaN or infinite"),
        ({"speed": float("inf")}, "speed: NaN or infinite"),
        ({"speed": -50.1}, "speed: below the minimum of -50"),
        ({"speed": -50.0}, None),
        ({"speed": 150.1}, "speed: above the maximum of 150"),
        ({"count": -1}, "count: below the minimum of 0"),
        ({"kind": "bike"}, "kind: not one of car, bus"),
        ({"kind": "bus"}, None),
        ({"note": "äöü"}, None),
        ({"note": "äöüß"}, "note: longer than 3 characters"),
        ({"blob": b"1234"}, "blob: longer than 3 bytes"),
        ({"ratio": float("-inf")}, "ratio: NaN or infinite"),
        ({"payload": None, "payload_sha256": None}, "payload: missing"),
        ({"payload": None}, None),
        ({"payload": b""}, "payload: empty"),
        ({"payload": b"12345678901"}, "payload: larger than 10 bytes"),
        ({"payload_sha256": None}, "payload_sha256: missing next to a payload"),
        ({"payload_sha256": "ABC"}, "payload_sha256: not 64 lower-case hexadecimal digits"),
        ({"count": 10, "speed": 100.0}, "quality rule slow_when_many: not fulfilled"),
        ({"count": None, "speed": 100.0}, None),
        ({"speed": None, "count": -1}, "speed: required, but null"),
    ],
)
def test_a_row_is_refused_for_its_first_reason(change: dict[str, Any], reason: str | None) -> None:
    assert reasons(rows({}, change, {}), CONTRACT).to_pylist() == [None, reason, None]
    assert reasons(rows(change), CONTRACT).to_pylist() == [reason]


def test_good_rows_and_no_rows_have_no_reasons() -> None:
    assert reasons(rows({}, {}), CONTRACT).null_count == 2
    assert len(reasons(rows(), CONTRACT)) == 0


def test_a_body_is_brought_to_the_contracts_order_with_absent_columns_null() -> None:
    batch = pa.record_batch(
        {
            "port": pa.array([80], pa.uint16()),
            "speed": pa.array([1], pa.int32()),
            "ratio": pa.array([0.5], pa.float64()),
            "kind": pa.array(["car"]).dictionary_encode(),
            "seen_at": pa.array([1_500], pa.timestamp("ns", "Europe/Berlin")),
            "event_time": pa.array([NOW], pa.timestamp("ms", "UTC")),
        }
    )
    fitted = conform(batch, CONTRACT)
    assert isinstance(fitted, pa.RecordBatch)
    assert fitted.schema.equals(row_schema(CONTRACT))
    row = fitted.to_pylist()[0]
    assert (row["port"], row["speed"], row["kind"], row["note"], row["event_time"]) == (80, 1.0, "car", None, NOW)
    assert conform(rows({}), CONTRACT).equals(rows({}))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"event_time": pa.array([NOW], TIMESTAMP), "sped": pa.array([1.0])}, "unknown column 'sped'"),
        ({"speed": pa.array([1.0])}, "column event_time is missing"),
        (
            {"event_time": pa.array([NOW], TIMESTAMP), "speed": pa.array(["1"])},
            "column speed: string does not fit the contract's double",
        ),
        (
            {"event_time": pa.array([NOW], TIMESTAMP), "count": pa.array([1.0])},
            "column count: double does not fit the contract's int64",
        ),
        ({"event_time": pa.array([NOW], TIMESTAMP), "port": pa.array([2**40])}, "column port: int64 does not fit int32"),
        ({"event_time": pa.array([1], pa.timestamp("us"))}, "column event_time: timestamp[us] does not fit"),
        (
            {"event_time": pa.array([NOW], TIMESTAMP), "is_up": pa.array([1])},
            "column is_up: int64 does not fit the contract's bool",
        ),
        (
            {"event_time": pa.array([NOW], TIMESTAMP), "note": pa.array([b"x"])},
            "column note: binary does not fit the contract's string",
        ),
        ({"event_time": pa.array([NOW], TIMESTAMP), "blob": pa.array([[1]])}, "column blob: list<item: int64> does not fit"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_column_and_types(columns: dict[str, pa.Array], words: str) -> None:
    with pytest.raises(ContractMismatchError) as caught:
        conform(pa.table(columns), CONTRACT)
    assert words in str(caught.value)


def test_a_column_given_twice_is_refused() -> None:
    twice = pa.table([pa.array([NOW], TIMESTAMP), pa.array([1.0]), pa.array([2.0])], names=["event_time", "speed", "speed"])
    with pytest.raises(ContractMismatchError, match="given twice"):
        conform(twice, CONTRACT)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"speed": "1"}', "speed: a number is needed, not text"),
        ('{"speed": true}', "speed: a number is needed, not true or false"),
        ('{"speed": NaN}', "speed: NaN or infinite"),
        ('{"speed": -Infinity}', "speed: NaN or infinite"),
        ('{"speed": 1e400}', "speed: NaN or infinite"),
        ('{"speed": 1, "speed": 2}', "a key is given twice"),
        ('{"sped": 1}', "unknown column 'sped'"),
        ('{"speed": [1]}', "speed: a number is needed, not a list"),
        ('{"speed": {"a": 1}}', "speed: a number is needed, not an object"),
        ('{"count": 1.5}', "count: a whole number is needed, not a number"),
        ('{"count": 9223372036854775808}', "count: outside the range of int64"),
        ('{"port": 2147483648}', "port: outside the range of int32"),
        ('{"kind": 3}', "kind: text is needed, not a number"),
        ('{"note": "\\ud800"}', "note: a lone surrogate is not text"),
        ('{"blob": "*"}', "blob: not base64"),
        ('{"is_up": 1}', "is_up: true or false is needed, not a number"),
        ('{"event_time": 1767225600}', "event_time: write RFC 3339 text with a zone, such as '2026-01-31T12:00:00Z'"),
        (
            '{"event_time": "2026-01-01T00:00:00"}',
            "event_time: time '2026-01-01T00:00:00' names no zone; end it with 'Z' for UTC",
        ),
        ('{"seen_at": "yesterday"}', "seen_at: time 'yesterday' is not RFC 3339"),
        ('{"payload_b64": "%%"}', "payload_b64: not base64"),
        ('{"payload_b64": "QUFBQUFBQUFBQUFBQUFBQUFBQUE="}', "payload: larger than 10 bytes"),
        ('{"payload_b64": "QUE=", "payload_sha256": "00"}', "payload_sha256: differs from the payload's own hash"),
        ("3", "a row is a JSON object"),
        ("null", "a row is a JSON object"),
    ],
)
def test_a_json_row_is_refused_on_its_own_and_keeps_its_bytes(row: str, reason: str) -> None:
    found = rows_from_json(f'[{{"speed": 1}}, {row} , {{"speed": 2}}]'.encode(), CONTRACT, NOW_US)
    assert (found.indexes, found.batch.column("speed").to_pylist(), found.count) == ((0, 2), [1.0, 2.0], 3)
    assert [(each.index, each.reason, each.raw) for each in found.rejected] == [(1, reason, row.encode())]


def test_one_object_is_one_row_and_an_absent_event_time_is_when_it_landed() -> None:
    found = rows_from_json(b' {"speed": 3} ', CONTRACT, NOW_US)
    assert found.batch.to_pylist()[0]["event_time"] == NOW
    assert found.batch.schema.equals(row_schema(CONTRACT))


def test_a_payload_travels_as_base64_and_is_hashed() -> None:
    body = json.dumps({"speed": 1, "payload_b64": base64.b64encode(PAYLOAD).decode(), "seen_at": "2026-01-05T13:00:00+01:00"})
    row = rows_from_json(body.encode(), CONTRACT, NOW_US).batch.to_pylist()[0]
    assert (row["payload"], row["payload_sha256"], row["seen_at"]) == (PAYLOAD, DIGEST, NOW)


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"3", b'"x"', b"[", b"[1", b"[1,", b"[1,]", b"[1 2]", b"[1]x", b"{}x", b"{", b"\xff", b"[" * 100_000,
     b'{"a":' * 100_000,
     b"[" + b"9" * 10_000 + b"]", b"\xef\xbb\xbf{}", b'{"a": 1}{"a": 2}', b"[{'a': 1}]", b"not json"],
)  # fmt: skip
def test_a_body_that_is_not_json_is_refused_whole(body: bytes) -> None:
    with pytest.raises(JsonBodyError):
        rows_from_json(body, CONTRACT, NOW_US)


def test_a_body_above_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(JsonBodyError, match="above the limit of 10"):
        rows_from_json(b"\xff" * 11, CONTRACT, NOW_US, max_bytes=10)


def test_an_empty_list_is_no_rows() -> None:
    assert rows_from_json(b" [ ] ", CONTRACT, NOW_US).count == 0


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_rows_or_a_refusal(body: bytes) -> None:
    try:
        assert rows_from_json(body, CONTRACT, NOW_US).count >= 0
    except JsonBodyError as error:
        assert str(error)  # noqa: PT017 - both outcomes are fine


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=5,
)
_NAMES = st.sampled_from([*row_schema(CONTRACT).names, "payload_b64", "other"])


@pytest.mark.slow
@given(st.lists(_JSON | st.dictionaries(_NAMES, _JSON, max_size=4), max_size=6), st.booleans())
@settings(max_examples=200, deadline=None)
def test_every_row_of_a_json_body_is_accepted_or_refused_with_its_place(values: list[Any], ascii_only: bool) -> None:
    body = json.dumps(values, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        found = rows_from_json(body, CONTRACT, NOW_US)
    except JsonBodyError:
        return  # lone surrogates written raw are not UTF-8
    assert sorted([*found.indexes, *(each.index for each in found.rejected)]) == list(range(len(values)))
    assert found.batch.num_rows == len(found.indexes)
    assert len(reasons(found.batch, CONTRACT)) == found.batch.num_rows
    for each in found.rejected:
        assert json.dumps(json.loads(each.raw)) == json.dumps(values[each.index])
