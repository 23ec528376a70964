"""Boots in which samples were captured before the wall clock was set, and what corrects their times. Rows of the table `meta`."""

import sqlite3

_PREFIX = "boot:"
# The offset of a boot whose clock was never seen set.
_UNKNOWN = -(2**63)
# A device that never gets the time must not fill the table; a boot that is left out sends its samples uncorrected.
_MAX_BOOTS = 1_000


def note_unset(db: sqlite3.Connection, boot: str) -> None:
    """Remember that envelopes' times rest on the unset clock of a boot; what is known of it stays."""
    (count,) = db.execute("SELECT count(*) FROM meta WHERE name LIKE 'boot:%'").fetchone()
    if count < _MAX_BOOTS:
        db.execute("INSERT OR IGNORE INTO meta VALUES (?,?)", (_PREFIX + boot, _UNKNOWN))


def note_offset(db: sqlite3.Connection, boot: str, offset_us: int) -> None:
    """Enter how the wall clock stood to the time since boot once it was set, in microseconds; older boots are forgotten.

    The first offset of a boot stays: an envelope that is sent twice must be corrected by the same amount both times.
    """
    db.execute(
        "DELETE FROM meta WHERE name LIKE 'boot:%' AND name <> ? AND value <> ?"
        " AND NOT EXISTS (SELECT 1 FROM envelope WHERE 'boot:' || boot = meta.name)",
        (_PREFIX + boot, _UNKNOWN),
    )
    db.execute("INSERT OR IGNORE INTO meta VALUES (?,?)", (_PREFIX + boot, offset_us))
    db.execute("UPDATE meta SET value = ? WHERE name = ? AND value = ?", (offset_us, _PREFIX + boot, _UNKNOWN))


def offset_us(db: sqlite3.Connection, boot: str) -> int | None:
    """As entered by `note_offset`; None where the clock of that boot was never seen set."""
    row = db.execute("SELECT value FROM meta WHERE name = ? AND value <> ?", (_PREFIX + boot, _UNKNOWN)).fetchone()
    return None if row is None else int(row[0])


def is_noted(db: sqlite3.Connection, boot: str) -> bool:
    """Whether samples were captured on the unset clock of this boot."""
    return db.execute("SELECT 1 FROM meta WHERE name = ?", (_PREFIX + boot,)).fetchone() is not None
