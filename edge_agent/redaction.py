"""Make a batch harmless as its contract says, before anything is stored. Fails closed.

Each cell is redacted as its column says; pictures by a process of their own.
A row that cannot be redacted is dropped and counted.
"""

import hashlib
import hmac
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from edge_agent.errors import ConfigError, UnredactableError
from edge_agent.pictures.process import HarmfulPictureError, PictureProcess, shared_pictures
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from schemas.contract import HASH_CHARS, MASK, Column, ColumnType, Contract

Redactor = Callable[[Scalar], Scalar]
_MICROS = 1_000_000


def redactor(column: Column, key: bytes) -> Redactor | None:
    """Make the function that redacts a cell of this column; None if the contract declares no redaction. Null stays null.

    Args:
        column: of the contract.
        key: of the keyed hash.
    """
    redact = column.redact
    if redact is None:
        return _fields_redactor(column, key)
    if redact.how == "drop":
        return lambda _: None
    if redact.how == "mask":
        return lambda value: mask(value, redact.keep)
    if redact.how == "hash":
        # The column's name is part of what is hashed: equal texts in two columns do not give each other away.
        return lambda value: keyed_hash(value, key, column.name)
    return lambda value: coarsen(value, column, redact.step or 1.0)


def _fields_redactor(column: Column, key: bytes) -> Redactor | None:
    """Make the function that redacts the fields of a struct; None where none of them is redacted."""
    qualified = {field.name: msgspec.structs.replace(field, name=f"{column.name}_{field.name}"[:63]) for field in column.fields}
    found = {name: one for name, field in qualified.items() if (one := redactor(field, key)) is not None}
    if not found:
        return None

    def redact_fields(value: Scalar) -> Scalar:
        if value is None:
            return None
        if column.type is ColumnType.LIST_STRUCT and isinstance(value, list):
            return [redact_fields(item) for item in value]
        if not isinstance(value, dict):
            raise UnredactableError(f"column {column.name}: no object")
        return {name: found[name](cell) if name in found else cell for name, cell in value.items()}

    return redact_fields


def mask(value: Scalar, keep: int) -> Scalar:
    """`***` and the last `keep` characters; of a text that is not longer than twice that, nothing is kept."""
    text = _text(value)
    if text is None:
        return None
    return MASK + (text[-keep:] if keep and len(text) > 2 * keep else "")


def keyed_hash(value: Scalar, key: bytes, name: str) -> Scalar:
    """32 hexadecimal digits: equal for equal texts under one key, and nothing without the key."""
    text = _text(value)
    if text is None:
        return None
    return hmac.new(key, f"{name}\0{text}".encode(), hashlib.sha256).hexdigest()[:HASH_CHARS]


def coarsen(value: Scalar, column: Column, step: float) -> Scalar:
    """Down to whole steps, and never outside the column's own bounds. Timestamps: steps of seconds."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UnredactableError(f"column {column.name}: no number to coarsen")
    if column.type is ColumnType.TIMESTAMP:
        return cut_time(int(value), step)
    low = math.floor(value / step) * step
    if column.minimum is not None:
        low = max(low, column.minimum)
    # 8.1 is 81 * 0.1 only to the last bit: digits below the step would look like precision that is not there.
    return int(low) if column.type in (ColumnType.INT32, ColumnType.INT64) else round(low, max(0, 12 - round(math.log10(step))))


def cut_time(micros: int, step_s: float) -> int:
    """Down to whole steps of so many seconds since 1970."""
    step_us = max(1, round(step_s * _MICROS))
    return micros // step_us * step_us


def _text(value: Scalar) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UnredactableError("no text")
    return value


class BatchRedactor:
    """Redacts the batches of one stream.

    Args:
        contract: what must be done.
        key: of the keyed hash; empty where the device has none.
        rejects: where rows are counted that cannot be redacted.

    Raises:
        ConfigError: the contract asks for a keyed hash and there is no key, or for pictures and pillow is not installed.
    """

    def __init__(self, contract: Contract, key: bytes, rejects: Rejects) -> None:
        self._contract = contract
        self._rejects = rejects
        every = [inner for column in contract.columns for inner in (column, *column.fields)]
        if not key and any(column.redact is not None and column.redact.how == "hash" for column in every):
            raise ConfigError(f"contract {contract.name} asks for a keyed hash and there is no key: set `key` under [redaction]")
        found = {column.name: redactor(column, key) for column in contract.columns}
        self._cells = {name: one for name, one in found.items() if one is not None}
        self._image = contract.payload.redact if contract.payload is not None else None
        self._decoder = None if self._image is None else _pictures(contract)

    def __call__(self, batch: SampleBatch) -> SampleBatch:
        """The batch without what must not leave the device: fewer rows where some cannot be redacted."""
        refused: set[int] = set()
        columns = {
            name: self._column(values, self._cells[name], refused) if name in self._cells else values
            for name, values in batch.columns.items()
        }
        payloads = batch.payloads
        if self._decoder is not None and payloads is not None:
            payloads = self._redacted(batch, payloads, refused)
        times = batch.event_time_us
        if self._contract.event_time_step_s is not None:
            step_s = self._contract.event_time_step_s
            times = [cut_time(time, step_s) for time in times]
        done = replace(batch, event_time_us=times, columns=columns, payloads=payloads)
        return done if not refused else done.take([row for row in range(len(batch)) if row not in refused])

    def _column(self, values: Sequence[Scalar], redact: Redactor, refused: set[int]) -> Sequence[Scalar]:
        out: list[Scalar] = []
        for row, value in enumerate(values):
            try:
                out.append(redact(value))
            except UnredactableError as error:
                self._refuse(row, str(error), refused)
                out.append(None)
            except (ValueError, TypeError, OverflowError) as error:
                self._refuse(row, type(error).__name__, refused)  # its message may quote the value
                out.append(None)
        return out

    def _redacted(
        self, batch: SampleBatch, payloads: Sequence[bytes | Path | None], refused: set[int]
    ) -> list[bytes | Path | None]:
        assert self._decoder is not None
        assert self._image is not None
        regions = batch.columns.get(self._image.column, [None] * len(batch))
        out: list[bytes | Path | None] = []
        for row, payload in enumerate(payloads):
            try:
                if payload is None or row in refused:
                    out.append(None)
                else:
                    out.append(self._decoder.redact(self._image, payload, regions[row]))
            except HarmfulPictureError as error:
                self._refuse(row, str(error), refused)
                out.append(None)
        return out

    def _refuse(self, row: int, reason: str, refused: set[int]) -> None:
        if row not in refused:
            refused.add(row)
            # The example is left out: a log must not hold what was not to be stored.
            self._rejects.count(f"row: cannot be redacted: {reason}")


def _pictures(contract: Contract) -> PictureProcess:
    try:
        return shared_pictures("redact")
    except ConfigError as error:
        raise ConfigError(
            f"contract {contract.name} asks for regions of pictures to be hidden: install catchment[redact] (pillow); {error}"
        ) from error
