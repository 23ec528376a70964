"""Decode the bytes of one envelope into a record batch, under limits that hold before anything is parsed. No IO.

The order matters: size, then decompression with a bound, then the IPC head, then full validation, then the count. A
mutated IPC body that skips validation kills the process, not the parse.

Event times that a device could not know are shifted by what it found out later, or set by a person who replays them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from pipelines.contracts.arrow import row_schema
from pipelines.contracts.json_rows import JsonBodyError, RejectedRow, rows_from_json
from pipelines.ingest.written_size import UnreadableTypeError, check_types, row_width, written_bytes
from schemas.contract import Contract
from schemas.envelope import EVENT_TIME, JSON, MAX_SAMPLES_PER_ENVELOPE, ZSTD, parse_clock_shift
from schemas.errors import EnvelopeError

ROWS = "application/vnd.catchment.rows"
"""The body of rows that a contract refused: Arrow IPC with their seqs as a column. Only a replay may say so; no device can."""

MAX_ZSTD_RATIO = 1_000
MIN_ZSTD_BOUND = 16 * 1024 * 1024
MAX_COLUMNS = 4_096
_OTHER_FORMS = (
    (b"ARROW1", "an Arrow IPC file (or Feather), not a stream"),
    (b"PAR1", "a Parquet file"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd, and contentencoding does not say so"),
    (b"\x1f\x8b", "compressed with gzip"),
)

CLOCK_BOOT, CLOCK_SHIFT = "clockboot", "clockshift"
CLOCK_SET = "clockset"
"""The property of a replay that sets event times: `received`, or the microseconds since 1970 of the first sample."""
RECEIVED = "received"
NEVER_SET = (
    "event_time: the device's clock was not set when it captured this, and never was until it restarted;"
    " give the time: catchment quarantine replay --event-time received"
)

_QUALITY = "clock_quality"
_CORRECTED, _LESS_EXACT = "corrected", "unsynchronised"


class DecodeError(Exception):
    """The body of an envelope cannot be read; the message is the reason. It never leaves the run: it becomes quarantine."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The readable samples of one envelope.

    Row k of `batch` has seq first_seq + indexes[k]; None means that all are there in order. `rejected` only with JSON. `bytes`
    is what the batch takes in memory, roughly.
    """

    batch: pa.RecordBatch
    indexes: Sequence[int] | None = None
    rejected: tuple[RejectedRow, ...] = ()
    bytes: int = 0


Body: TypeAlias = pa.Buffer


def plain_body(body: Body, encoding: str, max_bytes: int) -> Body:
    """The body without its content encoding.

    Raises:
        DecodeError: too large, before or after, or not zstd.
    """
    if body.size > max_bytes:
        raise DecodeError(f"body of {body.size} bytes is above the limit of {max_bytes}")
    if not encoding:
        return body
    if encoding != ZSTD:
        raise DecodeError(f"content encoding {encoding[:40]!r} is none that the core reads")
    bound = min(max_bytes, max(MIN_ZSTD_BOUND, body.size * MAX_ZSTD_RATIO))
    try:
        declared = zstandard.get_frame_parameters(body).content_size
        if declared not in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) and declared > bound:
            raise DecodeError(f"zstd body of {body.size} bytes unpacks to {declared}, above the limit of {bound}")
        with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(body, read_across_frames=False) as reader:
            # One byte more than allowed: a sender that declared nothing, or a lie, is found out at the bound.
            plain = reader.read(bound + 1) if declared < 0 or declared > bound else reader.read(declared + 1)
    except zstandard.ZstdError as error:
        raise DecodeError(f"not zstd: {error}") from error
    if len(plain) > bound:
        raise DecodeError(f"zstd body of {body.size} bytes unpacks to more than the limit of {bound}")
    if len(plain) < declared <= bound:
        raise DecodeError(f"the zstd frame is cut off: {len(plain)} of {declared} bytes are there")
    return pa.py_buffer(plain)


def arrow_rows(body: Body, count: int, max_bytes: int, wanted: pa.Schema | None = None) -> Rows:
    """The one record batch of an Arrow IPC stream body.

    Args:
        body: the stream.
        count: samples, as the head says.
        max_bytes: the most that the rows may take, unpacked, and again once they are cast.
        wanted: what they will be cast to; None: their own types with every value written out.

    Raises:
        DecodeError: not such a stream, not exactly one batch, not valid Arrow, or another row count than the head says.
    """
    batch = _only_batch(body)
    if batch.num_rows != count:
        raise DecodeError(f"the head says {count} samples, the body holds {batch.num_rows}")
    # Buffers that are compressed one by one make a small body of a large batch: what counts is what lies in memory now.
    plain = batch.get_total_buffer_size()
    if plain > max(max_bytes, body.size):
        raise DecodeError(f"body of {body.size} bytes unpacks to {plain}, above the limit of {max_bytes}")
    try:
        size = written_bytes(batch, wanted, max_bytes)
    except UnreadableTypeError as error:
        raise DecodeError(str(error)) from error
    if size > max_bytes:
        raise DecodeError(
            f"body of {body.size} bytes stands for {size} with all values written out, above the limit of {max_bytes}"
        )
    return Rows(batch, bytes=max(body.size, size, plain))


def json_rows(body: Body, count: int, contract: Contract, received_us: int, max_bytes: int) -> Rows:
    """The rows of a JSON body.

    Raises:
        DecodeError: not JSON of rows, or another row count than the head says.
    """
    width = row_width(row_schema(contract))
    if count * width > max_bytes:
        raise DecodeError(f"{count} rows of contract {contract.name} take {count * width} bytes, above the limit of {max_bytes}")
    try:
        read = rows_from_json(body.to_pybytes(), contract, received_us, max_bytes, max(count, max_bytes // width))
    except JsonBodyError as error:
        raise DecodeError(str(error)) from error
    if read.count != count:
        raise DecodeError(f"the head says {count} samples, the body holds {read.count}")
    return Rows(read.batch, read.indexes, read.rejected, read.batch.nbytes)


def replayed_rows(body: Body, count: int, first_seq: int, max_bytes: int) -> Rows:
    """The rows of a replay, their seqs next to them.

    Raises:
        DecodeError: as `arrow_rows`.
    """
    batch = arrow_rows(body, count, max_bytes).batch
    seqs = batch.column("seq").to_numpy()
    return Rows(batch.drop_columns(["seq"]), (seqs - first_seq).tolist(), bytes=body.size)


def decode(  # an envelope is these things, and a carrier for them alone would hide the limits
    body: Body,
    *,
    content_type: str,
    encoding: str,
    count: int,
    first_seq: int,
    contract: Contract,
    received_us: int,
    max_bytes: int,
) -> Rows:
    """One envelope's rows, by its content type.

    Raises:
        DecodeError: the reason why its whole body is refused.
    """
    if not 1 <= count <= MAX_SAMPLES_PER_ENVELOPE:
        raise DecodeError(f"{count} samples; an envelope holds 1 to {MAX_SAMPLES_PER_ENVELOPE}")
    plain = plain_body(body, encoding, max_bytes)
    if content_type == ROWS:
        return replayed_rows(plain, count, first_seq, max_bytes)
    if content_type == JSON:
        return json_rows(plain, count, contract, received_us, max_bytes)
    return arrow_rows(plain, count, max_bytes, row_schema(contract))


def _only_batch(body: Body) -> pa.RecordBatch:
    """The record batch of the stream, validated in full."""
    other = next((name for magic, name in _OTHER_FORMS if body[: len(magic)].to_pybytes() == magic), "")
    if other:
        raise DecodeError(f"the body is {other}; send an Arrow IPC stream")
    try:
        with pa.ipc.open_stream(body) as reader:
            if len(reader.schema) > MAX_COLUMNS:
                raise DecodeError(f"{len(reader.schema)} columns are above the limit of {MAX_COLUMNS}")
            _read_texts(reader.schema)
            check_types(reader.schema)
            batch = reader.read_next_batch()
            batch.validate(full=True)
            more = _has_more(reader)
    except StopIteration:
        raise DecodeError("the Arrow stream holds no record batch") from None
    except UnreadableTypeError as error:
        raise DecodeError(str(error)) from error
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DecodeError(f"not a valid Arrow IPC stream: {str(error)[:300]}") from error
    if more:
        raise DecodeError("the Arrow stream holds more than one record batch")
    return batch


def _has_more(reader: pa.RecordBatchReader) -> bool:
    try:
        reader.read_next_batch()
    except StopIteration:
        return False
    return True


def _read_texts(schema: pa.Schema) -> None:
    """Arrow takes any bytes for a column's name or a time zone: what is no UTF-8 shall raise here, not in our own code."""
    _ = schema.names
    _ = [type_.tz for type_ in schema.types if pa.types.is_timestamp(type_)]


class ClockNote(NamedTuple):
    """The envelope's note on the clock of its event times, as text; None where there is none."""

    boot: str | None = None
    shift: str | None = None
    set_to: str | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether the clock was not set and nothing tells by how much it was off."""
        return self.boot is not None and self.shift is None and self.set_to is None


NOTHING = ClockNote()


def correct_times(rows: Rows, note: ClockNote, contract: Contract, received_us: int) -> Rows:
    """The rows with their true event times, marked as corrected where the contract has a column for it.

    Args:
        rows: as the device sent them.
        note: what the envelope says of its clock.
        contract: of the stream.
        received_us: when the envelope landed, microseconds since 1970.

    Raises:
        DecodeError: the shift is malformed, or leads out of the range of timestamps.
    """
    place = rows.batch.schema.get_field_index(EVENT_TIME)
    if (note.shift is None and note.set_to is None) or place < 0:
        return rows
    times = rows.batch.column(place)
    if not pa.types.is_timestamp(times.type):
        return rows  # the contract refuses it by its type
    try:
        micros = times.cast(pa.timestamp("us", times.type.tz)).cast(pa.int64())
        moved = pc.add_checked(micros, pa.scalar(_shift_us(note, micros, received_us), pa.int64()))
    except (pa.ArrowInvalid, EnvelopeError) as error:
        raise DecodeError(f"event times cannot be corrected: {error}") from error
    batch = rows.batch.set_column(place, EVENT_TIME, moved.cast(pa.timestamp("us", "UTC")))
    return replace(rows, batch=_marked(batch, contract))


def _shift_us(note: ClockNote, micros: pa.Int64Array, received_us: int) -> int:
    if note.set_to is None:
        assert note.shift is not None, "asked only where one of the two is there"
        return parse_clock_shift(note.shift)
    bounds = pc.min_max(micros).as_py()
    if bounds["min"] is None:
        return 0
    if note.set_to == RECEIVED:
        # The newest sample is taken for as old as its envelope: the others keep their distances from it.
        return int(received_us - bounds["max"])
    return int(int(note.set_to) - bounds["min"])


def _marked(batch: pa.RecordBatch, contract: Contract) -> pa.RecordBatch:
    column = contract.column(_QUALITY)
    if column is None:
        return batch
    word = next((word for word in (_CORRECTED, _LESS_EXACT) if not column.allowed or word in column.allowed), None)
    values = pa.repeat(pa.scalar(word, pa.string()), batch.num_rows)
    place = batch.schema.get_field_index(_QUALITY)
    return batch.append_column(_QUALITY, values) if place < 0 else batch.set_column(place, _QUALITY, values)
