"""Open the spool at start: a sound database, a new epoch, and files and rows that agree.

A damaged database is moved aside and its readable rows are carried over; a start never fails because of it.
"""

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from catchment.runtime.atomic_files import make_folder, sync_folder, write_atomic
from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError, SpoolError
from edge_agent.spool import changes, database, space_budget
from edge_agent.spool.database import ReadBody, RottenEnvelopeError, used_and_free_bytes, verify_row
from edge_agent.spool.payload_files import FOLDER_NAME as BODIES_FOLDER
from edge_agent.spool.payload_files import BodyFiles, SpoolObjects
from edge_agent.spool.records import DropReason, ObjectRef, State
from edge_agent.spool.sealing import Seal
from schemas.ids import Digest, next_epoch

# Moving a damaged database aside so that a stop at any moment, by a power cut or a full disk, is made up for at the next start.
# A marker file names where the damaged one goes, from before the move until all that can be read of it is carried over.
# Without it a start that failed half-way would leave an empty spool behind, and sources would begin again.
MARKER_NAME = "spool.mending"
# The database last: as long as it lies in its old place, the move is not over.
_SUFFIXES = ("-shm", "-wal", "")

# Freed pages beyond this share of the quota are given back to the disk, while little has to be copied for it.
_COMPACT_SHARE = 4
_COMPACT_USED_SHARE = 16
OBJECTS_FOLDER = "objects"


def begin_move(path: Path, clock: Clock) -> None:
    """Decide where the damaged database goes.

    Raises:
        OSError: the disk refused; nothing was touched.
    """
    write_atomic(path.with_name(MARKER_NAME), f"{path.name}.corrupt-{clock.now_ms()}".encode())


def is_move_begun(path: Path) -> bool:
    """Whether a mending was begun, now or by an earlier process, and is not over."""
    return path.with_name(MARKER_NAME).exists()


def move_aside(path: Path) -> Path:
    """Move the damaged database to where `begin_move` decided, or, where that was done before, delete its unfinished successor.

    Returns:
        Where the damaged one is.

    Raises:
        OSError: the disk refused; call it again at the next start.
    """
    aside = path.with_name(path.with_name(MARKER_NAME).read_text(encoding="utf-8"))
    is_moved = aside.exists()
    for suffix in _SUFFIXES:
        part = path.with_name(path.name + suffix)
        if is_moved:
            part.unlink(missing_ok=True)
        elif part.exists():
            part.rename(aside.with_name(aside.name + suffix))
            # Durable one by one: a log must never be left in the old place when its database is gone from there.
            sync_folder(path.parent)
    return aside


def forget_successor(path: Path) -> None:
    """Delete what was made in the damaged one's place and is not whole. What the disk refuses to delete is deleted next time."""
    for suffix in _SUFFIXES:
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def end_move(path: Path) -> None:
    """All that can be read was carried over, durably.

    Raises:
        OSError: the disk refused; it is carried over once more at the next start.
    """
    path.with_name(MARKER_NAME).unlink(missing_ok=True)
    sync_folder(path.parent)


SUSPECT_NAME = "spool.suspect"
_ROW = (
    "id, stream, epoch, first_seq, count, cost_bytes, priority, state, crc, contract_version, encoding, created_us,"
    " digest, object_bytes, reason, file, at, body_bytes, boot, clock_offset_us, body"
)
_MAX_UNREADABLE_STEPS = 100_000
_PRIMARY = 0xFF
_NO_CAP_BYTES = 1 << 40
_REFUSALS = frozenset({
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL,
})  # fmt: skip
# What cannot be read is damaged; what cannot be written says nothing of what is there.
_REFUSED_WRITES = frozenset({
    sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC, sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_DELETE, sqlite3.SQLITE_IOERR_LOCK, sqlite3.SQLITE_IOERR_RDLOCK, sqlite3.SQLITE_IOERR_UNLOCK,
    sqlite3.SQLITE_IOERR_NOMEM, sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_IOERR_SHMMAP,
    sqlite3.SQLITE_IOERR_SHMLOCK,
})  # fmt: skip

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """An open, sound database, and what a repair could and could not save."""

    db: sqlite3.Connection
    moved_aside: Path | None = None
    saved_samples: int = 0
    lost_samples: int = 0


def mark_suspect(folder: Path) -> None:
    """Let the next start look closely. A disk that takes no mark (gone, read-only after an error) must not end the end."""
    try:
        (folder / SUSPECT_NAME).touch()
    except OSError as error:
        log.error("spool_suspicion_not_recorded", folder=str(folder), error=str(error))  # noqa: TRY400


def open_sound(folder: Path, max_bytes: int, page_bytes: int, clock: Clock, read_body: ReadBody) -> Opened:
    """Open the spool's database; a damaged one is moved aside to `*.corrupt-<ms>` and salvaged.

    Raises:
        sqlite3.Error: the disk refuses, full or otherwise; nothing is lost, try again later.
        OSError: likewise.
    """
    path = folder / database.FILE_NAME
    suspect = folder / SUSPECT_NAME
    if not is_move_begun(path):
        try:
            db = _open_probed(path, max_bytes, page_bytes, is_thorough=suspect.exists())
        except sqlite3.DatabaseError as error:
            if _is_refusal(error, path):
                raise
            log.error("spool_damaged", path=str(path), error=str(error))  # noqa: TRY400
            begin_move(path, clock)
        else:
            suspect.unlink(missing_ok=True)
            return Opened(db)
    old = move_aside(path)
    # Without the cap: rows that lie less densely than before must not find the new file full, at this start and every other.
    db = database.connect_writer(path, _NO_CAP_BYTES, page_bytes)
    try:
        opened = _salvage(old, db, read_body)
        database.cap(db, max_bytes)
        suspect.unlink(missing_ok=True)
        end_move(path)
    except (sqlite3.Error, OSError):
        db.close()
        # The next try makes it again: until then it must not take the little room there is.
        forget_successor(path)
        raise
    return opened


def _open_probed(path: Path, max_bytes: int, page_bytes: int, *, is_thorough: bool) -> sqlite3.Connection:
    db = database.connect_writer(path, max_bytes, page_bytes)
    try:
        _probe(db, is_thorough=is_thorough)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _is_refusal(error: sqlite3.Error, path: Path | None = None) -> bool:
    """Whether this tells of the disk or of the process, not of what is stored: then the database is as good as it was."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    if path is not None and code & _PRIMARY == sqlite3.SQLITE_CANTOPEN:
        # A log that a full disk has no room for gives the same code as something in the database's place that is no file.
        parts = [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm")]
        return all(part.is_file() for part in parts if part.exists())
    return code in _REFUSED_WRITES or code & _PRIMARY in _REFUSALS


def _probe(db: sqlite3.Connection, *, is_thorough: bool) -> None:
    """Read what every start needs; after a failure in service, check every page."""
    for table in ("meta", "books", "dropped_count", "epoch", "position", "position_tail"):
        db.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 # constants
    # Each alone is one descent of the tree; asked together they would read every row.
    db.execute("SELECT max(id) FROM envelope").fetchone()
    db.execute("SELECT min(id) FROM envelope").fetchone()
    if is_thorough:
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"quick_check: {verdict}")


def _salvage(aside_path: Path, db: sqlite3.Connection, read_body: ReadBody) -> Opened:
    try:
        old = sqlite3.connect(aside_path, isolation_level=None)
        old.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        if _is_refusal(error, aside_path):
            raise
        log.error("spool_not_salvaged", path=str(aside_path), error=str(error))  # noqa: TRY400
        return Opened(db, aside_path)
    try:
        db.execute("BEGIN IMMEDIATE")
        for table in ("meta", "books", "dropped_count", "dropped_range", "epoch", "position", "position_tail"):
            _carry_over(old, db, table)
        saved = sum(_keep(db, row, read_body) for row in _rows(old))
        lost = _balance(db)
        db.execute("COMMIT")
    finally:
        old.close()
    log.error("spool_salvaged", moved_aside=str(aside_path), saved_samples=saved, lost_samples=lost)
    return Opened(db, aside_path, saved, lost)


def _carry_over(old: sqlite3.Connection, db: sqlite3.Connection, table: str) -> None:
    """Copy one small table, row by row as far as it can be read."""
    for row in _readable(old, table):
        try:
            db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(row))})", row)  # noqa: S608 # constants
        except sqlite3.Error as error:
            # A disk that refuses must not pass for a rotten row: it would cost the rest of the table.
            if _is_refusal(error):
                raise
            log.warning("table_row_lost", table=table, error=str(error))


def _readable(old: sqlite3.Connection, table: str) -> Iterator[tuple[object, ...]]:
    try:
        yield from old.execute(f"SELECT * FROM {table}")  # noqa: S608 # constants
    except sqlite3.Error as error:
        log.warning("table_part_lost", table=table, error=str(error))


def _rows(old: sqlite3.Connection) -> Iterator[tuple[object, ...]]:
    """Every row that can still be read; steps over those that cannot, ever wider where whole pages are gone."""
    at, step, unreadable = 0, 1, 0
    columns = _columns_of(old)
    while unreadable < _MAX_UNREADABLE_STEPS and at < 2**62:
        try:
            row = old.execute(f"SELECT {columns} FROM envelope WHERE id > ? ORDER BY id LIMIT 1", (at,)).fetchone()  # noqa: S608
        except sqlite3.Error:
            at += step
            step = min(step * 2, 1 << 40) if unreadable > 1_000 else 1
            unreadable += 1
            continue
        if row is None:
            return
        at, step = row[0], 1
        yield row


def _columns_of(old: sqlite3.Connection) -> str:
    """`_ROW` for a spool that may be of an earlier version: what it has no column for is empty."""
    try:
        known = {row[1] for row in old.execute("PRAGMA table_info(envelope)")}
    except sqlite3.Error as error:
        log.warning("spool_columns_unreadable", error=str(error))
        return _ROW
    empty = {name: "''" if form.startswith("TEXT") else "0" for name, form in database.ADDED_COLUMNS.items()}
    return ", ".join(name if not known or name in known else empty.get(name, name) for name in _ROW.split(", "))


def _keep(db: sqlite3.Connection, row: tuple[object, ...], read_body: ReadBody) -> int:
    try:
        # Its columns without cost, priority, state and reason, which no checksum covers.
        envelope = verify_row((*row[:5], *row[8:14], *row[15:]), read_body)
        db.execute(f"INSERT INTO envelope ({_ROW}) VALUES ({','.join('?' * len(row))})", row)  # noqa: S608
    except (RottenEnvelopeError, sqlite3.IntegrityError) as error:
        log.warning("row_lost", error=str(error))
        return 0
    db.execute(
        "INSERT INTO epoch VALUES (?,?,?) ON CONFLICT DO UPDATE SET next_seq = max(next_seq, excluded.next_seq)",
        (envelope.stream, envelope.span.epoch, envelope.span.end_seq),
    )
    return envelope.span.count


def _balance(db: sqlite3.Connection) -> int:
    """Make the books say what is there: spooled is what was saved, and what else is missing was dropped as corrupt."""
    lost = 0
    db.execute("INSERT OR IGNORE INTO books (stream) SELECT DISTINCT stream FROM envelope")
    for stream, captured, settled, _ in db.execute("SELECT stream, captured, settled, spooled FROM books").fetchall():
        spooled = db.execute("SELECT coalesce(sum(count), 0) FROM envelope WHERE stream = ?", (stream,)).fetchone()[0]
        dropped = db.execute("SELECT coalesce(sum(count), 0) FROM dropped_count WHERE stream = ?", (stream,)).fetchone()[0]
        missing = max(0, captured - settled - spooled - dropped)
        db.execute(
            "UPDATE books SET captured = ?, spooled = ? WHERE stream = ?",
            (settled + spooled + dropped + missing, spooled, stream),
        )
        for epoch, low, high in _missing_spans(db, stream, missing):
            changes.count_dropped(db, stream, epoch, (low, high), DropReason.CORRUPT)
        lost += missing
    return lost


def _missing_spans(db: sqlite3.Connection, stream: str, missing: int) -> Iterator[tuple[int, int, int]]:
    """The newest unaccounted seqs, newest epoch first: older holes are most likely settled long ago."""
    for epoch, next_seq in db.execute(
        "SELECT epoch, next_seq FROM epoch WHERE stream = ? ORDER BY epoch DESC", (stream,)
    ).fetchall():
        rows = db.execute(
            "SELECT first_seq, first_seq + count FROM envelope WHERE stream = ? AND epoch = ?"
            " UNION ALL SELECT low, high FROM dropped_range WHERE stream = ? AND epoch = ? ORDER BY 1 DESC",
            (stream, epoch, stream, epoch),
        )
        high = next_seq
        for low_end, row_high in [*rows.fetchall(), (0, 0)]:
            take = min(missing, high - row_high)
            if take > 0:
                missing -= take
                yield epoch, high - take, high
            high = min(high, low_end)
    if missing > 0:
        # No epoch is left that could name them: counted without a range, in an epoch no sample ever had.
        yield 0, 0, missing


@dataclass(frozen=True, slots=True)
class SpoolFiles:
    """All that a spool works on."""

    opened: Opened
    epoch: int
    bodies: BodyFiles
    objects: SpoolObjects
    reader: sqlite3.Connection


def open_files(folder: Path, max_bytes: int, page_bytes: int, clock: Clock, seal: Seal | None) -> SpoolFiles:
    """Open what is there, make what is missing, repair what is damaged. On a full disk the reserve file is deleted for that.

    Raises:
        SpoolError: the disk refuses; nothing is lost, try again later.
        ConfigError: the spool holds samples that this seal cannot open.
    """
    try:
        try:
            return _open_files(folder, max_bytes, page_bytes, clock, seal)
        except (sqlite3.Error, OSError):
            if not space_budget.free_if_full(folder):
                raise
            return _open_files(folder, max_bytes, page_bytes, clock, seal)
    except (sqlite3.Error, OSError) as error:
        raise SpoolError(f"the spool in {folder} cannot be opened: {error}; check the disk and the folder's owner") from error


def _open_files(folder: Path, max_bytes: int, page_bytes: int, clock: Clock, seal: Seal | None) -> SpoolFiles:
    make_folder(folder)
    bodies = BodyFiles(folder / BODIES_FOLDER, max_bytes)
    opened = open_sound(folder, max_bytes, page_bytes, clock, bodies.read)
    try:
        check_key(opened.db, seal)
        compact(opened.db, max_bytes)
        epoch = open_epoch(opened.db, clock)
        objects = SpoolObjects(folder / OBJECTS_FOLDER, seal)
        match_files(opened.db, objects, bodies)
        reader = database.connect_reader(folder / database.FILE_NAME)
    except (sqlite3.Error, OSError):
        opened.db.close()
        raise
    return SpoolFiles(opened, epoch, bodies, objects, reader)


def open_epoch(db: sqlite3.Connection, clock: Clock) -> int:
    """A new epoch, remembered before any seq of it is given out."""
    row = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
    known = db.execute("SELECT coalesce(max(epoch), 0) FROM epoch").fetchone()[0]
    epoch = next_epoch(max(row[0] if row else 0, known), clock.now_ms(), secrets.randbits(20))
    db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))
    return epoch


def check_key(db: sqlite3.Connection, seal: Seal | None) -> None:
    """Remember which key the bodies are sealed with. Another one, or none, is taken only once nothing is left of the old.

    Raises:
        ConfigError: the spool holds samples that this key cannot open.
    """
    row = db.execute("SELECT value FROM meta WHERE name = 'key'").fetchone()
    known, mine = row[0] if row else None, None if seal is None else seal.key_id
    if known == mine:
        return
    if known is not None and db.execute("SELECT 1 FROM envelope LIMIT 1").fetchone() is not None:
        what = "spool.key is missing" if mine is None else "spool.key is another key"
        raise ConfigError(f"{what}, and the spool holds samples sealed with the old one; give that back until they are settled")
    if mine is None:
        db.execute("DELETE FROM meta WHERE name = 'key'")
    else:
        db.execute("INSERT OR REPLACE INTO meta VALUES ('key', ?)", (mine,))


def match_files(db: sqlite3.Connection, objects: SpoolObjects, bodies: BodyFiles) -> None:
    """Give up rows whose large payload is gone or short (a damaged file system), and delete files that no row names."""
    rows = db.execute("SELECT id, digest, object_bytes, state FROM envelope WHERE digest <> ''").fetchall()
    lost = [
        id_ for id_, digest, size, state in rows if state == State.WAITING and not objects.holds(ObjectRef(Digest(digest), size))
    ]
    if lost:
        log.error("large_payloads_lost", count=len(lost))
        db.execute("BEGIN IMMEDIATE")
        changes.drop(db, lost, DropReason.CORRUPT)
        db.execute("COMMIT")
    objects.sweep(row[1] for row in rows)
    bodies.adopt(db.execute("SELECT file, count(*) FROM envelope WHERE file > 0 GROUP BY file"))


def compact(db: sqlite3.Connection, max_bytes: int) -> None:
    """Give the disk back what a long backlog left free in the database, where that costs little."""
    used_bytes, free_bytes = used_and_free_bytes(db)
    if free_bytes > max_bytes // _COMPACT_SHARE and used_bytes < max_bytes // _COMPACT_USED_SHARE:
        db.execute("VACUUM")
