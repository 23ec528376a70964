"""What the core will say of samples: the checks of a contract on plain values, with the core's own reasons. Pure.

The core checks whole columns by its engine; this is the same list for a handful of samples, and a test keeps the two equal.
Quality rules are the core's alone: their language is compiled there.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge_agent.sources.api import SampleBatch
from schemas.contract import LIST_TYPES, VECTOR_TYPES, Column, ColumnType, Contract
from schemas.envelope import EVENT_TIME, PAYLOAD

EARLIEST, LATEST = "1990-01-01T00:00:00Z", "2100-01-01T00:00:00Z"
EARLIEST_US, LATEST_US = 631_152_000_000_000, 4_102_444_800_000_000
_FLOATS = frozenset({ColumnType.FLOAT32, ColumnType.FLOAT64})


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
        if isinstance(value, dict):
            for field in column.fields:
                yield from _of_value(field, value.get(field.name), f"{column.name}.{field.name}")
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
