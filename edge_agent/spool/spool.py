"""The spool: what capture writes into and the uplink sends from. Everything here may be called from any thread."""

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path

import structlog

from edge_agent.clock import Clock
from edge_agent.errors import SpoolError
from edge_agent.spool import changes, database, reading
from edge_agent.spool.changes import Removed
from edge_agent.spool.commits import Ledgerhand
from edge_agent.spool.leases import Leases
from edge_agent.spool.objects import ObjectStore
from edge_agent.spool.reading import RottenEnvelopeError
from edge_agent.spool.records import Append, DropReason, Envelope, ObjectRef, Passed, State, WaitingObject
from edge_agent.spool.recovery import SUSPECT_NAME, open_sound
from edge_agent.spool.writer import SpoolWriter
from schemas.envelope import Span
from schemas.ids import Digest, next_epoch
from schemas.receipts import Receipt
from schemas.reported import EpochReport, StreamBooks

OBJECTS_FOLDER = "objects"
MIN_MAX_BYTES = 8 * 1024 * 1024

_log = structlog.get_logger(__name__)


class Spool:
    """The agent's durable queue. One process at a time opens it; each opening begins a new epoch.

    Args:
        folder: where it lives; made if missing.
        max_bytes: the quota for database and large payloads together.
        linger_ms: how long an append may wait for others to share its commit.
        clock: time for epochs and lingering.
        page_bytes: of a database that is made anew: large where bodies are.

    Raises:
        SpoolError: the disk refuses even a new file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        linger_ms: int,
        clock: Clock,
        page_bytes: int = database.SMALL_PAGE_BYTES,
    ) -> None:
        self._folder = folder
        self._lock = threading.RLock()
        self._leases = Leases(self._load)
        self._removed_ids: list[int] = []
        self._listener: Callable[[], None] = lambda: None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            opened = open_sound(folder, max_bytes, page_bytes, clock)
            self._db = opened.db
            self.epoch = _open_epoch(self._db, clock)
            self._objects = ObjectStore(folder / OBJECTS_FOLDER)
            self._drop_lost_objects()
            self._reader = database.connect_reader(folder / database.FILE_NAME)
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"the spool in {folder} cannot be opened: {error}; check the disk and the folder's owner") from error
        self.opened = opened
        hand = Ledgerhand(self._db, self.epoch, max_bytes, self._objects)
        self._writer = SpoolWriter(hand, linger_ms, self._in_flight, self._after_commit, clock)

    @property
    def failure(self) -> SpoolError | None:
        """Why nothing can be written any more; the process should end and start again, which mends the spool."""
        return self._writer.failure

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener`, from the writer's thread, after each commit. It must not block."""
        self._listener = listener

    def append(self, append: Append) -> "Future[Span]":
        """Store a batch; the future is done, with the seqs given, when it is durable. Waits while much is pending.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        future = self._writer.append(append)
        pinned = [envelope.large.digest for envelope in append.envelopes if envelope.large is not None]
        if pinned:
            future.add_done_callback(lambda _: self._unpin(pinned))
        return future

    def note(self, passed: Passed) -> None:
        """Enter, durably, what a source read and nothing of which is to be stored. Raises SpoolError."""
        self._writer.change(lambda db: changes.note(db, passed)).result()

    def put_object(self, payload: bytes | Path) -> ObjectRef:
        """Store a large payload, before the append of the envelope that names it.

        Raises:
            SpoolFullError: the disk refused.
            OSError: a file source cannot be read.
        """
        return self._objects.put(payload)

    def position(self, source: str) -> bytes | None:
        """Where a source resumes."""
        with self._lock:
            row = self._reader.execute("SELECT value FROM position WHERE source = ?", (source,)).fetchone()
        return None if row is None else bytes(row[0])

    def next_unsent(self, limit_bytes: int) -> list[Envelope]:
        """Lease the next envelopes to send: as many as fit the limit, but at least one if there is any.

        Oldest first, but what came since `part_backlog` takes its share. A leased envelope is not given out again until
        it is released. Rotten ones are given up as corrupt on the way.
        """
        with self._lock:
            taken = self._leases.take(self._reader, limit_bytes)
            is_cut_short = not taken and self._leases.is_cut_short
        if is_cut_short:
            self._listener()
        return taken

    def tune(self, fresh_share: float, min_priority: int) -> None:
        """How fresh and old samples share the link while both wait, and the least priority that is given out."""
        with self._lock:
            self._leases.tune(fresh_share, min_priority)

    def part_backlog(self) -> None:
        """What is spooled now is old; what comes is fresh."""
        with self._lock:
            self._leases.part(self._reader.execute("SELECT coalesce(max(id), 0) FROM envelope").fetchone()[0])

    def release(self, ids: Iterable[int]) -> None:
        """Give leases back: these were not sent, or not settled in time, and are sent again."""
        with self._lock:
            self._leases.release(ids)

    def park(self, id_: int, reason: str) -> None:
        """Put aside an envelope that can never be sent as things are.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        self._change_state([id_], State.PARKED, reason)

    def unpark_all(self) -> None:
        """Let parked envelopes be tried again: the broker's limits may have changed.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        with self._lock:
            ids = [entry.id for entry in reading.parked(self._reader, limit=1_000)]
        if ids:
            self._change_state(ids, State.READY)

    def waiting_objects(self, limit: int = 1, min_priority: int = 0) -> list[WaitingObject]:
        """The large payloads to send next, oldest first."""
        with self._lock:
            return reading.waiting_objects(self._reader, limit, min_priority)

    def open_object(self, digest: Digest) -> AbstractContextManager[int]:
        """A descriptor of a large payload, for `os.pread`.

        Raises:
            OSError: it is gone.
        """
        return self._objects.reader(digest)

    def object_settled(self, digest: Digest) -> None:
        """A large payload is settled: the envelopes that waited for it may be sent.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        with self._lock:
            ids = reading.ids_waiting_for(self._reader, digest)
        self._change_state(ids, State.READY)

    def object_refused(self, digest: Digest, reason: str) -> None:
        """A large payload can never be sent: park the envelopes that wait for it.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        with self._lock:
            ids = reading.ids_waiting_for(self._reader, digest)
        self._change_state(ids, State.PARKED, reason)

    def settle(self, receipt: Receipt) -> "Future[Removed]":
        """Delete exactly what a receipt covers. The future is done when that is durable.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        return self._writer.change(lambda db: changes.settle(db, receipt, self.epoch))

    def take_removed(self) -> list[int]:
        """Ids that left the spool since the last call: settled, evicted or corrupt. The uplink forgets their leases."""
        with self._lock:
            taken, self._removed_ids = self._removed_ids, []
        return taken

    def books(self) -> tuple[StreamBooks, ...]:
        """The books of every stream, over the device's whole life."""
        with self._lock:
            return reading.books(self._reader)

    def epochs(self) -> tuple[EpochReport, ...]:
        """Every epoch that is not settled in full."""
        with self._lock:
            return reading.epochs(self._reader, self.epoch)

    def parked_samples(self) -> int:
        """Samples in parked envelopes: as things are they will never be settled."""
        with self._lock:
            row = self._reader.execute("SELECT coalesce(sum(count), 0) FROM envelope WHERE state = ?", (State.PARKED,)).fetchone()
        return int(row[0])

    def used_bytes(self) -> int:
        """What counts against the quota now."""
        with self._lock:
            return database.used_bytes(self._reader) + self._objects.total_bytes

    def oldest_unsettled_us(self) -> int | None:
        """When the oldest envelope that waits was made; None when none waits."""
        with self._lock:
            return reading.oldest_unsettled_us(self._reader)

    def close(self) -> None:
        """Commit what is pending, then let go of the files."""
        self._writer.close()
        if self._writer.failure is not None:
            (self._folder / SUSPECT_NAME).touch()
        with self._lock:
            self._reader.close()
        self._db.close()

    def _load(self, id_: int) -> Envelope | None:
        try:
            return reading.load(self._reader, id_)
        except (RottenEnvelopeError, sqlite3.DatabaseError) as error:
            _log.error("envelope is rotten; given up", id=id_, error=str(error))
            self._leases.add(id_)
            self._writer.change(lambda db: changes.drop(db, [id_], DropReason.CORRUPT))
            return None

    def _change_state(self, ids: list[int], state: State, reason: str = "") -> None:
        def change(db: sqlite3.Connection) -> Removed:
            changes.set_state(db, ids, state, reason)
            return Removed()

        self._writer.change(change).result()
        self.release(ids)

    def _in_flight(self) -> frozenset[int]:
        with self._lock:
            return self._leases.ids

    def _after_commit(self, removed: Removed) -> None:
        with self._lock:
            # Only what the uplink holds need be told to it: a long eviction without a broker must not pile up here.
            self._removed_ids.extend(self._leases.forget(removed.ids))
        self._objects.remove(removed.orphans)
        self._listener()

    def _unpin(self, digests: list[Digest]) -> None:
        for digest in digests:
            self._objects.unpin(digest)

    def _drop_lost_objects(self) -> None:
        """A row whose payload file is gone or short (a damaged file system) can never be sent: given up as corrupt."""
        rows = self._db.execute("SELECT id, digest, object_bytes, state FROM envelope WHERE digest <> ''").fetchall()
        waiting = [(id_, ObjectRef(Digest(digest), size)) for id_, digest, size, state in rows if state == State.WAITING]
        lost = [id_ for id_, ref in waiting if not self._objects.holds(ref)]
        if lost:
            _log.error("large payloads are lost", count=len(lost))
            self._db.execute("BEGIN IMMEDIATE")
            changes.drop(self._db, lost, DropReason.CORRUPT)
            self._db.execute("COMMIT")
        self._objects.sweep(row[1] for row in rows)


def _open_epoch(db: sqlite3.Connection, clock: Clock) -> int:
    """A new epoch, remembered before any seq of it is given out."""
    row = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
    known = db.execute("SELECT coalesce(max(epoch), 0) FROM epoch").fetchone()[0]
    epoch = next_epoch(max(row[0] if row else 0, known), clock.now_ms(), secrets.randbits(20))
    db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))
    return epoch
