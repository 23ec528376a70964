"""The result of a trial of one source: columns, samples, and refusals by its contract. Pure but for the sizes of files.

The core checks whole columns by its engine; here is the same list for a handful of samples, with the core's own reasons, and
a test keeps the two equal. Quality rules are the core's alone: their language is compiled there.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.sources.api import SampleBatch, Scalar
from schemas.contract import LIST_TYPES, VECTOR_TYPES, Column, ColumnType, Contract
from schemas.envelope import EVENT_TIME, PAYLOAD

EARLIEST, LATEST = "1990-01-01T00:00:00Z", "2100-01-01T00:00:00Z"
EARLIEST_US, LATEST_US = 631_152_000_000_000, 4_102_444_800_000_000
_FLOATS = frozenset({ColumnType.FLOAT32, ColumnType.FLOAT64})

_MAX_SHOWN_CHARS = 120
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def refusals(batch: SampleBatch, contract: Contract) -> list[str | None]:
    """For each sample the first reason why the core refuses it; None where it accepts it."""
    return [next(_problems(batch, row, contract), None) for row in range(len(batch))]


def _problems(batch: SampleBatch, row: int, contract: Contract) -> Iterator[str]:
    time_us = batch.event_time_us[row]
    # A clock that is not set yet is corrected by the core once it is.
    is_corrected = batch.agent_clock and time_us < EARLIEST_US
    if not is_corrected and not EARLIEST_US <= time_us < LATEST_US:
        yield f"{EVENT_TIME}: before {EARLIEST} or after {LATEST}"
    for column in contract.columns:
        values = batch.columns.get(column.name)
        value = None if values is None else values[row]
        yield from _of_value(column, value, column.name)
        for item in value if column.type is ColumnType.LIST_STRUCT and isinstance(value, list) else [value]:
            if isinstance(item, dict):
                for field in column.fields:
                    yield from _of_value(field, item.get(field.name), f"{column.name}.{field.name}")
    if contract.payload is not None:
        yield from _of_payload(None if batch.payloads is None else batch.payloads[row], contract)


def _of_value(column: Column, value: Any, name: str) -> Iterator[str]:
    if value is None:
        if column.required:
            yield f"{name}: required, but null"
        return
    if _is_infinite(column, value):
        yield f"{name}: NaN or infinite"
    if column.minimum is not None and value < column.minimum:
        yield f"{name}: below the minimum of {column.minimum:g}"
    if column.maximum is not None and value > column.maximum:
        yield f"{name}: above the maximum of {column.maximum:g}"
    if column.allowed and value not in column.allowed:
        yield f"{name}: not one of {', '.join(column.allowed)}"[:200]
    if column.length is not None and (len(value) != column.length or None in value):
        yield f"{name}: not a vector of {column.length} numbers"
    if column.max_length is not None and len(value) > column.max_length:
        unit = {ColumnType.STRING: "characters", ColumnType.BINARY: "bytes"}.get(column.type, "items")
        yield f"{name}: longer than {column.max_length} {unit}"


def _is_infinite(column: Column, value: Any) -> bool:
    if column.type in _FLOATS:
        return not math.isfinite(value)
    if column.type in LIST_TYPES | VECTOR_TYPES and "float" in column.type:
        return not all(item is None or math.isfinite(item) for item in value)
    return False


def _of_payload(payload: bytes | Path | None, contract: Contract) -> Iterator[str]:
    spec = contract.payload
    assert spec is not None
    if payload is None:
        if spec.required:
            yield f"{PAYLOAD}: missing"
        return
    try:
        size_bytes = len(payload) if isinstance(payload, bytes) else payload.stat().st_size
    except OSError as error:
        yield f"{PAYLOAD}: cannot be read ({error.strerror})"
        return
    if size_bytes > spec.max_bytes:
        yield f"{PAYLOAD}: larger than {spec.max_bytes} bytes"
    if not size_bytes:
        yield f"{PAYLOAD}: empty"


class TriedColumn(msgspec.Struct, frozen=True):
    """A column of the contract: the number of samples that filled it, and the source's name for it where that is known."""

    name: str
    type: str
    is_required: bool
    filled: int
    source_name: str
    values: tuple[Any, ...]


class TriedSample(msgspec.Struct, frozen=True):
    """One sample as it would be stored, and why the core would refuse it; "" where it would not."""

    event_time: str
    columns: dict[str, Any]
    payload_bytes: int | None
    refusal: str


class Trial(msgspec.Struct, frozen=True):
    """One source.

    Attributes:
        rejected: reason -> rows, cells and files of which the agent makes no sample or no value.
        left_out: reason -> samples that configuration or contract leave out.
        left_out_names: names in the source that fill no column.
        failure: why the source does not run; "" where it does.
        notes: what this trial does not show.
    """

    source: str
    kind: str
    stream: str
    contract_version: str
    columns: tuple[TriedColumn, ...] = ()
    samples: tuple[TriedSample, ...] = ()
    rejected: dict[str, int] = {}
    left_out: dict[str, int] = {}
    left_out_names: tuple[str, ...] = ()
    failure: str = ""
    notes: tuple[str, ...] = ()

    @property
    def refused(self) -> int:
        """Samples that the core would refuse."""
        return sum(bool(sample.refusal) for sample in self.samples)

    @property
    def rows_rejected(self) -> int:
        """Rows and files of which no sample was made."""
        return sum(count for reason, count in self.rejected.items() if reason.startswith(("row", "file")))

    @property
    def is_good(self) -> bool:
        """Whether samples came and none would be refused, here or by the core."""
        return bool(self.samples) and not (self.failure or self.refused or self.rows_rejected)


def tried_columns(batches: Sequence[SampleBatch], contract: Contract, matched: Mapping[str, str]) -> tuple[TriedColumn, ...]:
    """Count what filled each column of the contract. `matched`: column -> the source's name for it."""
    return tuple(
        TriedColumn(
            column.name,
            _type(column),
            column.required,
            sum(value is not None for value in values),
            matched.get(column.name, ""),
            tuple(shown(value, column) for value in [value for value in values if value is not None][:3]),
        )
        for column in contract.columns
        for values in [[value for batch in batches for value in batch.columns.get(column.name, [None] * len(batch))]]
    )


def tried_samples(batches: Sequence[SampleBatch], contract: Contract) -> tuple[TriedSample, ...]:
    """Each sample, with what the core would say of it."""
    columns = {column.name: column for column in contract.columns}
    found: list[TriedSample] = []
    for batch in batches:
        for row, refusal in enumerate(refusals(batch, contract)):
            cells = {name: shown(values[row], columns[name]) for name, values in batch.columns.items() if name in columns}
            payload = None if batch.payloads is None else _size(batch.payloads[row])
            found.append(TriedSample(_time(batch.event_time_us[row]), cells, payload, refusal or ""))
    return tuple(found)


def shown(value: Scalar, column: Column) -> Any:
    """A value for people and JSON: bytes by their number, times as text, long texts cut."""
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if column.type is ColumnType.TIMESTAMP and isinstance(value, int):
        return _time(value)
    if isinstance(value, str) and len(value) > _MAX_SHOWN_CHARS:
        return value[:_MAX_SHOWN_CHARS] + "…"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):  # noqa: PLR0124 # NaN
        return repr(value)
    return value


def _type(column: Column) -> str:
    return f"{column.type}[{column.length}]" if column.length else str(column.type)


def _time(micros: int) -> str:
    try:
        return (_EPOCH + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return f"{micros} µs"


def _size(payload: bytes | Path | None) -> int | None:
    if payload is None or isinstance(payload, bytes):
        return None if payload is None else len(payload)
    try:
        return payload.stat().st_size
    except OSError:
        return None
