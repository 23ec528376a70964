"""The spool against a list: whatever the order of appends, leases, receipts, crashes and bit-exact copies, nothing differs."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from catchment.runtime.clock import SystemClock
from edge_agent.spool import payload_files
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
from schemas.receipts import Receipt

STREAMS = ("alpha", "beta")


class SpoolModel(RuleBasedStateMachine):
    """`stored` is the truth: (stream, epoch, first, count, body) of all that is durable and not settled."""

    spans = Bundle("spans")

    @initialize()
    def open(self) -> None:
        # Bodies in files after a few bytes instead of 64 kB, some of them sharing a file.
        self.limits = (payload_files.MIN_BODY_BYTES, payload_files.LARGEST_FILE_BYTES)
        payload_files.MIN_BODY_BYTES, payload_files.LARGEST_FILE_BYTES = 20, 70
        self.root = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.generation = 0
        self.stored: list[tuple[str, int, int, int, bytes]] = []
        self.captured = dict.fromkeys(STREAMS, 0)
        self.settled = dict.fromkeys(STREAMS, 0)
        self.epochs: list[int] = []
        self.seen: set[tuple[str, int, int]] = set()
        self.leased: set[tuple[str, int, int]] = set()
        self._open()

    def _open(self) -> None:
        self.spool = Spool(self.root / str(self.generation), max_bytes=1 << 30, linger_ms=0, clock=SystemClock())
        self.leased = set()
        assert all(self.spool.epoch > epoch for epoch in self.epochs)
        self.epochs.append(self.spool.epoch)

    @rule(target=spans, stream=st.sampled_from(STREAMS), counts=st.lists(st.integers(1, 50), min_size=1, max_size=3))
    def append(self, stream: str, counts: list[int]) -> tuple[str, int, int, int]:
        envelopes = tuple(NewEnvelope(count, bytes([count]) * count, "1.0.0") for count in counts)
        position = str(sum(counts)).encode()
        span = self.spool.append(Append(StreamName(stream), envelopes, source=stream, position=position)).result()
        seq = span.first_seq
        for envelope in envelopes:
            assert (stream, span.epoch, seq) not in self.seen
            self.seen.add((stream, span.epoch, seq))
            self.stored.append((stream, span.epoch, seq, envelope.count, envelope.body))
            seq += envelope.count
        assert seq == span.end_seq
        assert self.spool.position(stream) == position
        self.captured[stream] += span.count
        return stream, span.epoch, span.first_seq, span.count

    @rule(limit_bytes=st.integers(1, 200))
    def lease(self, limit_bytes: int) -> None:
        free = [row for row in self.stored if row[:3] not in self.leased]
        got = self.spool.next_unsent(limit_bytes)
        expected = free[: len(got)]
        assert [(e.stream, e.span.epoch, e.span.first_seq, e.span.count, e.body) for e in got] == expected
        assert bool(got) == bool(free)
        self.leased |= {row[:3] for row in expected}
        self.ids = {(e.stream, e.span.epoch, e.span.first_seq): e.id for e in got} | getattr(self, "ids", {})

    @rule()
    def release_all(self) -> None:
        self.spool.release(self.ids[key] for key in self.leased)
        self.leased = set()

    @rule(which=st.lists(spans, max_size=4), narrower=st.booleans())
    def settle(self, which: list[tuple[str, int, int, int]], narrower: bool) -> None:
        settled: dict[str, dict[str, list[tuple[int, int]]]] = {}
        for stream, epoch, first, count in which:
            high = first + count - (1 if narrower else 0)
            if high > first:
                settled.setdefault(stream, {}).setdefault(str(epoch), []).append((first, high))
        settled.setdefault("gamma", {})["7"] = [(0, 99)]
        receipt = Receipt(1, settled)
        for _ in range(2):
            self.spool.settle(receipt).result()
        gone = [row for row in self.stored if receipt.ranges(StreamName(row[0]), row[1]).covers(row[2], row[2] + row[3])]
        # A span that several appends share is settled piece by piece; the model merges, the receipt was given unmerged.
        for row in gone:
            self.stored.remove(row)
            self.settled[row[0]] += row[3]
            self.leased.discard(row[:3])

    @rule()
    def crash(self) -> None:
        """What a crash leaves: the files as they are, copied while the spool is open."""
        old, self.generation = self.root / str(self.generation), self.generation + 1
        shutil.copytree(old, self.root / str(self.generation))
        self.spool.close()
        self._open()

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self._open()

    @invariant()
    def books_agree(self) -> None:
        for books in self.spool.books():
            assert books.is_balanced
            assert (books.captured, books.settled) == (self.captured[books.stream], self.settled[books.stream])
            assert books.spooled == sum(row[3] for row in self.stored if row[0] == books.stream)

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            shutil.rmtree(self.root)
            payload_files.MIN_BODY_BYTES, payload_files.LARGEST_FILE_BYTES = self.limits


SpoolModel.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestSpoolAgainstAList = SpoolModel.TestCase
