"""The wiring: which threads run, what each is given, and in which order they stop."""

import fcntl
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from edge_agent.atomic import make_folder
from edge_agent.capture.batch import Source
from edge_agent.capture.encode import Encoder, Limits
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.registry import build_source
from edge_agent.clock import Clock, SystemClock
from edge_agent.config import AgentConfig, SourceConfig, convert_table, load_contract
from edge_agent.errors import AgentError, ConfigError
from edge_agent.health import Health, notify_service_manager, rss_bytes, write_health
from edge_agent.spool.database import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES
from edge_agent.spool.requests import serve_replays
from edge_agent.spool.spool import Spool
from edge_agent.uplink.forwarder import Forwarder
from edge_agent.uplink.report import Reporter
from edge_agent.uplink.session import Events, PahoSession, Session
from schemas.contract import Contract
from schemas.reported import ModelReport
from schemas.topics import Topics

if TYPE_CHECKING:
    from edge_agent.models.updater import ModelUpdater

LOCK_NAME = "agent.lock"
_WATCH_S = 0.2
_HEALTH_EVERY_S = 5.0
_STOP_WITHIN_S = 15.0

_log = structlog.get_logger(__name__)


class Agent:
    """A running agent: sources, spool, uplink and, where configured, models.

    Args:
        config: checked.
        clock: handed to everything.

    Raises:
        ConfigError: a contract, source kind or model table is wrong.
        AgentError: another agent holds the state folder, or the spool cannot be opened.
    """

    def __init__(self, config: AgentConfig, clock: Clock | None = None) -> None:
        self._config = config
        self._clock = clock or SystemClock()
        self._stop_capture = threading.Event()
        self._stop_uplink = threading.Event()
        self._failure: BaseException | None = None
        self._models: ModelUpdater | None = None
        self._model_streams: frozenset[str] = frozenset()
        contracts = [load_contract(source) for source in config.source]
        has_payloads = any(contract.payload is not None for contract in contracts)
        self._spool = Spool(
            config.spool_dir,
            max_bytes=config.spool.max_bytes,
            linger_ms=config.spool.linger_ms,
            clock=self._clock,
            page_bytes=LARGE_PAGE_BYTES if has_payloads else SMALL_PAGE_BYTES,
            min_free_bytes=config.spool.min_free_bytes,
        )
        try:
            if config.model is not None:
                self._models = self._build_models(config.model)
            self._forwarder = self._build_forwarder()
            self._pumps = [self._build_pump(source, contract) for source, contract in zip(config.source, contracts, strict=True)]
        except BaseException:
            self._spool.close()
            raise

    def run(self, *, until_settled: bool = False) -> bool:
        """Run until `stop` is called, or with `until_settled` until all sources ended and nothing is left to settle.

        Returns:
            False when what is left is parked and so can never be settled, True otherwise.

        Raises:
            AgentError: the spool broke; start again, which mends it.
        """
        captures = [self._thread(f"source-{n}", pump.run, self._stop_capture) for n, pump in enumerate(self._pumps)]
        uplink = self._thread("uplink", self._forwarder.run, self._stop_uplink)
        if self._models is not None:
            self._thread("models", self._run_models, self._stop_uplink)
        notify_service_manager("READY=1")
        is_clean = True
        try:
            is_clean = self._watch(captures, until_settled=until_settled)
        finally:
            self._shut_down(captures, uplink)
        if self._failure is not None:
            raise AgentError(f"stopped: {self._failure}; start again, which mends the spool") from self._failure
        return is_clean

    def stop(self) -> None:
        """Ask to stop; safe in a signal handler."""
        self._stop_capture.set()

    def _watch(self, captures: list[threading.Thread], *, until_settled: bool) -> bool:
        looked_s = float("-inf")
        while not self._stop_capture.wait(_WATCH_S) and self._failure is None and self._spool.failure is None:
            now_s = self._clock.monotonic_s()
            if now_s - looked_s >= _HEALTH_EVERY_S:
                looked_s = now_s
                self._tell_health(sum(thread.is_alive() for thread in captures))
            serve_replays(self._config.spool_dir, self._spool.replay)
            if until_settled and not any(thread.is_alive() for thread in captures):
                left = sum(books.spooled for books in self._spool.books())
                if left == self._spool.parked_samples():
                    return left == 0
        self._failure = self._failure or self._spool.failure
        return True

    def _shut_down(self, captures: list[threading.Thread], uplink: threading.Thread) -> None:
        """Capture first, so that all that was read is stored; then the uplink; then the spool."""
        notify_service_manager("STOPPING=1")
        self._stop_capture.set()
        for thread in captures:
            thread.join(_STOP_WITHIN_S)
        self._stop_uplink.set()
        uplink.join(_STOP_WITHIN_S)
        self._tell_health(0)
        self._spool.close()

    def _tell_health(self, sources_running: int) -> None:
        progress = self._forwarder.progress
        since_ack_s = self._clock.monotonic_s() - progress.last_ack_s
        health = Health(
            at_ms=self._clock.now_ms(),
            pid=os.getpid(),
            is_connected=progress.is_connected,
            sources_running=sources_running,
            sent=progress.sent_count,
            not_sent=progress.not_sent_count,
            resent=progress.resent_count,
            parked=progress.parked_count,
            since_ack_s=None if since_ack_s == float("inf") else round(since_ack_s, 1),
            used_bytes=self._spool.used_bytes(),
            max_bytes=self._config.spool.max_bytes,
            rss_bytes=rss_bytes(),
            failure=str(self._failure or self._spool.failure or ""),
        )
        try:
            write_health(self._config.state_dir, health)
        except OSError as error:
            _log.warning("health cannot be written", error=str(error))
        notify_service_manager("WATCHDOG=1")

    def _thread(self, name: str, target: Callable[[threading.Event], None], stop: threading.Event) -> threading.Thread:
        def guarded() -> None:
            try:
                target(stop)
            except Exception as error:  # noqa: BLE001 # a dead thread must end the agent, never leave it half alive
                _log.exception("thread failed", thread=name)
                self._failure = error

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _run_models(self, stop: threading.Event) -> None:
        while not stop.is_set() and self._models is not None:
            self._models.run_once()

    def _build_forwarder(self) -> Forwarder:
        config = self._config
        device = config.device_id
        reporter = Reporter(
            self._spool, device, agent_version(), self._model_reports, config.uplink.report_interval_s, self._clock
        )
        connect: Callable[[Events], Session] = partial(PahoSession, config.broker, config.device)
        topics = Topics(config.broker.namespace)
        return Forwarder(self._spool, connect, config.uplink, topics, device, reporter, self._models, self._clock)

    def _build_pump(self, source: SourceConfig, contract: Contract) -> SourcePump:
        limits = Limits(self._config.uplink.envelope_bytes, self._config.spool.part_threshold_bytes)
        put_object = partial(self._spool.put_object, priority=source.priority)
        encoder = Encoder(contract, limits, put_object, compress=source.compress)
        build = partial(_build, source, contract, self._clock)
        has_model = self._models is not None and source.stream in self._model_streams
        annotate = self._models.annotate if has_model and self._models is not None else None
        return SourcePump(source, build, encoder, self._spool, annotate, self._clock)

    def _build_models(self, table: dict[str, object]) -> "ModelUpdater":
        # Loaded only where models run: it brings signatures and an inference runtime along.
        from edge_agent.models.config import ModelConfig  # noqa: PLC0415
        from edge_agent.models.updater import ModelUpdater  # noqa: PLC0415

        model = convert_table("model", table, ModelConfig)
        self._model_streams = frozenset(model.streams)
        return ModelUpdater(model, self._config.state_dir, self._request_piece, self._clock)

    def _request_piece(self, correlation: bytes, body: bytes) -> None:
        self._forwarder.request_model_piece(body, correlation)

    def _model_reports(self) -> tuple[ModelReport, ...]:
        return () if self._models is None else self._models.report()


def run_agent(config: AgentConfig, *, until_settled: bool) -> bool:
    """Hold the state folder, run until SIGTERM or SIGINT, stop in order.

    Raises:
        ConfigError: the configuration asks for what is not there.
        AgentError: another agent holds the state folder, or the spool broke.
    """
    with _held(config.state_dir):
        agent = Agent(config)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: agent.stop())
        return agent.run(until_settled=until_settled)


def agent_version() -> str:
    """The installed version."""
    return metadata.version("catchment")


@contextmanager
def _held(state_dir: Path) -> Iterator[None]:
    """One agent per state folder: two would give the same samples to two epochs."""
    try:
        make_folder(state_dir)
        lock = (state_dir / LOCK_NAME).open("w")
    except OSError as error:
        raise ConfigError(f"state_dir {state_dir} cannot be written: {error}; give it to the agent's user") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AgentError(f"another agent runs with state_dir {state_dir}; stop it first") from error
        yield


def _build(source: SourceConfig, contract: Contract, clock: Clock, position: bytes | None) -> Source:
    return build_source(source.kind, source.options, contract, clock, position)
