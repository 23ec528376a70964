"""Where sources resume: small values in one row; what is larger in pieces, of which a change rewrites only those that differ."""

import sqlite3

# Two of them fill a small page.
PIECE_BYTES = 1_900


def keep(db: sqlite3.Connection, source: str, value: bytes) -> None:
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


def load(db: sqlite3.Connection, source: str) -> bytes | None:
    """A source's position; None when it has none."""
    row = db.execute(
        "SELECT p.value, (SELECT group_concat(hex(value), '') FROM (SELECT value FROM position_tail WHERE source = p.source"
        " ORDER BY n)) FROM position p WHERE p.source = ?",
        (source,),
    ).fetchone()
    return None if row is None else bytes(row[0]) + bytes.fromhex(row[1] or "")


def hand_over(db: sqlite3.Connection, before: str, source: str) -> None:
    """What one source left becomes the position of another that has none."""
    moved = db.execute("UPDATE OR IGNORE position SET source = ? WHERE source = ?", (source, before))
    if moved.rowcount > 0:
        db.execute("DELETE FROM position_tail WHERE source = ?", (source,))
        db.execute("UPDATE position_tail SET source = ? WHERE source = ?", (source, before))
