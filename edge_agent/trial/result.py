"""What a trial of one source found: columns, samples, refusals; made of batches. Pure but for the sizes of files."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.sources.api import SampleBatch, Scalar
from edge_agent.trial.judge import refusals
from schemas.contract import Column, ColumnType, Contract

_MAX_SHOWN_CHARS = 120
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class TriedColumn(msgspec.Struct, frozen=True):
    """What a column of the contract got: of how many samples, and from which name of the source where that is known."""

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
    """What each column of the contract got. `matched`: column -> the source's name for it."""
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
