"""Cache the results of inspectors by step and SHA-256 of the payload. Losing the cache costs time, nothing else.

Answers that could tell about a person are not put here (`pipelines.inspect.run`). Files of before that was so are emptied.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

MAX_BYTES = 1024 * 1024 * 1024
_PAGE_BYTES = 4096
_DIGESTS_PER_QUERY = 500
_VERSION = 1
_TABLE = """CREATE TABLE IF NOT EXISTS found (step TEXT, sha256 TEXT, body BLOB, PRIMARY KEY (step, sha256)) WITHOUT ROWID"""


class InspectCache:
    """One file below the lake root, shared by the workers of a run.

    Args:
        path: the file; "" keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def get(self, step: str, digests: Sequence[str]) -> dict[str, bytes]:
        """Return the cached results of these payloads."""
        if self._path is None or not self._path.exists():
            return {}
        found: dict[str, bytes] = {}
        try:
            with _Transaction(self._path) as database:
                for start in range(0, len(digests), _DIGESTS_PER_QUERY):
                    chunk = digests[start : start + _DIGESTS_PER_QUERY]
                    marks = ",".join("?" * len(chunk))
                    query = f"SELECT sha256, body FROM found WHERE step = ? AND sha256 IN ({marks})"  # noqa: S608  # marks alone
                    found.update(database.execute(query, (step, *chunk)))
        except sqlite3.Error as error:
            log.warning("inspect_cache_unread", path=str(self._path), reason=str(error))
            return {}
        return found

    def put(self, step: str, found: Iterable[tuple[str, bytes]]) -> None:
        """Remember what was found; when the file is full, or in use for long, nothing is remembered."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _Transaction(self._path) as database:
                database.execute(_TABLE)
                rows = ((step, digest, body) for digest, body in found)
                database.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            log.warning("inspect_cache_unwritten", path=str(self._path), reason=str(error))


class _Transaction:
    """A connection for one piece of work: committed and closed at its end."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=5.0)
        self._connection.execute(f"PRAGMA max_page_count = {MAX_BYTES // _PAGE_BYTES}")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._empty_if_old()

    def _empty_if_old(self) -> None:
        if self._connection.execute("PRAGMA user_version").fetchone()[0] >= _VERSION:
            return
        self._connection.execute("PRAGMA secure_delete = ON")
        self._connection.execute("DROP TABLE IF EXISTS found")
        self._connection.execute(_TABLE)
        self._connection.execute(f"PRAGMA user_version = {_VERSION}")
        self._connection.execute("VACUUM")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._connection.commit()
        finally:
            self._connection.close()
