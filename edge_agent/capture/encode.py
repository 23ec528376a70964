"""From a batch of samples to envelopes: Arrow IPC bodies built from plain buffers, large payloads set apart as files."""

import hashlib
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, TypeVar

import nanoarrow as na
import structlog

from catchment.runtime.clock import doubled_s
from edge_agent.capture.ipc_form import Filled, Form
from edge_agent.errors import EncodingError, SpoolFullError
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.spool.records import ClockReference, NewEnvelope, ObjectRef
from schemas.contract import Column, ColumnType, Contract, item_of
from schemas.envelope import EVENT_TIME, PAYLOAD, PAYLOAD_SHA256, ZSTD

# The tries of a batch whose payload cannot be read, and the longest wait for a full disk.
MAX_TRIES = 3
_WAIT_CAP_S = 30.0

log = structlog.get_logger(__name__)


# Joining small batches: an envelope of a thousand samples costs little more than one of ten; and splitting them. Pure.
def may_join(first: SampleBatch, second: SampleBatch) -> bool:
    """Whether two batches fill the same columns, so that they can share envelopes."""
    is_alike = (first.payloads is None, first.agent_clock) == (second.payloads is None, second.agent_clock)
    return is_alike and first.columns.keys() == second.columns.keys()


def join_batches(batches: Sequence[SampleBatch]) -> SampleBatch:
    """One batch of all samples in order; its position is the last one given."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    return SampleBatch(
        event_time_us=list(chain.from_iterable(batch.event_time_us for batch in batches)),
        columns={name: list(chain.from_iterable(batch.columns[name] for batch in batches)) for name in first.columns},
        payloads=None if first.payloads is None else list(chain.from_iterable(batch.payloads or () for batch in batches)),
        position=last_position(batches),
        agent_clock=first.agent_clock,
    )


def last_position(batches: Sequence[SampleBatch]) -> bytes | None:
    """The last position that one of these batches, in order, tells; a source need not tell one with each."""
    return next((batch.position for batch in reversed(batches) if batch.position is not None), None)


FindReferences = Callable[[Sequence[int]], Sequence[ClockReference | None]]


def split_unset(batch: SampleBatch, references: FindReferences | None) -> list[tuple[SampleBatch, ClockReference | None]]:
    """A batch in parts: samples whose event time was read from this machine's clock while it was not set stand apart.

    Args:
        batch: the samples.
        references: gives the basis of event times of this machine's clock, None of one that is right; None: all are stored as
            they are.

    Returns:
        (samples, what their times rest on where they need correction), in the batch's order within each.
    """
    if references is None or not batch.agent_clock or not len(batch):
        return [(batch, None)]
    clocks = references(batch.event_time_us)
    if len(set(clocks)) == 1:
        return [(batch, clocks[0])]
    rows: dict[ClockReference | None, list[int]] = {}
    for row, clock in enumerate(clocks):
        rows.setdefault(clock, []).append(row)
    return [(batch if len(part) == len(batch) else batch.take(part), clock) for clock, part in rows.items()]


# C schemas, made once: building one per column and batch costs more than filling the column.
_TIME = na.c_schema(na.timestamp("us", "UTC"))
_STRING = na.c_schema(na.string())
_BINARY = na.c_schema(na.binary())
_TYPES = {
    ColumnType.STRING: _STRING,
    ColumnType.BOOL: na.c_schema(na.bool_()),
    ColumnType.INT32: na.c_schema(na.int32()),
    ColumnType.INT64: na.c_schema(na.int64()),
    ColumnType.FLOAT32: na.c_schema(na.float32()),
    ColumnType.FLOAT64: na.c_schema(na.float64()),
    ColumnType.TIMESTAMP: _TIME,
    ColumnType.BINARY: _BINARY,
}
_ARRAY_CODES = {
    ColumnType.INT32: "i",
    ColumnType.INT64: "q",
    ColumnType.TIMESTAMP: "q",
    ColumnType.FLOAT32: "f",
    ColumnType.FLOAT64: "d",
}
_BIT_OF_BYTE = bytes.maketrans(b"\x00\x01", b"01")
_ZSTD_LEVEL = 3
_NestT = TypeVar("_NestT", list[Any], dict[str, Any])
_MAX_FORMS = 64

PutObject = Callable[[bytes | Path], ObjectRef]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of a batch: bodies of about `envelope_bytes`; payloads above `part_threshold_bytes` travel as parts."""

    envelope_bytes: int
    part_threshold_bytes: int


@dataclass(slots=True)
class _Piece:
    """Consecutive samples `[start, end)` of a batch that share one envelope."""

    start: int
    end: int
    payloads: list[bytes | None]
    digests: list[str | None]
    large: ObjectRef | None = None


class Encoder:
    """Turns batches of one stream into envelopes.

    Args:
        contract: of the stream; columns it does not have are refused.
        limits: how batches are cut.
        put_object: stores a large payload and names it.
        compress: whether bodies are compressed with zstd.
        references: what times of a clock that is not set rest on; None: such samples are stored as they are.
    """

    def __init__(
        self,
        contract: Contract,
        limits: BatchLimits,
        put_object: PutObject,
        *,
        compress: bool = False,
        references: FindReferences | None = None,
    ) -> None:
        self.contract = contract
        self._limits = limits
        self._put_object = put_object
        self._references = references
        self._columns = {column.name: column for column in contract.columns}
        self._row_bytes = 0
        self._forms: dict[tuple[tuple[str, ...], bool], Form] = {}
        self._compress = _zstd_compressor() if compress else None

    def encode(self, batch: SampleBatch, created_us: int) -> tuple[NewEnvelope, ...]:
        """The envelopes of a batch, in its order; samples of a clock that was not set have envelopes of their own.

        Raises:
            EncodingError: a column is not the contract's, or a value does not fit its type.
            SpoolFullError: a large payload cannot be stored.
        """
        unknown = batch.columns.keys() - self._columns.keys()
        if unknown:
            raise EncodingError(f"column {min(unknown)} is not in contract {self.contract.name} {self.contract.version}")
        parts = split_unset(batch, self._references)
        return tuple(envelope for part, clock in parts for envelope in self._encode(part, created_us, clock))

    def _encode(self, batch: SampleBatch, created_us: int, clock: ClockReference | None) -> list[NewEnvelope]:
        envelopes = []
        for piece in self._pieces(batch):
            body = self._body(batch, piece)
            self._row_bytes = max(1, len(body) // (piece.end - piece.start))
            if self._compress is not None:
                body = self._compress(body)
            envelopes.append(
                NewEnvelope(
                    count=piece.end - piece.start,
                    body=body,
                    contract_version=self.contract.version,
                    encoding=ZSTD if self._compress is not None else "",
                    created_us=created_us,
                    large=piece.large,
                    clock=clock,
                )
            )
        return envelopes

    def _pieces(self, batch: SampleBatch) -> Iterator[_Piece]:
        if batch.payloads is None:
            yield from self._even_pieces(len(batch))
            return
        piece = _Piece(0, 0, [], [])
        piece_bytes = 0
        for index, payload in enumerate(batch.payloads):
            size_bytes = payload_bytes(payload)
            is_large = size_bytes > self._limits.part_threshold_bytes
            if piece.end > piece.start and (is_large or piece_bytes + size_bytes > self._limits.envelope_bytes):
                yield piece
                piece, piece_bytes = _Piece(index, index, [], []), 0
            if is_large and payload is not None:
                ref = self._put_object(payload)
                yield _Piece(index, index + 1, [None], [ref.digest], ref)
                piece = _Piece(index + 1, index + 1, [], [])
                continue
            content = payload.read_bytes() if isinstance(payload, Path) else payload
            piece.payloads.append(content)
            piece.digests.append(None if content is None else hashlib.sha256(content).hexdigest())
            piece.end = index + 1
            piece_bytes += size_bytes
        if piece.end > piece.start:
            yield piece

    def _even_pieces(self, rows: int) -> Iterator[_Piece]:
        """Without payloads rows are alike: cut by the bytes a row took last time."""
        step = max(1, self._limits.envelope_bytes // self._row_bytes) if self._row_bytes else min(rows, 1_000)
        for start in range(0, rows, step):
            yield _Piece(start, min(start + step, rows), [], [])

    def _body(self, batch: SampleBatch, piece: _Piece) -> bytes:
        columns = [_primitive(batch.event_time_us[piece.start : piece.end], "q")]
        for name, values in batch.columns.items():
            columns.append(_column(self._columns[name], values[piece.start : piece.end]))
        if batch.payloads is not None:
            columns.append(_variable(piece.payloads))
            columns.append(_variable([None if digest is None else digest.encode() for digest in piece.digests]))
        form = self._form(tuple(batch.columns), has_payload=batch.payloads is not None)
        return form.fill(piece.end - piece.start, columns)

    def _form(self, names: tuple[str, ...], *, has_payload: bool) -> Form:
        """The record's form; sources fill the same columns again and again, so each is made once."""
        key = (names, has_payload)
        if key not in self._forms:
            fields = {EVENT_TIME: _TIME, **{name: _schema(self._columns[name]) for name in names}}
            if has_payload:
                fields |= {PAYLOAD: _BINARY, PAYLOAD_SHA256: _STRING}
            if len(self._forms) >= _MAX_FORMS:
                self._forms.clear()
            self._forms[key] = Form(fields)
        return self._forms[key]


def payload_bytes(payload: bytes | Path | None) -> int:
    """The size of a payload, in memory or in a file."""
    if payload is None:
        return 0
    return len(payload) if isinstance(payload, bytes) else payload.stat().st_size


def _schema(column: Column) -> object:
    """The C schema of a column. Vectors are lists, whose length the contract checks, as in the lake."""
    if column.type is ColumnType.STRUCT:
        return na.c_schema(na.struct({field.name: _schema(field) for field in column.fields}))
    if column.type in _TYPES:
        return _TYPES[column.type]
    return na.c_schema(na.list_(_schema(item_of(column))))


def _column(column: Column, values: Sequence[Scalar]) -> Filled:
    try:
        if column.type is ColumnType.STRING:
            return _variable([None if value is None else value.encode() for value in values])  # type: ignore[union-attr]
        if column.type is ColumnType.BINARY:
            return _variable(values)  # type: ignore[arg-type]
        if column.type is ColumnType.BOOL:
            return _boolean(values)
        if column.type is ColumnType.STRUCT:
            return _struct(column, values)
        if column.type in _ARRAY_CODES:
            return _primitive(values, _ARRAY_CODES[column.type])
        return _list(column, values)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise EncodingError(f"column {column.name}: a value does not fit type {column.type}: {error}") from error


def _list(column: Column, values: Sequence[Scalar]) -> Filled:
    lists = [_of(list, value) for value in values]
    items = list(chain.from_iterable(lists))
    nulls, validity = _validity(values)
    offsets = array("i", accumulate(map(len, lists), initial=0))
    return Filled(nulls, (validity, offsets), (replace(_column(item_of(column), items), rows=len(items)),))


def _struct(column: Column, values: Sequence[Scalar]) -> Filled:
    nulls, validity = _validity(values)
    rows = [_of(dict, value) for value in values]
    children = tuple(replace(_column(field, [row.get(field.name) for row in rows]), rows=len(rows)) for field in column.fields)
    return Filled(nulls, (validity,), children)


def _of(kind: type[_NestT], value: Scalar) -> _NestT:
    """The value, an empty one for null."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} is no {kind.__name__}")
    return value


def _primitive(values: Sequence[Scalar], code: str) -> Filled:
    nulls, validity = _validity(values)
    filled = values if nulls == 0 else [0 if value is None else value for value in values]
    numbers = array(code, filled)  # type: ignore[type-var]  # what is no number raises TypeError here
    return Filled(nulls, (validity, numbers))


def _variable(values: Sequence[bytes | None]) -> Filled:
    nulls, validity = _validity(values)
    filled = values if nulls == 0 else [b"" if value is None else value for value in values]
    offsets = array("i", accumulate(map(len, filled), initial=0))  # type: ignore[arg-type]
    data = b"".join(filled)  # type: ignore[arg-type]
    return Filled(nulls, (validity, offsets, data))


def _boolean(values: Sequence[Scalar]) -> Filled:
    nulls, validity = _validity(values)
    for value in values:
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{value!r} is no bool")
    return Filled(nulls, (validity, _bits(bytes(map(bool, values)))))


def _validity(values: Sequence[object]) -> tuple[int, bytes]:
    if None not in values:
        return 0, b""
    flags = bytes(value is not None for value in values)
    return flags.count(0), _bits(flags)


def _bits(flags: bytes) -> bytes:
    """Arrow's bitmap, least significant bit first: the flags read backwards are the digits of one binary number."""
    number = int(flags[::-1].translate(_BIT_OF_BYTE), 2) if flags else 0
    return number.to_bytes((len(flags) + 7) // 8, "little")


def _zstd_compressor() -> Callable[[bytes], bytes]:
    # Imported only when asked for: it is memory that a small device need not spend.
    import zstandard  # noqa: PLC0415

    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True).compress


if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("the agent writes Arrow buffers as the machine holds them and supports little-endian machines only")


class RetryingEncoder:
    """Encodes batches so that none can hold up those behind it permanently.

    Args:
        encoder: of the stream's contract.
        rejects: where rows are counted that cannot be encoded.
        first_wait_s: before the second try; each later one waits twice as long.
    """

    def __init__(self, encoder: Encoder, rejects: Rejects, first_wait_s: float = 0.5) -> None:
        self._encoder = encoder
        self._rejects = rejects
        self._first_wait_s = first_wait_s

    @property
    def contract(self) -> Contract:
        """Of the stream."""
        return self._encoder.contract

    def encode(self, batch: SampleBatch, created_us: int, stop: threading.Event) -> tuple[NewEnvelope, ...]:
        """The envelopes of all rows that can be encoded, in order; none where no row can.

        Raises:
            SpoolFullError: the disk was still full when `stop` was set.
            OSError: a payload could not be read, or its file not be written, when `stop` was set.
        """
        tries = 0
        while True:
            try:
                return self._encoder.encode(batch, created_us)
            except EncodingError:
                return self._rows_apart(batch, created_us, (EncodingError,))
            except (OSError, SpoolFullError) as error:
                tries += 1
                if isinstance(error, OSError) and tries >= MAX_TRIES:
                    # Not the disk of the spool: that one tells SpoolFullError. A payload's file is gone or rotten.
                    return self._rows_apart(batch, created_us, (EncodingError, OSError))
                wait_s = doubled_s(self._first_wait_s, _WAIT_CAP_S, tries - 1)
                log.warning("samples_not_stored_yet", error=str(error), retry_in_s=wait_s)
                if stop.wait(wait_s):
                    if batch.position is None:
                        self._rejects.count("row: the disk was full when the agent stopped", times=len(batch))
                    raise

    def _rows_apart(self, batch: SampleBatch, created_us: int, refusals: tuple[type[Exception], ...]) -> tuple[NewEnvelope, ...]:
        """Halves of halves, until each row that cannot be encoded stands alone."""
        try:
            return self._encoder.encode(batch, created_us)
        except refusals as error:
            if len(batch) == 1:
                self._rejects.count(f"row: cannot be encoded: {error}")
                return ()
        middle = len(batch) // 2
        first = self._rows_apart(batch.take(range(middle)), created_us, refusals)
        return first + self._rows_apart(batch.take(range(middle, len(batch))), created_us, refusals)
