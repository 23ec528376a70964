"""A spool that is too small: whatever comes and goes, every seq is stored, settled or told as dropped, and only one of them."""

import random
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from catchment.runtime.clock import SystemClock
from edge_agent.errors import SpoolFullError
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
from schemas.ranges import Ranges
from schemas.receipts import Receipt
from tests.fakes.spool_rows import rows_of

MIB = 1024 * 1024
STREAMS = ("alpha", "beta", "kept")


class FullSpool(RuleBasedStateMachine):
    """`given` is what was given a seq, `settled` what receipts covered; the rest must be in the spool or in its books."""

    @initialize(seed=st.integers(0, 1000))
    def open(self, seed: int) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="spool-full-"))
        self.chance = random.Random(seed)
        self.given: dict[tuple[str, int], int] = {}
        self.settled: dict[str, dict[str, list[tuple[int, int]]]] = defaultdict(dict)
        self.kept = 0
        self._open()

    def _open(self) -> None:
        self.spool = Spool(self.root / "s", max_bytes=8 * MIB, linger_ms=0, clock=SystemClock())

    @rule(
        stream=st.sampled_from(("alpha", "beta")),
        sizes=st.lists(st.sampled_from((200, 30_000, 100_000, 700_000)), min_size=1, max_size=4),
        priority=st.sampled_from((10, 100, 200)),
    )
    def append(self, stream: str, sizes: list[int], priority: int) -> None:
        envelopes = tuple(NewEnvelope(1 + size % 7, self.chance.randbytes(size), "1") for size in sizes)
        span = self.spool.append(Append(StreamName(stream), envelopes, priority)).result()
        assert span.first_seq == self.given.get((stream, span.epoch), 0)
        self.given[stream, span.epoch] = span.end_seq

    @rule()
    def append_what_is_never_given_up(self) -> None:
        if self.kept < 10:  # 1 MB in all: there is always room for it
            envelope = NewEnvelope(1, self.chance.randbytes(100_000), "1")
            span = self.spool.append(Append(StreamName("kept"), (envelope,), waits_for_room=True)).result()
            self.given["kept", span.epoch] = span.end_seq
            self.kept += 1

    @rule(size=st.sampled_from((50_000, 1_200_000, 3_000_000)))
    def append_large(self, size: int) -> None:
        try:
            ref = self.spool.put_object(self.chance.randbytes(size))
        except SpoolFullError:
            return
        span = self.spool.append(Append(StreamName("alpha"), (NewEnvelope(1, b"row", "1", large=ref),))).result()
        self.given["alpha", span.epoch] = span.end_seq
        if self.chance.random() < 0.5:
            self.spool.object_settled(ref.digest)

    @rule(share=st.floats(0, 1))
    def settle(self, share: float) -> None:
        for (stream, epoch), end in self.given.items():
            if stream != "kept" and (high := int(end * share)) > 0:
                self.settled[stream][str(epoch)] = [(0, max(high, *self.settled[stream].get(str(epoch), [(0, 0)])[0]))]
        self.spool.settle(Receipt(1, self.settled)).result()

    @rule()
    def lease(self) -> None:
        leased = self.spool.next_unsent(500_000)
        self.spool.release([envelope.id for envelope in leased[::2]])

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self._open()

    @invariant()
    def every_seq_is_accounted_for(self) -> None:
        stored: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        for stream, epoch, first, count in rows_of(self.spool, "SELECT stream, epoch, first_seq, count FROM envelope"):
            stored[stream, epoch].append((first, first + count))
        dropped = {
            (entry.stream, entry.epoch): [(gone.low, gone.high) for gone in entry.dropped] for entry in self.spool.epochs()
        }
        receipt = Receipt(1, self.settled)
        for (stream, epoch), end in self.given.items():
            settled = receipt.ranges(StreamName(stream), epoch)
            here, gone = Ranges.of(stored[stream, epoch]), Ranges.of(dropped.get((stream, epoch), []))
            assert here.count + gone.count == here.union(gone.spans).count, "stored and dropped at once"
            assert settled.union(here.spans).union(gone.spans).covers(0, end), "a seq is nowhere"
        assert sum(high - low for (stream, _), spans in stored.items() if stream == "kept" for low, high in spans) == self.kept

    @invariant()
    def books_balance_and_the_quota_holds(self) -> None:
        assert all(books.is_balanced for books in self.spool.books())
        assert sum(path.stat().st_blocks * 512 for path in self.root.rglob("*") if path.is_file()) <= 8 * MIB

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            shutil.rmtree(self.root)


FullSpool.TestCase.settings = settings(max_examples=6, stateful_step_count=25, deadline=None)
TestFullSpool = FullSpool.TestCase
