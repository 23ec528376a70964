"""Landing rows as messages: the head in Python values, the body still where it lies in the memory map."""

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ingest.event_times import CLOCK_BOOT, CLOCK_SET, CLOCK_SHIFT, NOTHING, ClockNote
from pipelines.ingest.quarantine import BODY_ENVELOPE, Origin, Rejection
from schemas.envelope import DATASCHEMA_PREFIX
from schemas.ranges import Span

_PLAIN = ("kind", "device", "stream", "content_type", "epoch", "first_seq", "count", "refusal")


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
        """Where this message came from; only refused ones are asked."""
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
