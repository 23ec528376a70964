"""The wiring: which threads run, what each is given, and in which order they stop."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from catchment.runtime.clock import Clock, SystemClock
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.source_supervisor import SourceSupervisor, previous_source, source_labels
from edge_agent.capture.transforms import build_transforms, read_redaction_key
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import HEARTBEAT, AgentConfig, SourceConfig, convert_table, load_contract, needs_restart
from edge_agent.documents.gate import DocumentInbox
from edge_agent.errors import AgentError, ConfigError
from edge_agent.health.file import notify_service_manager
from edge_agent.health.heartbeat import HeartbeatSource, heartbeat_source
from edge_agent.health.monitor import Monitor
from edge_agent.inspect import requested_steps
from edge_agent.process import claim, open_spool
from edge_agent.rules.policy_store import PolicyStore, open_rules
from edge_agent.rules.rule_filter import RuleFilter
from edge_agent.sources.api import Source
from edge_agent.sources.registry import build_source, check_source
from edge_agent.spool.inspection import serve_replays
from edge_agent.spool.records import eviction_priority
from edge_agent.spool.space_budget import soft_limit_bytes
from edge_agent.spool.spool import Spool
from edge_agent.trial.asking import is_trial_requested
from edge_agent.unset_clock import ClockHold, system_boot_clock
from edge_agent.uplink.downlink import ModelRequest
from edge_agent.uplink.forwarder import Forwarder, Reporter
from edge_agent.uplink.session import Events, PahoSession, Session
from schemas.contract import Contract
from schemas.reported import DocumentReport, ModelReport
from schemas.rollout import DesiredModels
from schemas.topics import Topics

if TYPE_CHECKING:
    from edge_agent.health.server import HealthServer
    from edge_agent.models.device_models import DeviceModels
    from edge_agent.trial.tap import TapServer

_WATCH_S = 0.2
_HEALTH_EVERY_S = 5.0
_STOP_WITHIN_S = 15.0

log = structlog.get_logger(__name__)


class Agent:
    """A running agent: sources, spool, uplink and, where configured, models.

    Args:
        config: checked.
        clock: handed to everything.
        reread: reads the configuration again, when asked to; None: it never changes.
        spool: open; None: it is opened now.

    Raises:
        ConfigError: a contract, source kind or model table is wrong.
        AgentError: another agent holds the state folder, or the spool cannot be opened.
    """

    def __init__(
        self,
        config: AgentConfig,
        clock: Clock | None = None,
        reread: Callable[[], AgentConfig] | None = None,
        spool: Spool | None = None,
    ) -> None:
        self._config = config
        self._reread = reread
        self._is_to_reread = threading.Event()
        self._clock = clock or SystemClock()
        self._stop_capture = threading.Event()
        self._stop_uplink = threading.Event()
        self._failure: BaseException | None = None
        self._configured: frozenset[str] = frozenset()
        self._uplink: threading.Thread | None = None
        self._models: DeviceModels | None = None
        self._taps: TapServer | None = None
        self._boot_clock = system_boot_clock(self._clock)
        self._orders: DocumentInbox[DesiredModels] | None = None
        self._rules = open_rules(config, self._clock)
        self._spool = spool or open_spool(config, self._clock)
        try:
            waits_s = (config.uplink.clock_wait_s, config.uplink.sync_wait_s)
            self._clock_hold = ClockHold(self._boot_clock, self._spool, waits_s[0], self._clock, waits_s[1])
            claim(config.state_dir, config.device, sum(books.spooled for books in self._spool.books()))
            if config.models:
                self._models = self._build_models(config.models)
            self._forwarder = self._build_forwarder()
            self._supervisor = SourceSupervisor(self._build_pump, self._thread, self._spool.on_source_stopping)
            self._monitor = self._build_monitor()
            self._health = self._build_health_server() if config.health.port else None
        except BaseException:
            self._spool.close()
            raise

    def run(self, *, until_settled: bool = False) -> bool:
        """Run until `stop` is called, or with `until_settled` until all sources ended and nothing is left to settle.

        Returns:
            False when what is left is parked and so can never be settled, True otherwise.

        Raises:
            AgentError: the spool broke; start again, which repairs it.
        """
        try:
            self._apply(self._config)
            self._uplink = self._thread("uplink", self._forwarder.run, self._stop_uplink)
            if self._models is not None:
                self._models.run_forever(lambda name, target: self._thread(name, target, self._stop_uplink))
            if isinstance(self._rules, PolicyStore):
                self._thread("rules", self._rules.run, self._stop_uplink)
            notify_service_manager("READY=1")
            is_clean = self._watch(until_settled=until_settled)
        finally:
            self._shut_down()
        if self._failure is not None:
            raise AgentError(f"stopped: {self._failure}; start again, which repairs the spool") from self._failure
        return is_clean

    def reload(self) -> None:
        """Ask to read the configuration again; safe in a signal handler."""
        self._is_to_reread.set()

    def stop(self) -> None:
        """Ask to stop; safe in a signal handler."""
        self._stop_capture.set()

    def _watch(self, *, until_settled: bool) -> bool:
        looked_s = float("-inf")
        while not self._stop_capture.wait(_WATCH_S) and self._failure is None and self._spool.failure is None:
            now_s = self._clock.monotonic_s()
            self._monitor.note_loop()
            if self._is_to_reread.is_set():
                self._is_to_reread.clear()
                self._take_new_config()
            if now_s - looked_s >= _HEALTH_EVERY_S:
                looked_s = now_s
                self._monitor.tell()
            self._clock_hold.step()
            serve_replays(self._config.spool_dir, self._spool.replay)
            self._serve_trials()
            if until_settled and not self._supervisor.running:
                left = sum(books.spooled for books in self._spool.books())
                if left == self._spool.parked_samples():
                    return left == 0
        self._failure = self._failure or self._spool.failure
        return True

    def _serve_trials(self) -> None:
        """Answer `edge-agent try`; what that needs is loaded when somebody asks for the first time."""
        if self._taps is None:
            if not is_trial_requested(self._config.state_dir):
                return
            from edge_agent.trial.tap import TapServer  # noqa: PLC0415

            self._taps = TapServer(self._config.state_dir, lambda: self._supervisor.pumps, self._clock.monotonic_s)
        self._taps.serve()

    def _take_new_config(self) -> None:
        """Apply the settings that can change at run time and log those that need a restart. A wrong file changes nothing."""
        if self._reread is None:
            return
        try:
            config = self._reread()
            self._apply(config)
        except ConfigError as error:
            log.error("configuration_rejected", hint="the previous configuration stays in force", error=str(error))  # noqa: TRY400
            return
        self._forwarder.retune(config.uplink)
        waiting = needs_restart(self._config, config)
        log.info("configuration_reloaded", sources=len(config.source), needs_restart=", ".join(waiting) or "nothing")
        self._config = msgspec.structs.replace(self._config, source=config.source, uplink=config.uplink)

    def _apply(self, config: AgentConfig) -> None:
        self._configured = frozenset(source.name for source in config.source)
        self._labels = source_labels(config.source)
        self._supervisor.apply((*config.source, *heartbeat_source(self._config.health)))

    def _shut_down(self) -> None:
        """Capture first, so that all that was read is stored; then the uplink; then the spool."""
        notify_service_manager("STOPPING=1")
        self._stop_capture.set()
        self._supervisor.stop()
        self._stop_uplink.set()
        self._forwarder.wake()
        if self._models is not None:
            self._models.close()
        if self._uplink is not None:
            self._uplink.join(_STOP_WITHIN_S)
        if self._health is not None:
            self._health.close()
        self._monitor.failure = str(self._failure or "")
        self._monitor.tell()
        self._spool.close()

    def _thread(self, name: str, target: Callable[[threading.Event], None], stop: threading.Event) -> threading.Thread:
        def guarded() -> None:
            try:
                target(stop)
            except Exception as error:  # a dead thread must end the agent, never leave it half alive
                self._failure = error
                log.exception("thread_failed", thread=name)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _build_forwarder(self) -> Forwarder:
        config = self._config
        device = config.device_id
        reporter = Reporter(
            self._spool,
            device,
            agent_version(),
            self._model_reports,
            config.uplink.report_interval_s,
            self._clock,
            self._rules.report,
            self._document_reports,
        )
        connect: Callable[[Events], Session] = partial(PahoSession, config.broker, config.device)
        topics = Topics(config.broker.namespace)
        forwarder = Forwarder(self._spool, connect, config.uplink, topics, device, reporter, self._models, self._clock)
        forwarder.hand_policies_to(self._rules.on_message)
        return forwarder

    def _filled(self) -> float:
        return self._spool.used_bytes() / soft_limit_bytes(self._config.spool.max_bytes)

    def _build_pump(self, source: SourceConfig) -> SourcePump:
        contract = load_contract(source)
        limits = BatchLimits(self._config.uplink.envelope_bytes, self._config.spool.part_threshold_bytes)
        # What is redacted or encrypted in the spool must not lie in clear next to it.
        is_secret = contract.has_redaction or self._config.spool.key is not None
        folder = None if is_secret else self._config.state_dir / "parked"
        build: Callable[[bytes | None], Source] = partial(_build, source, contract, self._clock, folder)
        worth = eviction_priority(source.priority, waits_for_room=source.waits_for_room)
        put_object = partial(self._spool.put_object, priority=worth)
        encoder = Encoder(contract, limits, put_object, compress=source.compress, references=self._boot_clock.references)
        if source.kind == HEARTBEAT:
            build = lambda _: HeartbeatSource(self._monitor.snapshot, self._config.health.heartbeat_s, self._clock)  # noqa: E731 # it has no position
        else:
            check_source(source.kind, source.resolved, contract)
        predictor = None if self._models is None else self._models.predictor(contract)
        key = read_redaction_key(self._config.redaction.key)
        transform = build_transforms(contract, source.report, key, ClockWatch(self._clock), predictor)
        requested = requested_steps(source.inspect, contract)
        rule_filter = RuleFilter(self._rules, contract, self._config.device, source.priority, self._filled, requested)
        choose = lambda known: previous_source(source.name, known, self._configured)  # noqa: E731 # asked later, when others run
        pump = SourcePump(source, build, encoder, self._spool, transform, self._clock, rule_filter, choose)
        pump.label = self._labels.get(source.name, "")
        return pump

    def _build_models(self, tables: Sequence[dict[str, object]]) -> "DeviceModels":
        # Loaded only where models run: it brings signatures and an inference runtime along.
        from edge_agent.models.config import ModelConfig  # noqa: PLC0415
        from edge_agent.models.device_models import DeviceModels  # noqa: PLC0415
        from edge_agent.models.wanted import open_orders  # noqa: PLC0415

        configs = [convert_table("model", table, ModelConfig) for table in tables]
        self._orders = open_orders(self._config, self._clock)
        return DeviceModels(configs, self._config.state_dir, self._request_piece, self._clock, self._orders)

    def _build_monitor(self) -> Monitor:
        monitor = Monitor(
            self._config,
            agent_version(),
            self._spool,
            self._forwarder.progress,
            self._supervisor,
            self._clock,
            self._rules.report,
            lambda: self._clock_hold.is_holding,
        )
        monitor.documents = self._document_reports
        return monitor

    def _build_health_server(self) -> "HealthServer":
        # Loaded only where somebody asks: an HTTP server brings 2 MB along.
        from edge_agent.health.server import HealthServer  # noqa: PLC0415

        return HealthServer(self._config.health, self._monitor.snapshot)

    def _request_piece(self, request: ModelRequest) -> None:
        self._forwarder.request_model_piece(request)  # the updater is built before the forwarder

    def _model_reports(self) -> tuple[ModelReport, ...]:
        return () if self._models is None else self._models.report()

    def _document_reports(self) -> tuple[DocumentReport, ...]:
        return () if self._orders is None else (self._orders.report(),)


def agent_version() -> str:
    """The installed version."""
    return metadata.version("catchment")


def _build(source: SourceConfig, contract: Contract, clock: Clock, folder: Path | None, position: bytes | None) -> Source:
    return build_source(source.kind, source.resolved, contract, clock, position, folder)
