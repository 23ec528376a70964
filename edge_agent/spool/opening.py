"""What every start does with a sound database: a new epoch, and files and rows brought into line."""

import secrets
import sqlite3

import structlog

from edge_agent.clock import Clock
from edge_agent.spool import changes
from edge_agent.spool.bodies import BodyFiles
from edge_agent.spool.database import used_and_free_bytes
from edge_agent.spool.objects import ObjectStore
from edge_agent.spool.records import DropReason, ObjectRef, State
from schemas.ids import Digest, next_epoch

# Freed pages beyond this share of the quota are given back to the disk, while little has to be copied for it.
_COMPACT_SHARE = 4
_COMPACT_USED_SHARE = 16

_log = structlog.get_logger(__name__)


def open_epoch(db: sqlite3.Connection, clock: Clock) -> int:
    """A new epoch, remembered before any seq of it is given out."""
    row = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
    known = db.execute("SELECT coalesce(max(epoch), 0) FROM epoch").fetchone()[0]
    epoch = next_epoch(max(row[0] if row else 0, known), clock.now_ms(), secrets.randbits(20))
    db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (epoch,))
    return epoch


def match_files(db: sqlite3.Connection, objects: ObjectStore, bodies: BodyFiles) -> None:
    """Give up rows whose large payload is gone or short (a damaged file system), and delete files that no row names."""
    rows = db.execute("SELECT id, digest, object_bytes, state FROM envelope WHERE digest <> ''").fetchall()
    lost = [
        id_ for id_, digest, size, state in rows if state == State.WAITING and not objects.holds(ObjectRef(Digest(digest), size))
    ]
    if lost:
        _log.error("large payloads are lost", count=len(lost))
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
