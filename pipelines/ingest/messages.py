"""Read landing rows as messages, and group those of one stream, contract version and schema.

A message has its head in Python values and its body still in the memory map. A group is validated, cast and tagged once, not
message by message.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ingest.admit import FreshSpans
from pipelines.ingest.decode import CLOCK_BOOT, CLOCK_SET, CLOCK_SHIFT, NOTHING, ClockNote, Rows
from pipelines.ingest.quarantine import BODY_ENVELOPE, Origin, Rejection
from schemas.contract import Contract
from schemas.envelope import DATASCHEMA_PREFIX
from schemas.ranges import Span

_PLAIN = ("kind", "device", "stream", "content_type", "epoch", "first_seq", "count", "refusal")

Int64s = npt.NDArray[np.int64]


class Message(NamedTuple):
    """One landing row. `version` and `encoding` are the properties that decide how the body is read."""

    kind: str
    device: str | None
    stream: str | None
    content_type: str | None
    epoch: int
    first_seq: int
    samples: int
    refusal: str | None
    received_us: int
    version: str | None
    encoding: str
    batch: pa.RecordBatch
    row: int
    clock: ClockNote = NOTHING

    @property
    def body(self) -> pa.Buffer:
        """The MQTT body, zero-copy."""
        return self.batch.column("payload")[self.row].as_buffer()

    def origin(self) -> Origin:
        """Return the origin of this message; needed for refused ones alone."""
        pairs = self.batch.column("properties")[self.row].as_py()
        return Origin(
            device=self.device,
            stream=self.stream,
            epoch=self.epoch,
            topic=self.batch.column("topic")[self.row].as_py(),
            content_type=self.content_type,
            properties=tuple((pair["name"], pair["value"]) for pair in pairs),
            received_us=self.received_us,
            first_seq=self.first_seq,
            samples=self.samples,
        )

    def rejected(self, stage: str, reason: str, seq: int | None, count: int, spans: tuple[Span, ...] = ()) -> Rejection:
        """The whole message as one rejection of these seqs, its body as it came."""
        return Rejection(self.origin(), stage, reason, seq, count, self.body.to_pybytes(), BODY_ENVELOPE, spans)


def messages(batch: pa.RecordBatch) -> Iterator[Message]:
    """The messages of a landing batch, in order."""
    columns = [batch.column(name).to_pylist() for name in _PLAIN]
    received = batch.column("received_at").cast(pa.int64()).to_pylist()
    versions = _property(batch, "dataschema")
    encodings = _property(batch, "contentencoding")
    boots, settings = _property(batch, CLOCK_BOOT), _property(batch, CLOCK_SET)
    shifts = _property(batch, CLOCK_SHIFT) if boots else {}
    for row, values in enumerate(zip(*columns, strict=True)):
        stream, schema = values[2], versions.get(row)
        version = None if schema is None else schema.removeprefix(f"{DATASCHEMA_PREFIX}{stream}:")
        clock = ClockNote(boots.get(row), shifts.get(row), settings.get(row)) if boots or settings else NOTHING
        yield Message._make((*values, received[row], version, encodings.get(row, ""), batch, row, clock))


def _property(batch: pa.RecordBatch, name: str) -> dict[int, str]:
    """One property of every row that has it, by row."""
    column = batch.column("properties")
    pairs = column.flatten()
    hits = pc.equal(pairs.field("name"), name)
    rows = pc.list_parent_indices(column).filter(hits)
    return dict(zip(rows.to_pylist(), pairs.field("value").filter(hits).to_pylist(), strict=True))


class GroupEnvelope(NamedTuple):
    """A decoded envelope and which of its seqs are fresh."""

    message: Message
    rows: Rows
    fresh_spans: FreshSpans


@dataclass(slots=True)
class Group:
    """Decoded envelopes that make one table."""

    contract: Contract
    envelopes: list[GroupEnvelope] = field(default_factory=list)
    bytes: int = 0

    def add(self, envelope: GroupEnvelope) -> None:
        """Take one more."""
        self.envelopes.append(envelope)
        self.bytes += envelope.rows.bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """For each row the envelope it came in (by its place in the group), and its seq."""

    envelope: Int64s
    seq: Int64s

    def where(self, mask: npt.NDArray[np.bool_]) -> "Keys":
        """The rows for which the mask is true."""
        return Keys(self.envelope[mask], self.seq[mask])


def in_order(group: Group) -> Group:
    """The group with its envelopes by device, epoch and seq: so a file's rows lie by device and, within it, by time."""
    return Group(group.contract, sorted(group.envelopes, key=_place), group.bytes)


def _place(envelope: GroupEnvelope) -> tuple[str, int, int]:
    return envelope.message.device or "", envelope.message.epoch, envelope.message.first_seq


def body_table(envelopes: Sequence[GroupEnvelope]) -> pa.Table:
    """All rows, as the devices sent them."""
    return pa.Table.from_batches([envelope.rows.batch for envelope in envelopes])


def row_keys(envelopes: Sequence[GroupEnvelope]) -> Keys:
    """The keys of `body_table`'s rows, for all envelopes at once."""
    counts = np.array([envelope.rows.batch.num_rows for envelope in envelopes], np.int64)
    firsts = np.array([envelope.message.first_seq for envelope in envelopes], np.int64)
    starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(envelopes), dtype=np.int64), counts)
    seq = np.repeat(firsts - starts, counts) + np.arange(int(counts.sum()), dtype=np.int64)
    for start, count, envelope in zip(starts.tolist(), counts.tolist(), envelopes, strict=True):
        if envelope.rows.indexes is not None:
            seq[start : start + count] = envelope.message.first_seq + np.array(envelope.rows.indexes, np.int64)
    return Keys(owner, seq)


def fresh_mask(envelopes: Sequence[GroupEnvelope], keys: Keys) -> npt.NDArray[np.bool_] | None:
    """Mark the rows that are fresh; None if all are, which is the rule."""
    partly = [
        place
        for place, envelope in enumerate(envelopes)
        if envelope.fresh_spans != ((envelope.message.first_seq, envelope.message.first_seq + envelope.message.samples),)
    ]
    if not partly:
        return None
    mask = np.ones(len(keys.seq), np.bool_)
    for place in partly:
        low, high = np.searchsorted(keys.envelope, [place, place + 1])
        mask[low:high] = _within(keys.seq[low:high], envelopes[place].fresh_spans)
    return mask


def _within(seqs: Int64s, fresh_spans: FreshSpans) -> npt.NDArray[np.bool_]:
    """Mark the seqs in the spans; by search, because a device may make thousands of spans under a million rows."""
    if not fresh_spans:
        return np.zeros(len(seqs), np.bool_)
    lows, ends = np.array(fresh_spans, np.int64).T
    at = np.searchsorted(lows, seqs, side="right") - 1
    return np.asarray((at >= 0) & (seqs < ends[at]), np.bool_)


def spans_of(seqs: Int64s) -> tuple[Span, ...]:
    """Rising seqs as half-open spans."""
    breaks = np.flatnonzero(np.diff(seqs) != 1) + 1
    return tuple((int(piece[0]), int(piece[-1]) + 1) for piece in np.split(seqs, breaks) if len(piece))


def take_text(values: Sequence[Any], places: Int64s) -> pa.DictionaryArray:
    """`values[places]` as text, coded: no Python object and no string for each row."""
    return pa.array(values, pa.string()).dictionary_encode().take(pa.array(places))
