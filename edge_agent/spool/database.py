"""The spool's SQLite file: its tables, how it is opened, and what is read from it next to its writer.

Readers find what to send next, the books and the epochs; none loads a backlog's bodies.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import SpoolError
from edge_agent.spool.records import BodyPlace, ClockReference, Envelope, NewEnvelope, ObjectRef, State, WaitingObject, checksum
from schemas.envelope import Span
from schemas.errors import SchemaError
from schemas.ids import Digest, StreamName
from schemas.receipts import RefusedStream
from schemas.reported import DroppedRange, EpochReport, StreamBooks

FILE_NAME = "spool.db"
# Small pages spare the flash where commits are small; large ones store 200 kB frames at twice the rate, because their
# overflow chains are eight times shorter. A file keeps the size it was made with.
SMALL_PAGE_BYTES = 4_096
LARGE_PAGE_BYTES = 32_768
# Room next to the database file itself: the write-ahead log, and what deletes need to write on a full disk (a quarter).
RESERVE_BYTES = 4 * 1024 * 1024

# `body` is the last column: a row's head is then read without touching the overflow pages of its body.
TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS books (
    stream TEXT PRIMARY KEY, captured INTEGER NOT NULL DEFAULT 0, settled INTEGER NOT NULL DEFAULT 0,
    spooled INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dropped_count (
    stream TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (stream, reason)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dropped_range (
    stream TEXT NOT NULL, epoch INTEGER NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (stream, epoch, low)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS epoch (
    stream TEXT NOT NULL, epoch INTEGER NOT NULL, next_seq INTEGER NOT NULL, PRIMARY KEY (stream, epoch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refused (
    stream TEXT PRIMARY KEY, quarantined INTEGER NOT NULL, committed INTEGER NOT NULL, in_row INTEGER NOT NULL,
    reason TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refused_in_page (
    stream TEXT NOT NULL, page INTEGER NOT NULL, PRIMARY KEY (stream, page)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS receipt_page (
    page INTEGER PRIMARY KEY, run INTEGER NOT NULL, pages INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS position (source TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS position_tail (
    source TEXT NOT NULL, n INTEGER NOT NULL, value BLOB NOT NULL, PRIMARY KEY (source, n));
CREATE TABLE IF NOT EXISTS envelope (
    id INTEGER PRIMARY KEY, stream TEXT NOT NULL, epoch INTEGER NOT NULL, first_seq INTEGER NOT NULL,
    count INTEGER NOT NULL, cost_bytes INTEGER NOT NULL, priority INTEGER NOT NULL, state INTEGER NOT NULL,
    crc INTEGER NOT NULL, contract_version TEXT NOT NULL, encoding TEXT NOT NULL, created_us INTEGER NOT NULL,
    digest TEXT NOT NULL, object_bytes INTEGER NOT NULL, reason TEXT NOT NULL DEFAULT '',
    file INTEGER NOT NULL DEFAULT 0, at INTEGER NOT NULL DEFAULT 0, body_bytes INTEGER NOT NULL DEFAULT 0,
    boot TEXT NOT NULL DEFAULT '', clock_offset_us INTEGER NOT NULL DEFAULT 0, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS envelope_by_span ON envelope (stream, epoch, first_seq);
CREATE INDEX IF NOT EXISTS envelope_by_state ON envelope (state, id);
CREATE INDEX IF NOT EXISTS envelope_by_value ON envelope (priority, id, cost_bytes);
CREATE INDEX IF NOT EXISTS envelope_by_digest ON envelope (digest) WHERE digest <> '';
CREATE INDEX IF NOT EXISTS envelope_by_file ON envelope (file) WHERE file > 0;
"""

# Columns that spools of earlier versions lack, and how they are declared.
ADDED_COLUMNS = {
    "file": "INTEGER NOT NULL DEFAULT 0",
    "at": "INTEGER NOT NULL DEFAULT 0",
    "body_bytes": "INTEGER NOT NULL DEFAULT 0",
    "boot": "TEXT NOT NULL DEFAULT ''",
    "clock_offset_us": "INTEGER NOT NULL DEFAULT 0",
}

COLUMNS = (
    "id, stream, epoch, first_seq, count, crc, contract_version, encoding, created_us, digest, object_bytes,"
    " file, at, body_bytes, boot, clock_offset_us, body"
)
ReadBody = Callable[[BodyPlace], bytes]
# More dropped ranges than this are told joined: the core needs them to close epochs, not one by one at once.
_MAX_RANGES_PER_EPOCH = 10_000
_MAX_ID = 2**63 - 1


def connect_writer(path: Path, max_bytes: int, page_bytes: int) -> sqlite3.Connection:
    """Open for writing, creating what is missing. The page cap keeps the file below the quota, so a full spool still drains.

    Raises:
        sqlite3.Error: the file is damaged or the disk refused.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
    try:
        connection.execute(f"PRAGMA page_size={page_bytes}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute(f"PRAGMA wal_autocheckpoint={RESERVE_BYTES * 3 // 4 // page_bytes}")
        connection.execute(f"PRAGMA journal_size_limit={RESERVE_BYTES * 3 // 4}")
        connection.execute("PRAGMA cache_size=-2048")
        connection.execute("PRAGMA temp_store=FILE")
        # Zeroing freed pages would write every settled byte a second time.
        connection.execute("PRAGMA secure_delete=OFF")
        cap(connection, max_bytes)
        _add_columns(connection)
        # In one transaction: one write and sync instead of one for each table.
        connection.executescript(f"BEGIN IMMEDIATE;{TABLES}COMMIT;")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def cap(connection: sqlite3.Connection, max_bytes: int) -> None:
    """Let the file grow no further than the quota allows; one that is larger already stays as large as it is."""
    page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={(max_bytes - RESERVE_BYTES) // page_bytes}")


def _add_columns(connection: sqlite3.Connection) -> None:
    """Spools of the first version kept every body in its row, and those after it knew no unset clocks."""
    known = {row[1] for row in connection.execute("PRAGMA table_info(envelope)")}
    for name, form in ADDED_COLUMNS.items():
        if known and name not in known:
            connection.execute(f"ALTER TABLE envelope ADD COLUMN {name} {form}")


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open an existing spool next to its writer, for reading alone.

    Raises:
        sqlite3.Error: there is no such file, or it is damaged.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA cache_size=-1024")
    connection.execute("PRAGMA query_only=ON")
    return connection


def used_and_free_bytes(connection: sqlite3.Connection) -> tuple[int, int]:
    """Bytes of the pages in use, and of the freed ones, which are filled again before the file grows."""
    page_bytes = int(connection.execute("PRAGMA page_size").fetchone()[0])
    free = int(connection.execute("PRAGMA freelist_count").fetchone()[0])
    pages = int(connection.execute("PRAGMA page_count").fetchone()[0])
    return (pages - free) * page_bytes, free * page_bytes


class RottenEnvelopeError(SpoolError):
    """The stored bytes are not those that were captured: give the envelope up as corrupt."""


@dataclass(frozen=True, slots=True)
class Parked:
    """A parked envelope, for the operator's eyes."""

    id: int
    stream: str
    epoch: int
    first_seq: int
    count: int
    reason: str


def ready_after(
    db: sqlite3.Connection, after_id: int, upto_id: int | None, limit: int, *, with_value: bool
) -> list[tuple[int, int, str, str]]:
    """Ids, priorities, streams and boots of what may be sent, in the order of capture; without values from the index alone."""
    columns = "priority, stream, boot" if with_value else "0, '', ''"
    query = f"SELECT id, {columns} FROM envelope WHERE state = ? AND id > ? AND id <= ? ORDER BY id LIMIT ?"  # noqa: S608 # constants
    return db.execute(query, (State.READY, after_id, _MAX_ID if upto_id is None else upto_id, limit)).fetchall()


def load(db: sqlite3.Connection, id_: int, read_body: ReadBody) -> Envelope | None:
    """One envelope with its body, its checksum verified; None when it is gone.

    Args:
        db: any connection.
        id_: whose.
        read_body: reads bodies that lie in files.

    Raises:
        RottenEnvelopeError: the checksum does not match.
    """
    row = db.execute(f"SELECT {COLUMNS} FROM envelope WHERE id = ?", (id_,)).fetchone()  # noqa: S608 # a constant
    if row is None:
        return None
    return verify_row(row, read_body)


def verify_row(row: tuple[object, ...], read_body: ReadBody) -> Envelope:
    """Build an envelope from a row of `COLUMNS`, if the row is what was stored.

    Raises:
        RottenEnvelopeError: it is not.
    """
    id_, stream, epoch, first_seq, count, crc, version, encoding, created_us, digest, object_bytes, file, at, size = row[:14]
    boot, clock_offset_us, body = row[14:]
    try:
        name = StreamName(stream)  # type: ignore[arg-type]  # a rotten row may hold anything; what does not fit raises here
        span = Span(epoch, first_seq, count)  # type: ignore[arg-type]
        large = ObjectRef(Digest(digest), object_bytes) if digest else None  # type: ignore[arg-type]
        if file:
            body = read_body(BodyPlace(file, at, size))  # type: ignore[arg-type]
        clock = ClockReference(boot, clock_offset_us) if boot else None  # type: ignore[arg-type]
        new = NewEnvelope(count, body, version, encoding, created_us, large, clock=clock)  # type: ignore[arg-type]
        is_sound = checksum(name, span, new) == crc
    except (SchemaError, SpoolError, TypeError, ValueError, OverflowError, FileNotFoundError) as error:
        raise RottenEnvelopeError(f"envelope {id_} cannot be read: {error}") from error
    if not is_sound:
        raise RottenEnvelopeError(f"envelope {id_} of {name} {span} fails its checksum")
    return Envelope(id_, name, span, new.body, new.contract_version, new.encoding, new.created_us, clock)  # type: ignore[arg-type]


def waiting_objects(db: sqlite3.Connection, limit: int, min_priority: int = 0) -> list[WaitingObject]:
    """The large payloads to send next, oldest first."""
    rows = db.execute(
        "SELECT id, digest, object_bytes FROM envelope WHERE state = ? AND priority >= ? ORDER BY id LIMIT ?",
        (State.WAITING, min_priority, limit),
    ).fetchall()
    return [WaitingObject(id_, ObjectRef(Digest(digest), size)) for id_, digest, size in rows]


def oldest_unsettled_us(db: sqlite3.Connection) -> int | None:
    """When the oldest envelope that is not parked was made, microseconds since 1970; None when there is none."""
    rows = [
        row
        for state in (State.READY, State.WAITING)
        for row in db.execute("SELECT id, created_us FROM envelope WHERE state = ? ORDER BY id LIMIT 1", (state,))
    ]
    return min(rows)[1] if rows else None


def ids_waiting_for(db: sqlite3.Connection, digest: Digest) -> list[int]:
    """The envelopes that wait for a large payload."""
    rows = db.execute("SELECT id FROM envelope WHERE digest = ? AND state = ?", (digest, State.WAITING))
    return [id_ for (id_,) in rows]


def parked(db: sqlite3.Connection, limit: int = 100) -> list[Parked]:
    """Parked envelopes, oldest first."""
    query = "SELECT id, stream, epoch, first_seq, count, reason FROM envelope WHERE state = ? ORDER BY id LIMIT ?"
    return [Parked(*row) for row in db.execute(query, (State.PARKED, limit))]


def oldest_parked(db: sqlite3.Connection, reason: str, after_id: int) -> int | None:
    """The oldest above an id that is parked for a reason that begins so."""
    query = "SELECT id FROM envelope WHERE state = ? AND id > ? AND substr(reason, 1, ?) = ? ORDER BY id LIMIT 1"
    row = db.execute(query, (State.PARKED, after_id, len(reason), reason)).fetchone()
    return None if row is None else int(row[0])


def books(db: sqlite3.Connection) -> tuple[StreamBooks, ...]:
    """The books of every stream, over the device's whole life."""
    dropped: dict[str, dict[str, int]] = {}
    with _snapshot(db):
        for stream, reason, count in db.execute("SELECT stream, reason, count FROM dropped_count"):
            dropped.setdefault(stream, {})[reason] = count
        rows = db.execute("SELECT stream, captured, settled, spooled FROM books ORDER BY stream").fetchall()
    return tuple(
        StreamBooks(stream, captured, settled, spooled, dropped.get(stream, {})) for stream, captured, settled, spooled in rows
    )


def refused(db: sqlite3.Connection) -> dict[str, RefusedStream]:
    """Return the refusals of the core's last receipt by stream; stream "": messages that named none."""
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'refused'").fetchone() is None:
        return {}  # a spool that only an older agent has opened
    rows = db.execute("SELECT stream, quarantined, committed, in_row, reason FROM refused ORDER BY stream")
    return {stream: RefusedStream(*figures) for stream, *figures in rows}


def epochs(db: sqlite3.Connection, open_epoch: int) -> tuple[EpochReport, ...]:
    """Every epoch the core has not settled in full, with the ranges that were given up and that no receipt covers yet."""
    reports = []
    with _snapshot(db):
        for stream, epoch, next_seq in db.execute("SELECT stream, epoch, next_seq FROM epoch ORDER BY stream, epoch").fetchall():
            rows = db.execute(
                "SELECT low, high, reason FROM dropped_range WHERE stream = ? AND epoch = ? ORDER BY low LIMIT ?",
                (stream, epoch, _MAX_RANGES_PER_EPOCH),
            )
            gone = tuple(DroppedRange(*row) for row in rows)
            reports.append(EpochReport(stream, epoch, next_seq, closed=epoch != open_epoch, dropped=gone))
    return tuple(reports)


class _snapshot:  # noqa: N801 # reads as a statement
    """One moment of the database for several queries; a no-op inside a transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._is_outer = not db.in_transaction

    def __enter__(self) -> None:
        if self._is_outer:
            self._db.execute("BEGIN")

    def __exit__(self, *_: object) -> None:
        if self._is_outer:
            self._db.execute("COMMIT")
