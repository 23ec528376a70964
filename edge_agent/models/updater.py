"""From "you should run this" to a running model: fetch, verify, test, switch, watch, and go back if need be."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.clock import Backoff, Clock
from edge_agent.errors import (
    ConfigError,
    ModelDiedError,
    ModelError,
    ModelNotWantedError,
    ModelStoppedError,
    ModelUnfitError,
    RottenModelError,
    UntrustedModelError,
)
from edge_agent.models.config import ModelConfig, TrustOptions
from edge_agent.models.device_class import Preflight
from edge_agent.models.fetcher import ModelFetcher, PieceFetcher
from edge_agent.models.loader import ModelLoader
from edge_agent.models.model_process import ModelProcess, check_extra
from edge_agent.models.running import ModelProblem, RunningModel
from edge_agent.models.state import MAX_ATTEMPTS, Installed
from edge_agent.models.store import ModelStore
from edge_agent.models.tallying import Shadow
from edge_agent.models.wanted import Orders, WantedModel
from edge_agent.sources.api import SampleBatch
from edge_agent.uplink.downlink import ModelRequest
from schemas.envelope import Properties
from schemas.model_tasks import Classify
from schemas.reported import ModelFigures, ModelReport
from schemas.rollout import Desired

_WAIT_S = 1.0
_FIRST_RETRY_S = 15.0
_LONGEST_RETRY_S = 3_600.0
_LONGEST_REVIVE_S = 60.0
_KEEP_WATCHED_EVERY_S = 30.0
_LONGEST_SHADOW_S = 86_400.0
_MANY_ANSWERS = 100  # a process that gave so many was no crash at once

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedVersion:
    """A version that is loaded and not in use yet."""

    wanted: Desired
    installed: Installed
    process: ModelProcess


class ModelUpdater:
    """Keeps one model of a device up to date and asks it about pictures. Methods may be called from any thread.

    Args:
        config: which model, and whose word is trusted.
        state_dir: the agent's folder; the model's files go to `models/<name>` below it.
        send_request: publishes a request to the model server.
        clock: time.
        piece_timeout_s: how long one piece of a download may be under way.
        orders: admits signed desired states; None: this device trusts no director key, and follows unsigned ones.

    Attributes:
        store: the versions that are installed, and what is known of them.
        running: the version that works, if one does.
        worker: the thread of the install under way or the last one.

    Raises:
        ConfigError: the root metadata cannot be read, or the `infer` extra is missing.
    """

    def __init__(
        self,
        config: ModelConfig,
        state_dir: Path,
        send_request: Callable[[ModelRequest], None],
        clock: Clock,
        piece_timeout_s: float = 5.0,
        orders: Orders | None = None,
    ) -> None:
        check_extra()
        self._config = config
        self._clock = clock
        folder = state_dir / "models" / config.name
        self.store = ModelStore(folder)
        self._pieces = PieceFetcher(send_request, timeout_s=piece_timeout_s)
        metadata, fetched = (str((folder / name).absolute()) for name in ("metadata", "fetched"))
        options = TrustOptions(_root(config), metadata, fetched, config.max_bytes)
        self._fetcher = ModelFetcher(self._pieces, options, preflight=Preflight(config).check)
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._wanted = WantedModel(config.name, orders, clock, self._on_change)
        self.worker: threading.Thread | None = None
        self._loader = ModelLoader(self.store, config)
        self.running = RunningModel(self._wake, config.prefix)
        self._candidate: LoadedVersion | None = None
        self._resting = ""
        self._revive_s = 0.0
        self._revive_at_s = 0.0
        self._refusal = ""
        self._blocked = ""
        self._retry = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        self._retry_at_s = 0.0
        self._watched_s = self.store.state.watched_s
        self._looked_at_s = clock.monotonic_s()
        self._start()

    # -- at start ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Judge how the last run ended, then load the active version; whatever is wrong with it, go back to the one before."""
        try:
            self._judge_last_run()
            self._load_active()
        except ModelError as error:
            # The disk refuses. Capture goes on without a model, and it is tried again.
            self._rest(_FIRST_RETRY_S, str(error))

    def _judge_last_run(self) -> None:
        broken_off = self.store.close_open_attempts()
        self.store.note_start(counts=not broken_off)
        for tried in broken_off:
            log.error("agent_ended_while_loading_model", model=self._config.name, version=tried.version, attempts=tried.count)
            active = self.store.state.active
            if self._loader.is_exhausted(tried.version) and (active is None or active.version != tried.version):
                self.store.refuse(tried.version, f"the agent ended {tried.count} times while this version was loaded")
        starts = self.store.state.starts
        if self.store.state.on_probation and starts > self._config.max_starts:
            self.store.go_back(f"the agent ended abnormally {starts} times during probation")

    def _load_active(self) -> None:
        """Load the active version, or those before it; without one that loads, the next try is later."""
        self.running.use(None, is_expected=True)
        while (active := self.store.state.active) is not None:
            if self._loader.is_exhausted(active.version):
                if self.store.state.on_probation:
                    self.store.go_back(self._resting or "it did not survive being loaded")
                    continue
                self.store.forget_attempts(active)
                self._rest(_LONGEST_RETRY_S, self._resting or "it did not survive being loaded")
                return
            try:
                process = self._loader.load(active, is_new=False)
            except RottenModelError as error:
                log.exception("model_rotten", model=self._config.name, version=active.version)
                self.store.drop_rotten(str(error))
            except ModelUnfitError as error:
                log.exception("model_not_started", model=self._config.name, version=active.version)
                self.store.go_back(str(error))
            except ModelDiedError as error:
                log.error("model_died_while_loading", model=self._config.name, version=active.version, reason=str(error))  # noqa: TRY400  # the reason says it all
                self._resting = str(error)
            except ModelError as error:
                self._rest(_FIRST_RETRY_S, str(error))
                return
            else:
                self._resting = ""
                self.running.use(process)
                return
        self.running.use(None)

    def _rest(self, seconds: float, reason: str) -> None:
        log.warning("model_rests", model=self._config.name, version=self._version(), seconds=seconds, reason=reason)
        self._resting = reason
        self._revive_at_s = self._clock.monotonic_s() + seconds

    # -- what the uplink hands in -----------------------------------------------------------------------------------

    def on_desired(self, body: bytes) -> None:
        """The core says which model to run. Another model's, and what cannot be read, is skipped with a log line."""
        if self._wanted.receive(body):
            self._wake.set()

    def _on_change(self) -> None:
        """Something else is wanted, or nothing: what is fetched now is not needed, and what went wrong with it does not count."""
        self._pieces.interrupt()
        with self._lock:
            self._refusal = self._blocked = ""
            self._retry.succeeded()
            self._retry_at_s = 0.0

    def on_piece(self, correlation: bytes, properties: Properties, body: bytes) -> None:
        """A piece of a file came."""
        self._pieces.on_piece(correlation, properties, body)

    # -- the updater's own thread -----------------------------------------------------------------------------------

    def run_once(self, wait_s: float = _WAIT_S) -> None:
        """Do what is due, then wait up to a second, or as long as given, for more.

        An install runs on a thread of its own; only a model whose process died is loaded here, within `max_load_s`.
        """
        self._watch_probation()
        self._wanted.decide()
        self._watch_shadow()
        self._look_after_running()
        if self._due() is not None and (self.worker is None or not self.worker.is_alive()):
            # A daemon: a download must not keep the agent from stopping, and a kill in the middle of it is harmless.
            self.worker = threading.Thread(target=self.try_install, name=f"model-{self._config.name}", daemon=True)
            self.worker.start()
        self._wake.wait(wait_s)
        self._wake.clear()

    def close(self) -> None:
        """End a download or a load that is under way, and the model's process; the stop is recorded as orderly."""
        self._pieces.close()
        self._loader.close()
        if self.worker is not None:
            self.worker.join(_WAIT_S * 5)
        self.running.compare_with(None)
        self.running.use(None)
        try:
            self.store.note_stop(self._watched_s)
        except ModelError as error:
            log.warning("model_stop_not_recorded", model=self._config.name, reason=str(error))

    def _look_after_running(self) -> None:
        """Judge the running model by what went wrong with it, and load it again where its process is gone."""
        try:
            problem = self.running.take_problem()
            if problem is not None:
                self._judge(problem)
            has_model = self.store.state.active is not None
            if has_model and self.running.process is None and self._clock.monotonic_s() >= self._revive_at_s:
                self._load_active()
        except ModelError as error:
            # The disk refuses to record it: nothing is loaded without that.
            self._rest(_FIRST_RETRY_S, str(error))

    def _judge(self, problem: ModelProblem) -> None:
        """Go back to the version before, or have this one started again after a while."""
        state = self.store.state
        if problem.died:
            log.error("model_process_died", model=self._config.name, version=self._version(), reason=problem.reason)
            self._revive_s = 0.0 if problem.answers >= _MANY_ANSWERS else self._revive_s
            self._rest(self._revive_s, problem.reason)
            self._revive_s = min(2 * max(self._revive_s, 1.0), _LONGEST_REVIVE_S)
        if not state.on_probation or not problem.is_of_the_model:
            return
        # While another version is tried, memory is short for both, and that one is the likelier cause.
        is_alone = not any(tried.is_open for tried in state.attempts)
        deaths = self.store.count_death() if problem.died and is_alone else state.deaths
        if problem.failures < self._config.max_failures and deaths < MAX_ATTEMPTS:
            return
        failed = f"{problem.failures} inferences failed in a row" if deaths < MAX_ATTEMPTS else f"its process died {deaths} times"
        log.error("model_probation_failed", model=self._config.name, version=self._version(), error=problem.reason)
        self.store.go_back(f"{failed}: {problem.reason}")
        self._resting, self._revive_s, self._revive_at_s = "", 0.0, 0.0
        self._load_active()

    def _due(self) -> Desired | None:
        wanted = self._wanted.current  # its lock comes before ours
        with self._lock:
            state = self.store.state
            if self._candidate is not None:
                return None
            if wanted is None or wanted.version in state.refused or self._clock.monotonic_s() < self._retry_at_s:
                return None
            return None if state.active is not None and state.active.version == wanted.version else wanted

    def _watch_probation(self) -> None:
        """Count the time for which the version on probation has run, also over restarts, until it is enough."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            elapsed_s, self._looked_at_s = now_s - self._looked_at_s, now_s
            if not self.store.state.on_probation or self.running.process is None:
                return
            self._watched_s += elapsed_s
            try:
                if self._watched_s >= self._config.probation_s:
                    self.store.confirm()
                    log.info("model_probation_passed", model=self._config.name, version=self._version())
                elif self._watched_s - self.store.state.watched_s >= _KEEP_WATCHED_EVERY_S:
                    self.store.note_watched(self._watched_s)
            except ModelError as error:
                log.warning("model_probation_not_recorded", model=self._config.name, reason=str(error))

    def try_install(self) -> None:
        """Fetch, try and install the version that is due, if one is; a failure is kept for the report."""
        wanted = self._due()
        if wanted is None:
            return
        try:
            self._install(wanted)
        except ModelUnfitError as error:
            log.warning("model_unfit", model=wanted.name, version=wanted.version, error=str(error))
            self._refuse(wanted.version, str(error))
        except UntrustedModelError as error:
            # Not for good: the same version may be vouched for once the repository is put right.
            log.error("model_signature_invalid", model=wanted.name, version=wanted.version, error=str(error))  # noqa: TRY400  # the reason says it all
            self._later(str(error))
        except ModelNotWantedError as error:
            log.info("model_not_wanted", model=wanted.name, version=wanted.version, reason=str(error))
        except ModelStoppedError:
            log.info("model_install_broken_off", model=wanted.name, version=wanted.version)
        except ModelError as error:
            log.warning("model_blocked", model=wanted.name, version=wanted.version, reason=str(error))
            self._block(wanted, str(error))
        finally:
            self._wake.set()

    def _refuse(self, version: int, reason: str) -> None:
        try:
            with self._lock:
                self.store.refuse(version, reason)
                self._refusal = reason
        except ModelError as error:
            log.warning("model_refusal_not_recorded", model=self._config.name, version=version, reason=str(error))
            self._later(reason)

    def _block(self, wanted: Desired, reason: str) -> None:
        """Try again later: the network, the disk or the clock is in the way, not the model."""
        is_current = wanted == self._wanted.current
        with self._lock:
            if is_current:
                self._blocked = reason[:500]
                self._retry_at_s = self._clock.monotonic_s() + self._retry.next_s()

    def _later(self, refusal: str) -> None:
        with self._lock:
            self._refusal = refusal or self._refusal
            self._retry_at_s = self._clock.monotonic_s() + self._retry.next_s()

    def _install(self, wanted: Desired) -> None:
        """Fetch, verify, load, test, switch: the model in force is not touched before the last step."""
        if self._loader.is_exhausted(wanted.version):
            raise ModelUnfitError(f"version {wanted.version} did not survive {MAX_ATTEMPTS} attempts to load it")
        self._pieces.begin()
        if wanted != self._wanted.current:
            raise ModelNotWantedError(f"version {wanted.version} is not wanted any more")
        try:
            trusted = self._fetcher.fetch(wanted, self.store.incoming, self.store.held)
            installed = Installed(wanted.version, trusted.digest, trusted.spec)
            self.store.add(installed)
        except ModelError:
            self.store.discard_incoming()
            raise
        fresh = self._loader.load_new(installed)
        if self._config.shadow_frames and self.running.process is not None and isinstance(installed.spec.task, Classify):
            with self._lock:
                self._candidate = LoadedVersion(wanted, installed, fresh)
                self.running.compare_with(self._shadow_of(fresh))
            log.info("model_compared", model=wanted.name, version=wanted.version, frames=self._config.shadow_frames)
            return
        self._switch(LoadedVersion(wanted, installed, fresh))

    def _switch(self, candidate: LoadedVersion) -> None:
        wanted, installed, fresh = candidate.wanted, candidate.installed, candidate.process
        try:
            with self._wanted.holding(wanted), self._lock:
                self.store.activate(installed)
                self._refusal = self._blocked = self._resting = ""
                self._revive_s = self._revive_at_s = self._watched_s = 0.0
        except ModelError:
            fresh.close()
            raise
        self.running.use(fresh)
        log.info("model_active", model=wanted.name, version=wanted.version, rollout=wanted.rollout)

    def _shadow_of(self, process: ModelProcess) -> Shadow:
        return Shadow(
            process,
            every=self._config.shadow_every,
            cpu_share=self._config.shadow_cpu_share,
            frames=self._config.shadow_frames,
            longest_s=_LONGEST_SHADOW_S,
            began_s=self._clock.monotonic_s(),
        )

    def _watch_shadow(self) -> None:
        """End the comparison of a candidate: it takes over once enough was compared, unless it is not wanted any more."""
        candidate = self._candidate
        shadow = self.running.shadow
        if candidate is None or shadow is None:
            return
        is_wanted = candidate.wanted == self._wanted.current
        if is_wanted and not shadow.failure and not shadow.is_over(self._clock.monotonic_s()):
            return
        self._candidate = None
        if not is_wanted or shadow.failure:
            self.running.compare_with(None)
            if is_wanted:
                self._refuse(candidate.wanted.version, f"its process died while it was compared: {shadow.failure}")
            return
        self.running.take_shadow()
        try:
            self._switch(candidate)
        except ModelNotWantedError as error:
            log.info("model_not_wanted", model=candidate.wanted.name, version=candidate.wanted.version, reason=str(error))
        except ModelError as error:
            self._block(candidate.wanted, str(error))

    # -- what capture and the report ask ----------------------------------------------------------------------------

    def report(self) -> tuple[ModelReport, ...]:
        """The model's line in the device's report."""
        wanted, trouble = self._wanted.ordered, self._wanted.trouble
        with self._lock:
            state = self.store.state
            blocked = self._blocked or (trouble if wanted is not None and wanted.version != self._version() else "")
            refused = bool(self._refusal) or (wanted is not None and wanted.version in state.refused)
            reason = self._refusal or state.reason
            if blocked:
                kind, reason = "blocked", blocked
            elif state.rolled_back and not self._refusal:
                kind = "rolled_back"
            elif refused:
                kind = "refused"
            else:
                kind, reason = ("active" if state.active is not None else "none"), self._resting
            on_probation = True if state.on_probation else msgspec.UNSET
            figures = ModelFigures(
                self._config.max_memory_mib, self.running.peak_mib(), self._config.max_ms, dict(self.running.counts)
            )
            tallies = self.running.tallies() or msgspec.UNSET
            line = ModelReport(self._config.name, self._version(), kind, reason, state.refused, on_probation)
            return (msgspec.structs.replace(line, figures=figures, tallies=tallies),)

    def _version(self) -> int:
        active = self.store.state.active
        return 0 if active is None else active.version

    def annotate(self, batch: SampleBatch) -> SampleBatch:
        """The batch with what the model says of each payload; unchanged while no model is active.

        A picture the model fails on keeps its columns null and is counted.
        """
        return self.running.annotate(batch)

    @property
    def counts(self) -> dict[str, int]:
        """Pictures by what became of them; see `RunningModel.counts`."""
        return self.running.counts


def _root(config: ModelConfig) -> bytes:
    try:
        return Path(config.root).read_bytes()
    except OSError as error:
        raise ConfigError(f"model {config.name}: root {config.root!r} cannot be read ({error.strerror})") from error
