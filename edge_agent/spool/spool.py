"""The spool: what capture writes into and the uplink sends from. Everything here may be called from any thread."""

import sqlite3
import threading
from collections.abc import Callable, Collection, Container, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

import structlog

from catchment.runtime.clock import Clock
from edge_agent.errors import SpoolError, SpoolFullError
from edge_agent.spool import changes, database
from edge_agent.spool.changes import Removed
from edge_agent.spool.database import RottenEnvelopeError
from edge_agent.spool.leases import Leases
from edge_agent.spool.opening import mark_suspect, open_files
from edge_agent.spool.records import Append, DropReason, Envelope, ObjectRef, Passed, State, WaitingObject
from edge_agent.spool.sealing import Seal, SealBrokenError, open_envelope, seal_append
from edge_agent.spool.space_budget import ReserveFile, SpaceBudget
from edge_agent.spool.transactions import Transactions
from edge_agent.spool.writer import DISK_FULL_PAUSE_S, SpoolWriter
from schemas.envelope import Span
from schemas.ids import Digest
from schemas.receipts import Receipt, RefusedStream
from schemas.reported import EpochReport, StreamBooks

MIN_MAX_BYTES = 8 * 1024 * 1024

log = structlog.get_logger(__name__)


class Spool:
    """The agent's durable queue. One process at a time opens it; each opening begins a new epoch.

    Args:
        folder: where it lives; made if missing.
        max_bytes: the quota for database, bodies and large payloads together.
        linger_ms: how long an append may wait for others to share its commit.
        clock: time for epochs and lingering.
        page_bytes: of a database that is made again: large where bodies are.
        min_free_bytes: what is left free on the disk for others.
        seal: encrypts what is stored.

    Attributes:
        folder: where it lives.

    Raises:
        SpoolError: the disk refuses; nothing is lost, try again later.
        ConfigError: the spool holds samples that this seal cannot open.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        linger_ms: int,
        clock: Clock,
        page_bytes: int = database.SMALL_PAGE_BYTES,
        min_free_bytes: int = 0,
        seal: Seal | None = None,
        disk_full_pause_s: float = DISK_FULL_PAUSE_S,
    ) -> None:
        self.folder = folder
        self._seal = seal
        self._lock = threading.RLock()
        self._leases = Leases(self._load)
        self._removed_ids: list[int] = []
        self._listener: Callable[[], None] = lambda: None
        opened = open_files(folder, max_bytes, page_bytes, clock, seal)
        self.opened, self.epoch = opened.opened, opened.epoch
        self._db, self._reader = opened.opened.db, opened.reader
        self._bodies, self._objects = opened.bodies, opened.objects
        self._budget = SpaceBudget(folder, max_bytes, min_free_bytes, self._objects, self._bodies)
        self._transactions = Transactions(self._db, self.epoch, self._budget, self._objects, self._bodies, ReserveFile(folder))
        self._writer = SpoolWriter(self._transactions, linger_ms, self._in_flight, self._after_commit, clock, disk_full_pause_s)

    @property
    def failure(self) -> SpoolError | None:
        """The reason why nothing can be written any more; the process should end and start again, which repairs the spool."""
        return self._writer.failure

    @property
    def held_count(self) -> int:
        """Appends that wait for room, because their streams are never given up."""
        return self._writer.held_count

    def listen(self, listener: Callable[[], None]) -> None:
        """Call `listener`, from the writer's thread, after each commit. It must not block."""
        self._listener = listener

    def append(self, append: Append) -> "Future[Span]":
        """Store a batch; the future is done, with the seqs given, when it is durable. Waits while much is pending.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        sealed = seal_append(append, self._seal)
        if self._budget.lacks_for_bodies(sealed):
            # As rows they would pass through the log, which has no room for so much next to a full quota.
            self._make_room(sealed.cost_bytes, append.eviction_priority)
        future = self._writer.append(self._bodies.put_all(sealed, self._budget.for_files_bytes))
        pinned = [envelope.large.digest for envelope in append.envelopes if envelope.large is not None]
        if pinned:
            future.add_done_callback(lambda _: self._objects.unpin(*pinned))
        return future

    def note(self, passed: Passed) -> None:
        """Enter, durably, what a source read and nothing of which is to be stored. Raises SpoolError."""
        self._writer.change(lambda db: changes.note(db, passed)).result()

    def inherit(self, source: str, choose: Callable[[Sequence[str]], str | None]) -> None:
        """Let a source without a position go on at that of the one `choose` picks. Raises SpoolError."""
        self._writer.change(lambda db: changes.inherit(db, source, choose)).result()

    def on_source_stopping(self, source: str, *, is_gone: bool = False) -> None:
        """A source is to stop, or has: see `SpoolWriter.leave`."""
        self._writer.on_source_stopping(source, is_gone=is_gone)

    def put_object(self, payload: bytes | Path, priority: int = 100) -> ObjectRef:
        """Store a large payload, before the append of the envelope that names it. What is worth no more makes way for it.

        Raises:
            SpoolFullError: there is no room, or the disk refused.
            OSError: a file source cannot be read.
            SpoolError: the spool is closed or broken.
        """
        size_bytes = len(payload) if isinstance(payload, bytes) else payload.stat().st_size
        if not self._budget.takes_file(size_bytes):
            self._make_room(size_bytes, priority)
            if not self._budget.takes_file(size_bytes):
                raise SpoolFullError(f"there is no room for a payload of {size_bytes} bytes; it waits")
        return self._objects.put(payload)

    def _make_room(self, size_bytes: int, priority: int) -> None:
        self._writer.change(self._transactions.make_room_for_file(size_bytes, priority, self._in_flight())).result()

    def position(self, source: str) -> bytes | None:
        """Return the position where a source resumes."""
        with self._lock:
            return changes.load_position(self._reader, source)

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
        """Set how fresh and old samples share the link while both wait, and the least priority that is sent."""
        with self._lock:
            self._leases.tune(fresh_share, min_priority)

    def leave_out(self, streams: Collection[str]) -> None:
        """Give out nothing of these streams from now on; it waits."""
        with self._lock:
            self._leases.leave_out(streams)

    def hold_boot(self, boot: str) -> None:
        """Give out nothing whose times rest on the unset clock of this boot; "": hold nothing any more."""
        with self._lock:
            self._leases.hold_boot(boot)
        self._listener()

    def note_boot_clock(self, boot: str, offset_us: int) -> None:
        """Enter, durably, how the wall clock stood to the time since boot once it was set. Raises SpoolError."""

        def change(db: sqlite3.Connection) -> Removed:
            changes.note_boot_offset(db, boot, offset_us)
            return Removed()

        self._writer.change(change).result()

    def boot_offset_us(self, boot: str) -> int | None:
        """As entered by `note_boot_clock`; None where the clock of that boot was never seen set."""
        with self._lock:
            return changes.boot_offset_us(self._reader, boot)

    def has_boot(self, boot: str) -> bool:
        """Whether samples were captured on the unset clock of this boot."""
        with self._lock:
            return changes.is_boot_unset(self._reader, boot)

    def holds_boot(self, boot: str) -> bool:
        """Whether an envelope's times rest on the clock of this boot."""
        with self._lock:
            return self._reader.execute("SELECT 1 FROM envelope WHERE boot = ? LIMIT 1", (boot,)).fetchone() is not None

    def lease(self, id_: int) -> Envelope | None:
        """Lease this very envelope, whatever its turn; None when it is gone."""
        with self._lock:
            return self._leases.lease(id_)

    def part_backlog(self) -> None:
        """Count everything spooled so far as old, and later appends as fresh."""
        with self._lock:
            self._leases.part(self._reader.execute("SELECT coalesce(max(id), 0) FROM envelope").fetchone()[0])

    def release(self, ids: Iterable[int]) -> None:
        """Give leases back: these were not sent, or not settled in time, and are sent again."""
        with self._lock:
            self._leases.release(ids)

    def park(self, id_: int, reason: str) -> None:
        """Park an envelope that can never be sent as things are. Raises SpoolError."""
        self._change_state([id_], State.PARKED, reason)

    def unpark_all(self, but_for: str) -> None:
        """Let parked envelopes be tried again, but for those whose reason begins so. Raises SpoolError."""
        with self._lock:
            found = [entry.id for entry in database.parked(self._reader, limit=100_000) if not entry.reason.startswith(but_for)]
        self.replay(found)

    def oldest_parked(self, reason: str, after_id: int) -> int | None:
        """The oldest above an id that is parked for a reason that begins so; None when there is none."""
        with self._lock:
            return database.oldest_parked(self._reader, reason, after_id)

    def replay(self, ids: Container[int] | None) -> None:
        """Let these parked envelopes be tried again; None: all that are parked.

        Raises:
            SpoolError: the spool is closed or broken.
        """
        with self._lock:
            found = [entry.id for entry in database.parked(self._reader, limit=100_000) if ids is None or entry.id in ids]
        if found:
            self._change_state(found, State.READY)

    def waiting_objects(self, limit: int = 1, min_priority: int = 0) -> list[WaitingObject]:
        """The large payloads to send next, oldest first."""
        with self._lock:
            return database.waiting_objects(self._reader, limit, min_priority)

    def read_object(self, digest: Digest, offset: int, length: int) -> bytes:
        """Bytes of a large payload. Raises OSError when it is gone or was changed."""
        return self._objects.read(digest, offset, length)

    def object_settled(self, digest: Digest) -> None:
        """A large payload is settled: the envelopes that waited for it may be sent. Raises SpoolError."""
        with self._lock:
            ids = database.ids_waiting_for(self._reader, digest)
        self._change_state(ids, State.READY)

    def object_refused(self, digest: Digest, reason: str) -> None:
        """A large payload can never be sent: park the envelopes that wait for it. Raises SpoolError."""
        with self._lock:
            ids = database.ids_waiting_for(self._reader, digest)
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
            return database.books(self._reader)

    def refused(self) -> dict[str, RefusedStream]:
        """Refused samples by stream, as the core's last receipt reports them."""
        with self._lock:
            return database.refused(self._reader)

    def epochs(self) -> tuple[EpochReport, ...]:
        """Every epoch that is not settled in full."""
        with self._lock:
            return database.epochs(self._reader, self.epoch)

    def parked_samples(self) -> int:
        """Samples in parked envelopes: as things are they will never be settled."""
        with self._lock:
            row = self._reader.execute("SELECT coalesce(sum(count), 0) FROM envelope WHERE state = ?", (State.PARKED,)).fetchone()
        return int(row[0])

    def used_bytes(self) -> int:
        """Bytes that count against the quota now."""
        return self._budget.used_bytes

    def oldest_unsettled_us(self) -> int | None:
        """When the oldest envelope that waits was made; None when none waits."""
        with self._lock:
            return database.oldest_unsettled_us(self._reader)

    def close(self) -> None:
        """Commit what is pending, then close the files."""
        self._writer.close()
        if self._writer.failure is not None:
            mark_suspect(self.folder)
        with self._lock:
            self._reader.close()
        self._db.close()
        self._bodies.close()

    def _load(self, id_: int) -> Envelope | None:
        try:
            return open_envelope(database.load(self._reader, id_, self._bodies.read), self._seal)
        except (RottenEnvelopeError, SealBrokenError, sqlite3.DatabaseError) as error:
            log.error("envelope_corrupt", id=id_, error=str(error))  # noqa: TRY400
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
        self._bodies.release(removed.body_files)
        self._listener()
