"""What a spool lives through, told as it happens: every promise made to a caller is a line in the log of the disk itself.

Run as a program (`python workload.py FOLDER SEED STEPS`) under the shim, or called in a forked child that is made to fail.
"""

import hashlib
import json
import os
import random
import sqlite3
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from catchment.runtime.clock import SystemClock
from edge_agent.errors import SpoolFullError
from edge_agent.spool import database, payload_files, space_budget, transactions
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import Digest, StreamName
from schemas.receipts import Receipt

STREAMS = (StreamName("alpha"), StreamName("beta"))
TELL_NAME = "TOLD"
MAX_BYTES = 400 * 1024
Tell = Callable[[dict[str, object]], None]


def make_small() -> None:
    """Checkpoints, evictions and full logs after kilobytes instead of megabytes: the same code, more of it per state."""
    database.RESERVE_BYTES = 64 * 1024
    space_budget.RESERVE_FILE_BYTES = 16 * 1024
    space_budget.SLACK_BYTES = 16 * 1024
    transactions.EVICT_AT_LEAST_BYTES = 32 * 1024
    payload_files.MIN_BODY_BYTES = 2_500
    payload_files.LARGEST_FILE_BYTES = 20_000
    payload_files.FILE_SHARE = 16


def open_small(folder: Path) -> Spool:
    return Spool(folder, max_bytes=MAX_BYTES, linger_ms=0, clock=SystemClock())


def stats(folder: Path) -> Tell:
    """Tells into a file that the shim watches too, so that what was promised stands in the log between the writes."""
    descriptor = os.open(folder / TELL_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def tell(what: dict[str, object]) -> None:
        os.write(descriptor, json.dumps(what).encode() + b"\n")

    return tell


class Life:
    """A spool's user: appends, leases, parks, settles, stores large payloads, and starts again."""

    def __init__(self, folder: Path, seed: int, tell: Tell) -> None:
        self._folder = folder / "state" / "spool"
        self._chance = random.Random(seed)
        self._tell = tell
        self._stored: list[tuple[str, int, int, int]] = []
        self._settled: dict[str, dict[str, list[tuple[int, int]]]] = {}
        self._captured = dict.fromkeys(STREAMS, 0)
        self.open()

    def open(self) -> None:
        self.spool = open_small(self._folder)
        self._tell({"epoch": self.spool.epoch})

    def step(self) -> None:
        chance = self._chance.random()
        if chance < 0.62:
            self.append()
        elif chance < 0.78:
            self.settle()
        elif chance < 0.84:
            self.large()
        elif chance < 0.90:
            self.spool.next_unsent(20_000)
        elif chance < 0.95:
            self.park()
        else:
            self.close()
            self.open()

    def close(self) -> None:
        self.spool.close()

    def append(self) -> None:
        stream = self._chance.choice(STREAMS)
        counts = [self._chance.randint(1, 9) for _ in range(self._chance.randint(1, 3))]
        envelopes = tuple(self._envelope(count) for count in counts)
        self._append(stream, envelopes, self._chance.choice((50, 100)))

    def _append(self, stream: StreamName, envelopes: tuple[NewEnvelope, ...], priority: int = 100) -> None:
        """Its position counts all samples of its stream: where a source resumes must agree with what is stored."""
        position = self._captured[stream] + sum(envelope.count for envelope in envelopes)
        digests = [hashlib.sha256(envelope.body).hexdigest() for envelope in envelopes]
        self._tell({"begun": [stream, [[e.count, digest] for e, digest in zip(envelopes, digests, strict=True)], position]})
        append = Append(stream, envelopes, priority, source=stream, position=b"%d" % position)
        span = self.spool.append(append).result()
        self._captured[stream] = position
        seq = span.first_seq
        for envelope, digest in zip(envelopes, digests, strict=True):
            self._tell({"captured": [stream, span.epoch, seq, envelope.count, digest], "position": position})
            self._stored.append((stream, span.epoch, seq, envelope.count))
            seq += envelope.count

    def _envelope(self, count: int) -> NewEnvelope:
        size = self._chance.choice((40, 300, 300, 3_000, 12_000))
        return NewEnvelope(count, self._chance.randbytes(size), "1.0.0", created_us=count)

    def settle(self) -> None:
        for _ in range(min(len(self._stored), self._chance.randint(1, 12))):
            stream, epoch, seq, count = self._stored.pop(self._chance.randrange(min(len(self._stored), 8)))
            self._settled.setdefault(stream, {}).setdefault(str(epoch), []).append((seq, seq + count))
        receipt = Receipt(1, self._settled)
        self._tell({"settling": self._settled})
        self.spool.settle(receipt).result()
        self._tell({"settled": self._settled})

    def large(self) -> None:
        ref = self.spool.put_object(self._chance.randbytes(20_000))
        envelope = NewEnvelope(1, b"row of " + ref.digest.encode(), "1.0.0", large=ref)
        self._append(STREAMS[0], (envelope,))
        if self._chance.random() < 0.5:
            self.spool.object_settled(Digest(ref.digest))

    def park(self) -> None:
        leased = self.spool.next_unsent(1)
        if leased:
            self.spool.park(leased[0].id, "refused")


def live(folder: Path, seed: int, steps: int) -> None:
    tell = stats(folder)
    life = Life(folder, seed, tell)
    for _ in range(steps):
        with suppress(SpoolFullError):  # as a source does: it goes on, and comes back with the payload
            life.step()
    life.close()
    tell({"end": True})


def sabotage(what: str) -> None:
    """Leave syncs out, to see that the simulator notices."""
    if what == "bodies":
        payload_files.BodyFiles.sync = lambda self: None  # type: ignore[method-assign]
    elif what == "database":
        connect = database.connect_writer

        def careless(path: Path, max_bytes: int, page_bytes: int) -> sqlite3.Connection:
            connection = connect(path, max_bytes, page_bytes)
            connection.execute("PRAGMA synchronous=NORMAL")
            return connection

        database.connect_writer = careless


if __name__ == "__main__":
    make_small()
    sabotage(sys.argv[4])
    live(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
