"""Reading the spool beside its writer: what to send next, the books, the epochs. Nothing here loads a backlog's bodies."""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.errors import SpoolError
from edge_agent.spool.records import BodyPlace, ClockReference, Envelope, NewEnvelope, ObjectRef, State, WaitingObject, checksum
from schemas.envelope import Span
from schemas.errors import SchemaError
from schemas.ids import Digest, StreamName
from schemas.receipts import RefusedStream
from schemas.reported import DroppedRange, EpochReport, StreamBooks

COLUMNS = (
    "id, stream, epoch, first_seq, count, crc, contract_version, encoding, created_us, digest, object_bytes,"
    " file, at, body_bytes, boot, clock_offset_us, body"
)
ReadBody = Callable[[BodyPlace], bytes]
# More dropped ranges than this are told joined: the core needs them to close epochs, not one by one at once.
_MAX_RANGES_PER_EPOCH = 10_000
_MAX_ID = 2**63 - 1


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
    """What the core refuses, by stream, as its last receipt tells; stream "": messages that named none."""
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
