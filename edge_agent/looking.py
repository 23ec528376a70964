"""Looking into an agent from outside: the spool is read beside its writer, nothing is changed."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from edge_agent.capture.refine import build_refiner, read_redaction_key
from edge_agent.capture.registry import check_source
from edge_agent.clock import SystemClock
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import AgentConfig, convert_table, load_agent_config, load_contract
from edge_agent.errors import AgentError
from edge_agent.health import Health, read_health
from edge_agent.spool import database, reading
from schemas.reported import EpochReport, StreamBooks


class ParkedEntry(msgspec.Struct, frozen=True):
    """An envelope put aside, and why."""

    stream: str
    epoch: int
    first_seq: int
    count: int
    reason: str


class Status(msgspec.Struct, frozen=True):
    """What `edge-agent status` tells."""

    device: str
    is_running: bool
    health: Health | None
    spooled: int
    dropped: int
    parked: tuple[ParkedEntry, ...]
    moved_aside: tuple[str, ...]


class Ledger(msgspec.Struct, frozen=True):
    """What `edge-agent ledger` tells."""

    device: str
    books: tuple[StreamBooks, ...]
    epochs: tuple[EpochReport, ...]
    is_balanced: bool


def check_config(path: Path) -> Iterator[str]:
    """Check all that can be checked without starting; yields a line for each thing found good.

    Raises:
        ConfigError: something is wrong; names file, line and key.
    """
    config = load_agent_config(path)
    yield f"{path}: device {config.device}, broker {config.broker.host}:{config.broker.port}, spool in {config.spool_dir}"
    for source in config.source:
        contract = load_contract(source)
        check_source(source.kind, source.options, contract)
        build_refiner(contract, source.report, read_redaction_key(config.redaction.key), ClockWatch(SystemClock()), None)
        yield f"  source {source.kind} -> {source.stream} (contract {contract.version}, priority {source.priority})"
    if config.model is not None:
        from edge_agent.models.config import ModelConfig  # noqa: PLC0415 # loaded only where models run

        model = convert_table("model", config.model, ModelConfig)
        yield f"  model {model.name} on {', '.join(model.streams)}"


def read_status(path: Path) -> Status:
    """The state of the agent with this configuration.

    Raises:
        ConfigError: the configuration is wrong.
        AgentError: the spool cannot be read.
    """
    config = load_agent_config(path)
    health = read_health(config.state_dir)
    with _spool(config) as db:
        books = reading.books(db)
        parked = tuple(ParkedEntry(p.stream, p.epoch, p.first_seq, p.count, p.reason) for p in reading.parked(db))
    aside = sorted(str(found) for found in config.spool_dir.glob("*.corrupt-*") if not found.name.endswith(("-wal", "-shm")))
    return Status(
        device=config.device,
        is_running=health is not None and _is_alive(health.pid),
        health=health,
        spooled=sum(entry.spooled for entry in books),
        dropped=sum(sum(entry.dropped.values()) for entry in books),
        parked=parked,
        moved_aside=tuple(aside),
    )


def read_ledger(path: Path) -> Ledger:
    """The books and the epochs that are not settled in full.

    Raises:
        ConfigError: the configuration is wrong.
        AgentError: the spool cannot be read.
    """
    config = load_agent_config(path)
    with _spool(config) as db:
        books = reading.books(db)
        row = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        epochs = reading.epochs(db, open_epoch=row[0] if row else -1)
    return Ledger(config.device, books, epochs, is_balanced=all(entry.is_balanced for entry in books))


@contextmanager
def _spool(config: AgentConfig) -> Iterator[sqlite3.Connection]:
    path = config.spool_dir / database.FILE_NAME
    if not path.exists():
        raise AgentError(f"there is no spool in {config.spool_dir}; has `edge-agent run` been started with this file?")
    try:
        with closing(database.connect_reader(path)) as db:
            yield db
    except sqlite3.Error as error:
        raise AgentError(f"the spool {path} cannot be read: {error}; the agent mends it at its next start") from error


def _is_alive(pid: int) -> bool:
    try:
        return "edge_agent" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
