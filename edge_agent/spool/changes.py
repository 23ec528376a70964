"""Every change of the spool's tables, one function each, inside the caller's transaction. Each keeps the books balanced."""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from edge_agent.spool.quota import EvictionCandidate
from edge_agent.spool.records import Append, BodyPlace, Passed, State, checksum
from schemas.envelope import Span as EnvelopeSpan
from schemas.ids import Digest
from schemas.ranges import Ranges, Span
from schemas.receipts import MAX_REASON_CHARS, Receipt

# Where sources resume: small values in one row; what is larger in pieces, of which a change rewrites only those that differ.
# Two of them fill a small page.
PIECE_BYTES = 1_900


def keep_position(db: sqlite3.Connection, source: str, value: bytes) -> None:
    """Remember a position, inside the caller's transaction. One that only grows at its end costs a piece or two."""
    db.execute(
        "INSERT INTO position VALUES (?,?) ON CONFLICT DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
        (source, value[:PIECE_BYTES]),
    )
    pieces = range(PIECE_BYTES, len(value), PIECE_BYTES)
    if pieces:
        db.executemany(
            "INSERT INTO position_tail VALUES (?,?,?)"
            " ON CONFLICT DO UPDATE SET value = excluded.value WHERE value <> excluded.value",
            ((source, n, value[at : at + PIECE_BYTES]) for n, at in enumerate(pieces)),
        )
    db.execute("DELETE FROM position_tail WHERE source = ? AND n >= ?", (source, len(pieces)))


def load_position(db: sqlite3.Connection, source: str) -> bytes | None:
    """A source's position; None when it has none."""
    row = db.execute(
        "SELECT p.value, (SELECT group_concat(hex(value), '') FROM (SELECT value FROM position_tail WHERE source = p.source"
        " ORDER BY n)) FROM position p WHERE p.source = ?",
        (source,),
    ).fetchone()
    return None if row is None else bytes(row[0]) + bytes.fromhex(row[1] or "")


def hand_over_position(db: sqlite3.Connection, before: str, source: str) -> None:
    """Give the position of one source to another that has none."""
    moved = db.execute("UPDATE OR IGNORE position SET source = ? WHERE source = ?", (source, before))
    if moved.rowcount > 0:
        db.execute("DELETE FROM position_tail WHERE source = ?", (source,))
        db.execute("UPDATE position_tail SET source = ? WHERE source = ?", (source, before))


# Boots in which samples were captured before the wall clock was set, and what corrects their times. Rows of the table `meta`.
_BOOT_PREFIX = "boot:"
# The offset of a boot whose clock was never seen set.
_UNKNOWN_OFFSET = -(2**63)
# A device that never gets the time must not fill the table; a boot that is left out sends its samples uncorrected.
_MAX_BOOTS = 1_000


def note_unset_boot(db: sqlite3.Connection, boot: str) -> None:
    """Remember that envelopes' times rest on the unset clock of a boot; what is known of it stays."""
    (count,) = db.execute("SELECT count(*) FROM meta WHERE name LIKE 'boot:%'").fetchone()
    if count < _MAX_BOOTS:
        db.execute("INSERT OR IGNORE INTO meta VALUES (?,?)", (_BOOT_PREFIX + boot, _UNKNOWN_OFFSET))


def note_boot_offset(db: sqlite3.Connection, boot: str, offset_us: int) -> None:
    """Enter how the wall clock stood to the time since boot once it was set, in microseconds; older boots are forgotten.

    The first offset of a boot stays: an envelope that is sent twice must be corrected by the same amount both times.
    """
    db.execute(
        "DELETE FROM meta WHERE name LIKE 'boot:%' AND name <> ? AND value <> ?"
        " AND NOT EXISTS (SELECT 1 FROM envelope WHERE 'boot:' || boot = meta.name)",
        (_BOOT_PREFIX + boot, _UNKNOWN_OFFSET),
    )
    db.execute("INSERT OR IGNORE INTO meta VALUES (?,?)", (_BOOT_PREFIX + boot, offset_us))
    db.execute("UPDATE meta SET value = ? WHERE name = ? AND value = ?", (offset_us, _BOOT_PREFIX + boot, _UNKNOWN_OFFSET))


def boot_offset_us(db: sqlite3.Connection, boot: str) -> int | None:
    """As entered by `note_boot_offset`; None where the clock of that boot was never seen set."""
    row = db.execute("SELECT value FROM meta WHERE name = ? AND value <> ?", (_BOOT_PREFIX + boot, _UNKNOWN_OFFSET)).fetchone()
    return None if row is None else int(row[0])


def is_boot_unset(db: sqlite3.Connection, boot: str) -> bool:
    """Whether samples were captured on the unset clock of this boot."""
    return db.execute("SELECT 1 FROM meta WHERE name = ?", (_BOOT_PREFIX + boot,)).fetchone() is not None


# Rows touched at once: keeps memory flat when a receipt covers a whole backlog.
_CHUNK_ROWS = 500
_IN_ROW = BodyPlace(0, 0, 0)
_Row = tuple[int, str, int, int, int, str, int]
_HEAD = "id, stream, epoch, first_seq, count, digest, file"


@dataclass(frozen=True, slots=True)
class Removed:
    """Envelopes that left the spool: their ids, the large payloads that nothing refers to any more, their bodies' files."""

    ids: tuple[int, ...] = ()
    orphans: tuple[Digest, ...] = ()
    body_files: tuple[int, ...] = ()

    @classmethod
    def all(cls, parts: Iterable["Removed"]) -> "Removed":
        """Merge several removals into one."""
        kept = tuple(parts)
        return cls(
            tuple(chain.from_iterable(part.ids for part in kept)),
            tuple(chain.from_iterable(part.orphans for part in kept)),
            tuple(chain.from_iterable(part.body_files for part in kept)),
        )

    def __add__(self, other: "Removed") -> "Removed":
        return Removed(self.ids + other.ids, self.orphans + other.orphans, self.body_files + other.body_files)


def insert(db: sqlite3.Connection, append: Append, epoch: int, first_seq: int, first_id: int) -> int:
    """Store a batch's envelopes from `first_seq` on, and its source's position. Returns the seq after the last.

    Ids are given by the caller: SQLite would start again from 1 whenever the queue runs empty, below the uplink's cursor.
    """
    seq = first_seq
    rows = []
    for id_, envelope in enumerate(append.envelopes, first_id):
        span = EnvelopeSpan(epoch, seq, envelope.count)
        large, place = envelope.large, envelope.place or _IN_ROW
        rows.append((
            id_, append.stream, epoch, seq, envelope.count, envelope.cost_bytes, append.priority_of(envelope),
            State.READY if large is None else State.WAITING, checksum(append.stream, span, envelope),
            envelope.contract_version, envelope.encoding, envelope.created_us,
            large.digest if large else "", large.size_bytes if large else 0, place.file, place.offset, place.size_bytes,
            envelope.clock.boot if envelope.clock else "", envelope.clock.offset_us if envelope.clock else 0, envelope.body,
        ))  # fmt: skip
        seq = span.end_seq
    db.executemany(
        "INSERT INTO envelope (id, stream, epoch, first_seq, count, cost_bytes, priority, state, crc, contract_version, encoding,"
        " created_us, digest, object_bytes, file, at, body_bytes, boot, clock_offset_us, body)"
        " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
        rows,
    )
    for boot in {clock.boot for envelope in append.envelopes if (clock := envelope.clock) is not None and not clock.is_free}:
        note_unset_boot(db, boot)
    capture(db, append, epoch, seq)
    _book(db, append.stream, spooled=append.count)
    return seq


def capture(db: sqlite3.Connection, append: Append, epoch: int, next_seq: int) -> None:
    """Enter a batch as captured: its seqs are given out and its source's position moves on."""
    db.execute(
        "INSERT INTO epoch VALUES (?,?,?) ON CONFLICT DO UPDATE SET next_seq = excluded.next_seq",
        (append.stream, epoch, next_seq),
    )
    _book(db, append.stream, captured=append.count)
    note(db, Passed(append.stream, append.source, append.position, append.left_out))


def inherit(db: sqlite3.Connection, source: str, choose: Callable[[Sequence[str]], str | None]) -> Removed:
    """The position of the source that `choose` picks, of those that have one, becomes this source's."""
    before = choose([row[0] for row in db.execute("SELECT source FROM position ORDER BY source")])
    if before is not None:
        hand_over_position(db, before, source)
    return Removed()


def note(db: sqlite3.Connection, passed: Passed) -> Removed:
    """Enter what was left out, captured and dropped at once, and remember where the source resumes."""
    for reason, count in passed.left_out:
        _book(db, passed.stream, captured=count)
        db.execute(
            "INSERT INTO dropped_count VALUES (?,?,?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
            (passed.stream, reason, count),
        )
    if passed.position is not None:
        keep_position(db, passed.source, passed.position)
    return Removed()


def count_dropped(db: sqlite3.Connection, stream: str, epoch: int, seqs: tuple[int, int], reason: str) -> None:
    """Enter seqs `[low, high)` as given up: count, reason and range. A range that continues its neighbour is joined to it."""
    low, high = seqs
    db.execute(
        "INSERT INTO dropped_count VALUES (?,?,?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
        (stream, reason, high - low),
    )
    joined = db.execute(
        "UPDATE dropped_range SET high = ? WHERE stream = ? AND epoch = ? AND high = ? AND reason = ?",
        (high, stream, epoch, low, reason),
    )
    if joined.rowcount == 0:
        db.execute("INSERT OR REPLACE INTO dropped_range VALUES (?,?,?,?,?)", (stream, epoch, low, high, reason))


def drop(db: sqlite3.Connection, ids: Sequence[int], reason: str) -> Removed:
    """Give envelopes up."""
    removed: list[Removed] = []
    for start in range(0, len(ids), _CHUNK_ROWS):
        rows = _heads(db, ids[start : start + _CHUNK_ROWS])
        for _, stream, epoch, first_seq, count, _, _ in rows:
            count_dropped(db, stream, epoch, (first_seq, first_seq + count), reason)
            _book(db, stream, spooled=-count)
        removed.append(_delete(db, rows))
    return Removed.all(removed)


def settle(db: sqlite3.Connection, receipt: Receipt, open_epoch: int) -> Removed:
    """Delete exactly what a receipt covers. Told twice, or of foreign streams and epochs, it changes nothing.

    Args:
        db: inside a transaction.
        receipt: the core's word.
        open_epoch: the epoch that still gives out seqs; every other one is forgotten once all of it is settled.
    """
    removed: list[Removed] = []
    for stream, epoch, next_seq in db.execute("SELECT stream, epoch, next_seq FROM epoch").fetchall():
        settled = receipt.ranges(stream, epoch)
        for low, high in _concerned(db, "envelope", "first_seq", (stream, epoch), settled):
            removed.append(_settle_range(db, stream, epoch, low, high))
        # Below the floor the core has accounted for all that is not held here; what is held goes on being sent.
        below = min(receipt.floor(stream).below(epoch), next_seq)
        accounted = settled.union([(0, below)])
        for low, high in _concerned(db, "dropped_range", "low", (stream, epoch), accounted):
            db.execute(
                "DELETE FROM dropped_range WHERE stream = ? AND epoch = ? AND low >= ? AND high <= ?", (stream, epoch, low, high)
            )
        if epoch != open_epoch and accounted.covers(0, next_seq) and not _is_held(db, stream, epoch):
            db.execute("DELETE FROM epoch WHERE stream = ? AND epoch = ?", (stream, epoch))
    _note_refusals(db, receipt)
    return Removed.all(removed)


def _concerned(db: sqlite3.Connection, table: str, column: str, key: tuple[str, int], settled: Ranges) -> Iterable[Span]:
    """The settled spans that may hold something of the table: a receipt may list many, and nearly all were acted on before."""
    least, most = (
        db.execute(f"SELECT {edge}({column}) FROM {table} WHERE stream = ? AND epoch = ?", key).fetchone()[0]  # noqa: S608 # constants
        for edge in ("min", "max")
    )
    return () if least is None else list(settled.overlapping(least, most + 1))


def _is_held(db: sqlite3.Connection, stream: str, epoch: int) -> bool:
    row = db.execute("SELECT 1 FROM envelope WHERE stream = ? AND epoch = ? LIMIT 1", (stream, epoch)).fetchone()
    return row is not None


def _note_refusals(db: sqlite3.Connection, receipt: Receipt) -> None:
    """Remember what the core refuses; a page of a receipt tells of some streams, all pages of one run tell of all."""
    known = {row[0]: row for row in db.execute("SELECT stream, quarantined, committed, in_row, reason FROM refused")}
    refusals = {
        stream: (stream, one.quarantined, one.committed, one.in_row, one.reason[:MAX_REASON_CHARS])
        for stream, one in receipt.refused.items()
    }
    news = [row for stream, row in refusals.items() if known.get(stream) != row]
    db.executemany("INSERT OR REPLACE INTO refused VALUES (?,?,?,?,?)", news)
    named = _named_in_pages(db, receipt)
    gone = known.keys() - named if named is not None else set()
    db.executemany("DELETE FROM refused WHERE stream = ?", [(stream,) for stream in sorted(gone)])


def _named_in_pages(db: sqlite3.Connection, page: Receipt) -> set[str] | None:
    """Note a page of a receipt; the streams that all of its pages name once the last of them is here in any order, else None.

    They are kept in the spool, because an agent may be started again between two pages. A whole receipt ends what was noted.
    """
    if page.pages == 1:
        if db.execute("SELECT 1 FROM receipt_page LIMIT 1").fetchone() is not None:
            db.execute("DELETE FROM refused_in_page")
            db.execute("DELETE FROM receipt_page")
        return set(page.refused)
    same = (page.run, page.pages)
    db.execute("DELETE FROM receipt_page WHERE run <> ? OR pages <> ? OR page = ?", (*same, page.page))
    db.execute("DELETE FROM refused_in_page WHERE page NOT IN (SELECT page FROM receipt_page)")
    db.execute("INSERT INTO receipt_page VALUES (?,?,?)", (page.page, *same))
    db.executemany("INSERT INTO refused_in_page VALUES (?,?)", [(stream, page.page) for stream in sorted(page.refused)])
    (here,) = db.execute("SELECT count(*) FROM receipt_page WHERE page < ?", (page.pages,)).fetchone()
    if here < page.pages:
        return None
    return {row[0] for row in db.execute("SELECT stream FROM refused_in_page")}


def set_state(db: sqlite3.Connection, ids: Iterable[int], state: State, reason: str = "") -> None:
    """Move envelopes to a state. One that was parked and has a large payload waits for that again, rather than being ready."""
    again = "CASE WHEN :state = :ready AND state = :parked AND digest <> '' THEN :waiting ELSE :state END"
    known = {"state": state, "reason": reason, "ready": State.READY, "parked": State.PARKED, "waiting": State.WAITING}
    db.executemany(
        f"UPDATE envelope SET state = {again}, reason = :reason WHERE id = :id",  # noqa: S608 # a constant
        ({**known, "id": id_} for id_ in ids),
    )


def candidates(db: sqlite3.Connection, in_flight: frozenset[int], limit: int) -> list[EvictionCandidate]:
    """The least valuable envelopes first: parked ones, then by priority and age."""
    parked = db.execute("SELECT id, cost_bytes, priority FROM envelope WHERE state = ? LIMIT ?", (State.PARKED, limit)).fetchall()
    known = {row[0] for row in parked}
    rest = db.execute("SELECT id, cost_bytes, priority FROM envelope ORDER BY priority, id LIMIT ?", (limit + len(in_flight),))
    rows = [*parked, *(row for row in rest if row[0] not in known)]
    return [EvictionCandidate(id_, cost, priority, id_ in in_flight) for id_, cost, priority in rows]


def _settle_range(db: sqlite3.Connection, stream: str, epoch: int, low: int, high: int) -> Removed:
    removed: list[Removed] = []
    at = low
    while True:
        rows = db.execute(
            f"SELECT {_HEAD} FROM envelope WHERE stream = ? AND epoch = ? AND first_seq >= ?"  # noqa: S608 # a constant
            " AND first_seq + count <= ? AND first_seq < ? ORDER BY first_seq LIMIT ?",
            (stream, epoch, at, high, high, _CHUNK_ROWS),
        ).fetchall()
        if not rows:
            return Removed.all(removed)
        count = sum(row[4] for row in rows)
        _book(db, stream, spooled=-count, settled=count)
        removed.append(_delete(db, rows))
        at = rows[-1][3] + 1


def _heads(db: sqlite3.Connection, ids: Sequence[int]) -> list[_Row]:
    marks = ",".join("?" * len(ids))
    query = f"SELECT {_HEAD} FROM envelope WHERE id IN ({marks}) ORDER BY id"  # noqa: S608 # only marks are formatted in
    return db.execute(query, list(ids)).fetchall()


def _delete(db: sqlite3.Connection, rows: Sequence[_Row]) -> Removed:
    db.executemany("DELETE FROM envelope WHERE id = ?", [(row[0],) for row in rows])
    digests = {row[5] for row in rows if row[5]}
    orphans = tuple(
        Digest(digest)
        for digest in sorted(digests)
        if db.execute("SELECT 1 FROM envelope WHERE digest = ? LIMIT 1", (digest,)).fetchone() is None
    )
    return Removed(tuple(row[0] for row in rows), orphans, tuple(row[6] for row in rows if row[6]))


def _book(db: sqlite3.Connection, stream: str, *, captured: int = 0, settled: int = 0, spooled: int = 0) -> None:
    db.execute(
        "INSERT INTO books VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET captured = captured + excluded.captured,"
        " settled = settled + excluded.settled, spooled = spooled + excluded.spooled",
        (stream, captured, settled, spooled),
    )
