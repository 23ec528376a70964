"""Show single envelopes next to a running agent, and leave it requests to send parked ones again.

The spool is read and never changed, and no backlog is held in memory. A request is a file in the spool's folder.
"""

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog

from catchment.runtime.atomic_files import write_atomic
from edge_agent.spool import database, payload_files
from edge_agent.spool.database import COLUMNS, RottenEnvelopeError, verify_row
from edge_agent.spool.payload_files import SEALED_SUFFIX
from edge_agent.spool.records import State

OBJECTS_FOLDER = "objects"
_HEAD = (
    "id, stream, epoch, first_seq, count, state, priority, contract_version, encoding, created_us, digest, object_bytes,"
    " length(body) + body_bytes, file, reason"
)
_AT_ONCE = 256
_HASH_BYTES = 1024 * 1024

_PREFIX = "replay-"
log = structlog.get_logger(__name__)


class SpoolEntry(msgspec.Struct, frozen=True):
    """An envelope without its body.

    Attributes:
        state: ready, waiting (for its large payload) or parked.
        file: the file of the bodies' folder that holds its body; 0: the database does.
        object: the large payload's hash, "" without one.
        reason: why it is parked.
    """

    id: int
    stream: str
    epoch: int
    first_seq: int
    count: int
    state: str
    priority: int
    contract_version: str
    encoding: str
    created_us: int
    object: str
    object_bytes: int
    body_bytes: int
    file: int
    reason: str


class SpoolFinding(msgspec.Struct, frozen=True):
    """Something that is not as it was stored."""

    what: str
    id: int | None = None
    stream: str | None = None
    epoch: int | None = None
    first_seq: int | None = None
    count: int | None = None


class SpoolCheck(msgspec.Struct, frozen=True):
    """The result of `edge-agent spool verify`."""

    envelopes: int
    samples: int
    body_bytes: int
    objects: int
    findings: tuple[SpoolFinding, ...]

    @property
    def is_sound(self) -> bool:
        """Whether everything is as it was stored."""
        return not self.findings


def entries(db: sqlite3.Connection, *, stream: str | None, state: State | None, limit: int) -> list[SpoolEntry]:
    """Envelopes, oldest first."""
    wanted = {"stream": stream, "state": None if state is None else int(state)}
    filters = {name: value for name, value in wanted.items() if value is not None}
    where = " AND ".join(f"{name} = ?" for name in filters) or "1"
    query = f"SELECT {_HEAD} FROM envelope WHERE {where} ORDER BY id LIMIT ?"  # noqa: S608 # names are constants
    return [_entry(row) for row in db.execute(query, (*filters.values(), limit))]


def entry(db: sqlite3.Connection, id_: int) -> SpoolEntry | None:
    """One envelope; None when it is not there."""
    row = db.execute(f"SELECT {_HEAD} FROM envelope WHERE id = ?", (id_,)).fetchone()  # noqa: S608 # a constant
    return None if row is None else _entry(row)


def count(db: sqlite3.Connection) -> dict[str, int]:
    """Count the envelopes in each state."""
    rows = db.execute("SELECT state, count(*) FROM envelope GROUP BY state")
    return {State(state).name.lower(): number for state, number in rows}


def verify(db: sqlite3.Connection, folder: Path) -> SpoolCheck:
    """Read every byte and compare it with its checksum. Takes as long as reading the spool takes.

    Args:
        db: a reader.
        folder: the spool's.
    """
    findings: list[SpoolFinding] = [SpoolFinding(f"database: {line}") for line in _pages(db)]
    envelopes = samples = body_bytes = 0
    digests: dict[str, int] = {}
    for row in _rows(db):
        envelopes += 1
        samples += row[4] if isinstance(row[4], int) else 0
        try:
            read = verify_row(row, partial(payload_files.read_body, folder / payload_files.FOLDER_NAME))
        except (RottenEnvelopeError, OSError) as error:
            findings.append(SpoolFinding(str(error), row[0], str(row[1]), row[2], row[3], row[4]))
            continue
        body_bytes += len(read.body)
        if row[9]:
            digests[row[9]] = row[0]
    findings += _wrong_objects(db, folder / OBJECTS_FOLDER, digests)
    findings += [SpoolFinding(f"books of {entry.stream} do not balance") for entry in database.books(db) if not entry.is_balanced]
    return SpoolCheck(envelopes, samples, body_bytes, len(digests), tuple(findings))


def open_folder(folder: Path) -> sqlite3.Connection:
    """A reader of the spool in a folder.

    Raises:
        sqlite3.Error: there is none, or it is damaged.
    """
    return database.connect_reader(folder / database.FILE_NAME)


def _entry(row: tuple[Any, ...]) -> SpoolEntry:
    state = State(row[5]).name.lower() if row[5] in list(State) else f"unknown ({row[5]})"
    values: list[Any] = [*row[:5], state, *row[6:]]
    return SpoolEntry(*values)


def _rows(db: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    """By id, some at once: an agent that runs next to must not wait for this to end before it can shorten its log."""
    at = 0
    while True:
        rows = db.execute(f"SELECT {COLUMNS} FROM envelope WHERE id > ? ORDER BY id LIMIT ?", (at, _AT_ONCE)).fetchall()  # noqa: S608
        if not rows:
            return
        yield from rows
        at = rows[-1][0]


def _pages(db: sqlite3.Connection) -> list[str]:
    try:
        return [line for (line,) in db.execute("PRAGMA quick_check(20)") if line != "ok"]
    except sqlite3.DatabaseError as error:
        return [str(error)]


def _wrong_objects(db: sqlite3.Connection, folder: Path, digests: dict[str, int]) -> Iterator[SpoolFinding]:
    for digest, id_ in digests.items():
        if (folder / f"{digest}{SEALED_SUFFIX}").exists():
            continue  # only its key could tell; a broken seal is found when it is sent
        hasher = hashlib.sha256()
        try:
            with (folder / digest).open("rb") as file:
                while block := file.read(_HASH_BYTES):
                    hasher.update(block)
        except FileNotFoundError:
            if entry(db, id_) is None:
                continue  # settled meanwhile
            yield SpoolFinding(f"large payload {digest} is gone", id_)
            continue
        if hasher.hexdigest() != digest:
            yield SpoolFinding(f"large payload {digest} holds other bytes", id_)


class ReplayRequest(msgspec.Struct, frozen=True):
    """Send parked envelopes again. Without ids: all of them."""

    ids: tuple[int, ...] | None = None


def ask_replay(folder: Path, ids: tuple[int, ...] | None) -> Path:
    """Leave the wish; the file is gone once an agent has taken it up.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}.json"
    write_atomic(path, msgspec.json.encode(ReplayRequest(ids)))
    return path


def serve_replays(folder: Path, replay: Callable[[Container[int] | None], None]) -> None:
    """Do what was asked, and delete each wish when it is done. A malformed one is told and deleted.

    Raises:
        SpoolError: the spool is broken; the wish stays.
    """
    for path in sorted(folder.glob(f"{_PREFIX}*.json")):
        try:
            request = msgspec.json.decode(path.read_bytes(), type=ReplayRequest)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("request_malformed", path=str(path), error=str(error))
        else:
            replay(None if request.ids is None else frozenset(request.ids))
        path.unlink(missing_ok=True)
