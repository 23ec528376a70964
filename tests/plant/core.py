"""A lake and its run loop in this process, with a landing of any content."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from catchment.runtime.clock import SystemClock
from pipelines.bridge.rows import LandingRow, rows_to_batch
from pipelines.bridge.segment import OpenSegment
from pipelines.config import CoreConfig
from pipelines.errors import RetryLaterError
from pipelines.ingest.chips.loop import ChipLoop, Commit, commit_cut
from pipelines.ingest.loop import RunLoop
from pipelines.ingest.receipt_sender import ReceiptSender
from pipelines.ingest.receipts import Publisher
from pipelines.runners.engine import Engine
from schemas.contract import Contract
from schemas.envelope import ARROW_STREAM, EnvelopeHead, Span
from schemas.ids import DeviceId, StreamName

START_US = 1_790_000_000_000_000


@dataclass
class Landing:
    """Writes sealed segments as a bridge does."""

    root: Path
    bridge: str = "b0"
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def seal(self, rows: Sequence[LandingRow]) -> Path:
        folder = self.root / "landing" / self.bridge
        folder.mkdir(parents=True, exist_ok=True)
        segment = OpenSegment(folder, next(self.numbers))
        if rows:
            segment.append(rows_to_batch(rows))
        segment.sync()
        return segment.seal()


@dataclass
class Mailbox:
    """Keeps what was published, or is away."""

    messages: dict[str, bytes] = field(default_factory=dict)
    is_away: bool = False

    def publish(self, messages: Mapping[str, bytes]) -> None:
        if self.is_away:
            raise RetryLaterError("away")
        self.messages.update(messages)


@dataclass
class Core:
    """A lake and its loop, in this process."""

    root: Path
    landing: Landing
    mailbox: Mailbox  # what it publishes to, unless a test gives another
    config: CoreConfig

    def loop(self, publisher: Publisher | ReceiptSender | None = None) -> RunLoop:
        """A loop that publishes to the mailbox, or to another."""
        return RunLoop(self.config, publisher or self.mailbox, SystemClock(), Engine("FnApiRunner"))

    def run(self, publisher: Publisher | ReceiptSender | None = None) -> RunLoop:
        """Take everything that has landed; the loop afterwards."""
        loop = self.loop(publisher)
        while loop.step():
            pass
        cut_all(self.config, loop)
        return loop

    def table(self, name: str) -> pa.Table:
        return pa.table(DeltaTable(self.root / name).to_pyarrow_table())

    def rows(self, name: str) -> list[dict[str, Any]]:
        if not (self.root / name / "_delta_log").is_dir():
            return []
        found: list[dict[str, Any]] = self.table(name).to_pylist()
        return found


def cut_all(config: CoreConfig, loop: RunLoop, commit: Commit = commit_cut) -> None:
    """Cut every slide that waits, as the run loop's process does next to its runs."""
    with closing(ChipLoop(config, SystemClock(), lambda: loop.ledger.run, commit=commit)) as chips:
        while chips.step():
            pass


class MakeEnvelope(Protocol):
    """Makes a row of the landing: an envelope of `count` samples, telemetry unless it has a body."""

    def __call__(
        self,
        first: int = 0,
        count: int = 10,
        *,
        device: str = "car-1",
        stream: str = "vehicle_telemetry",
        epoch: int = 7,
        body: bytes | None = None,
        version: str | None = None,
        encoding: str = "",
        content_type: str = ARROW_STREAM,
        **columns: pa.Array,
    ) -> LandingRow: ...


class MakeContract(Protocol):
    """Makes a contract `probe` 1.0.0 without columns, but for the changes."""

    def __call__(self, **changes: Any) -> Contract: ...


class AsIpc(Protocol):
    """A record batch as an Arrow stream."""

    def __call__(self, batch: pa.RecordBatch) -> bytes: ...


class MakeFrames(Protocol):
    """The body of some frames, each with a payload of its own."""

    def __call__(self, first: int, count: int) -> bytes: ...


def ipc(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


def telemetry(first: int, count: int, **columns: pa.Array) -> pa.RecordBatch:
    times = pa.array(START_US + np.arange(first, first + count) * 1_000).cast(pa.timestamp("us", "UTC"))
    speed = pa.array(np.arange(first, first + count) % 40, pa.float64())
    return pa.record_batch({"event_time": times, "speed_mps": speed, **columns})


def envelope(
    first: int = 0,
    count: int = 10,
    *,
    device: str = "car-1",
    stream: str = "vehicle_telemetry",
    epoch: int = 7,
    body: bytes | None = None,
    version: str | None = None,
    encoding: str = "",
    content_type: str = ARROW_STREAM,
    **columns: pa.Array,
) -> LandingRow:
    span = Span(epoch, first, count)
    head = EnvelopeHead(DeviceId(device), StreamName(stream), content_type, span, version, encoding)
    payload = body if body is not None else ipc(telemetry(first, count, **columns))
    return LandingRow(
        START_US, "up", f"catchment/up/{device}/{stream}", payload, device, stream, content_type, head.to_properties(), span
    )
