"""Event times that a device could not know: shifted by what it found out later, or set by a person who replays them. No IO."""

from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ingest.decode import DecodeError, Rows
from schemas.contract import Contract
from schemas.envelope import EVENT_TIME, parse_clock_shift
from schemas.errors import EnvelopeError

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


class ClockNote(NamedTuple):
    """What an envelope says of the clock its event times were read from, as text; None where it says nothing."""

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
