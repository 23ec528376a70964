"""Read an agent from outside: the spool is read while its writer works, nothing is changed."""

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from edge_agent.config import AgentConfig, load_agent_config
from edge_agent.errors import AgentError
from edge_agent.health.file import Health, read_health
from edge_agent.spool import database
from schemas.receipts import RefusedStream
from schemas.reported import EpochReport, StreamBooks


class ParkedEntry(msgspec.Struct, frozen=True):
    """A parked envelope, and why."""

    stream: str
    epoch: int
    first_seq: int
    count: int
    reason: str


class Status(msgspec.Struct, frozen=True):
    """The output of `edge-agent status`."""

    device: str
    is_running: bool
    health: Health | None
    spooled: int
    dropped: int
    parked: tuple[ParkedEntry, ...]
    moved_aside: tuple[str, ...]
    refused: dict[str, RefusedStream] = {}


class AgentBooks(msgspec.Struct, frozen=True):
    """The output of `edge-agent books`."""

    device: str
    books: tuple[StreamBooks, ...]
    epochs: tuple[EpochReport, ...]
    is_balanced: bool


def read_status(path: Path) -> Status:
    """The state of the agent with this configuration.

    Raises:
        ConfigError: the configuration is wrong.
        AgentError: the spool cannot be read.
    """
    config = load_agent_config(path)
    health = read_health(config.state_dir)
    with _spool_or_empty(config, health) as db:
        books = database.books(db)
        refused = database.refused(db)
        parked = tuple(ParkedEntry(p.stream, p.epoch, p.first_seq, p.count, p.reason) for p in database.parked(db))
    aside = sorted(str(found) for found in config.spool_dir.glob("*.corrupt-*") if not found.name.endswith(("-wal", "-shm")))
    return Status(
        device=config.device,
        is_running=health is not None and is_alive(health.pid),
        health=health,
        spooled=sum(entry.spooled for entry in books),
        dropped=sum(sum(entry.dropped.values()) for entry in books),
        parked=parked,
        moved_aside=tuple(aside),
        refused=refused,
    )


def read_ledger(path: Path) -> AgentBooks:
    """The books and the epochs that are not settled in full.

    Raises:
        ConfigError: the configuration is wrong.
        AgentError: the spool cannot be read.
    """
    config = load_agent_config(path)
    with _spool(config) as db:
        books = database.books(db)
        row = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        epochs = database.epochs(db, open_epoch=row[0] if row else -1)
    return AgentBooks(config.device, books, epochs, is_balanced=all(entry.is_balanced for entry in books))


@contextmanager
def _spool_or_empty(config: AgentConfig, health: Health | None) -> Iterator[sqlite3.Connection]:
    """The spool; an empty one where a running agent still waits for its own, and says why."""
    with ExitStack() as stack:
        try:
            db = stack.enter_context(_spool(config))
        except AgentError:
            if health is None or not health.failure:
                raise
            db = stack.enter_context(closing(sqlite3.connect(":memory:")))
            db.executescript(database.TABLES)
        yield db


@contextmanager
def _spool(config: AgentConfig) -> Iterator[sqlite3.Connection]:
    path = config.spool_dir / database.FILE_NAME
    if not path.exists():
        raise AgentError(f"there is no spool in {config.spool_dir}; has `edge-agent run` been started with this file?")
    try:
        with closing(database.connect_reader(path)) as db:
            yield db
    except sqlite3.Error as error:
        raise AgentError(f"the spool {path} cannot be read: {error}; the agent repairs it at its next start") from error


def is_alive(pid: int) -> bool:
    """Whether an agent runs under this process id."""
    try:
        return "edge_agent" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
