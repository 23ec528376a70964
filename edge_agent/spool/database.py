"""The spool's SQLite file: its tables, and how it is opened."""

import sqlite3
from pathlib import Path

FILE_NAME = "spool.db"
# Small pages spare the flash where commits are small; large ones store 200 kB frames at twice the rate, because their
# overflow chains are eight times shorter. A file keeps the size it was made with.
SMALL_PAGE_BYTES = 4_096
LARGE_PAGE_BYTES = 32_768
# Room beside the database file itself: the write-ahead log, and what deletes need to write on a full disk (a quarter).
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
    """Open an existing spool beside its writer, for reading alone.

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
