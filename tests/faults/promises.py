"""What the spool's callers were promised, and whether a spool holds it."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from edge_agent.spool.records import BodyPlace, State
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
from schemas.ranges import Ranges
from schemas.receipts import Receipt
from tests.fakes.spool_rows import rows_of
from tests.faults import workload


class Settled:
    """A receipt, asked many times."""

    def __init__(self, settled: dict[str, dict[str, list[tuple[int, int]]]]) -> None:
        self._receipt = Receipt(1, settled)
        self._ranges: dict[tuple[str, int], Ranges] = {}

    def covers(self, stream: str, epoch: int, low: int, high: int) -> bool:
        if (stream, epoch) not in self._ranges:
            self._ranges[stream, epoch] = self._receipt.ranges(StreamName(stream), epoch)
        return self._ranges[stream, epoch].covers(low, high)


@dataclass(slots=True)
class Promises:
    """What callers were told, up to some moment."""

    captured: dict[tuple[str, int, int], tuple[int, str]] = field(default_factory=dict)
    begun: dict[str, tuple[str, int]] = field(default_factory=dict)  # digest of a body -> stream, count
    positions: dict[str, tuple[int, int]] = field(default_factory=dict)  # stream -> durable for sure, begun
    settling: "Settled" = field(default_factory=lambda: Settled({}))
    settled: "Settled" = field(default_factory=lambda: Settled({}))  # durable for sure
    epochs: set[int] = field(default_factory=set)

    def hear(self, what: dict[str, Any]) -> None:
        if "captured" in what:
            stream, epoch, seq, count, digest = what["captured"]
            self.captured[stream, epoch, seq] = (count, digest)
            self.positions[stream] = (what["position"], what["position"])
        elif "begun" in what:
            stream, envelopes, position = what["begun"]
            self.begun.update((digest, (stream, count)) for count, digest in envelopes)
            self.positions[stream] = (self.positions.get(stream, (0, 0))[0], position)
        elif "settled" in what:
            self.settled = Settled(what["settled"])
        elif "settling" in what:
            self.settling = Settled(what["settling"])
        elif "epoch" in what:
            self.epochs.add(what["epoch"])


def check(folder: Path, promises: Promises) -> None:
    """Open the spool in a folder as the agent would, and hold it to its promises."""
    spool = workload.open_small(folder / "state" / "spool")
    try:
        hold(spool, promises)
    finally:
        spool.close()


def hold(spool: Spool, promises: Promises) -> None:
    assert spool.opened.moved_aside is None, "a power cut alone damages nothing"
    assert spool.epoch > max(promises.epochs, default=0), "an epoch was used twice"
    books = {entry.stream: entry for entry in spool.books()}
    assert all(entry.is_balanced for entry in books.values()), books
    assert not any("corrupt" in entry.dropped for entry in books.values()), books
    stored = _stored(spool)
    _nothing_invented(stored, promises)
    for stream, (low, high) in promises.positions.items():
        position = int(spool.position(stream) or 0)
        assert low <= position <= high, f"{stream} resumes at {position}, not within {low} and {high}"
        assert position == (books[stream].captured if stream in books else 0), "position and books disagree"
    dropped = {(entry.stream, entry.epoch): entry for entry in spool.epochs()}
    spooled: Counter[str] = Counter()
    for (stream, _, _), (count, _) in stored.items():
        spooled[stream] += count
    assert all(entry.spooled == spooled[stream] for stream, entry in books.items()), (books, spooled)
    for (stream, epoch, seq), (count, digest) in promises.captured.items():
        found = stored.get((stream, epoch, seq))
        if found is not None:
            assert found == (count, digest), "an acknowledged body differs"
        elif not promises.settling.covers(stream, epoch, seq, seq + count):
            ranges = dropped[stream, epoch].dropped if (stream, epoch) in dropped else ()
            gone = any(entry.low <= seq and seq + count <= entry.high for entry in ranges)
            assert gone, f"lost: {stream} {epoch} {seq}+{count}"


def _nothing_invented(stored: dict[tuple[str, int, int], tuple[int, str]], promises: Promises) -> None:
    times = Counter(digest for _, digest in stored.values())
    for (stream, epoch, seq), (count, digest) in stored.items():
        assert promises.begun.get(digest) == (stream, count), f"invented: {stream} {epoch} {seq}+{count}"
        assert times[digest] == 1, f"double: {stream} {epoch} {seq}+{count}"
        assert not promises.settled.covers(stream, epoch, seq, seq + count), "settled, yet there"


def _stored(spool: Spool) -> dict[tuple[str, int, int], tuple[int, str]]:
    found: dict[tuple[str, int, int], tuple[int, str]] = {}
    rows = rows_of(spool, "SELECT stream, epoch, first_seq, count, digest, state, body, file, at, body_bytes FROM envelope")
    for stream, epoch, seq, count, digest, state, body, file, *place in rows:
        content = body
        if file:
            content = spool._bodies.read(BodyPlace(file, *place))
        assert (stream, epoch, seq) not in found, "a seq was stored twice"
        found[stream, epoch, seq] = (count, hashlib.sha256(content).hexdigest())
        if digest and state == State.WAITING:
            assert hashlib.sha256(spool.read_object(digest, 0, 1 << 20)).hexdigest() == digest, "a payload file differs"
    ends = sorted((stream, epoch, seq, seq + count) for (stream, epoch, seq), (count, _) in found.items())
    for (stream, epoch, _, end), (stream_after, epoch_after, first, _) in pairwise(ends):
        assert (stream, epoch) != (stream_after, epoch_after) or end <= first, "seqs overlap"
    return found
