"""What every start does: a sound database, mended where it must be, a new epoch, and files and rows brought into line."""

import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import structlog

from catchment.runtime.atomic_files import make_folder
from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError, SpoolError
from edge_agent.spool import changes, database, space_budget
from edge_agent.spool.bodies import FOLDER_NAME as BODIES_FOLDER
from edge_agent.spool.bodies import BodyFiles
from edge_agent.spool.database import used_and_free_bytes
from edge_agent.spool.objects import SpoolObjects
from edge_agent.spool.records import DropReason, ObjectRef, State
from edge_agent.spool.recovery import Opened, open_sound
from edge_agent.spool.sealing import Seal
from schemas.ids import Digest, next_epoch

# Freed pages beyond this share of the quota are given back to the disk, while little has to be copied for it.
_COMPACT_SHARE = 4
_COMPACT_USED_SHARE = 16
OBJECTS_FOLDER = "objects"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SpoolFiles:
    """All that a spool works on."""

    opened: Opened
    epoch: int
    bodies: BodyFiles
    objects: SpoolObjects
    reader: sqlite3.Connection


def open_files(folder: Path, max_bytes: int, page_bytes: int, clock: Clock, seal: Seal | None) -> SpoolFiles:
    """Open what is there, make what is missing, mend what is damaged. On a full disk the reserve file is deleted for that.

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
