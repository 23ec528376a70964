"""From "you should run this" to a running model: fetch, verify, test, switch, watch, and go back if need be."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from edge_agent.capture.batch import SampleBatch, Scalar
from edge_agent.clock import Clock
from edge_agent.documents.inbox import DocumentInbox
from edge_agent.errors import ConfigError, ModelError, ModelUnfitError, UntrustedModelError
from edge_agent.models.config import ModelConfig
from edge_agent.models.fetcher import PieceFetcher
from edge_agent.models.inference import Classifier, UnreadablePictureError
from edge_agent.models.selftest import check_golden
from edge_agent.models.state import Installed
from edge_agent.models.store import ModelStore
from edge_agent.models.trust import TrustAnchor
from schemas.envelope import Properties
from schemas.errors import SchemaError
from schemas.reported import ModelReport
from schemas.rollout import Desired, DesiredModels, decode_desired

_WAIT_S = 1.0
_FIRST_RETRY_S = 15.0
_LONGEST_RETRY_S = 3_600.0

log = structlog.get_logger(__name__)


class ModelUpdater:
    """Keeps one model of a device up to date and asks it about pictures. Methods may be called from any thread.

    Args:
        config: which model, and whose word is trusted.
        state_dir: the agent's folder; the model's files go to `models/<name>` below it.
        send_request: publishes (correlation data, body) on the topic for requests.
        clock: time.
        piece_timeout_s: how long one piece of a download may be under way.
        orders: admits signed desired states; None: this device trusts no director key, and follows unsigned ones.

    Raises:
        ConfigError: the root metadata cannot be read, or the `infer` extra is missing.
    """

    def __init__(
        self,
        config: ModelConfig,
        state_dir: Path,
        send_request: Callable[[bytes, bytes], None],
        clock: Clock,
        piece_timeout_s: float = 5.0,
        orders: DocumentInbox[DesiredModels] | None = None,
    ) -> None:
        self._config = config
        self._orders = orders
        self._clock = clock
        folder = state_dir / "models" / config.name
        self._store = ModelStore(folder)
        self._fetcher = PieceFetcher(send_request, folder, timeout_s=piece_timeout_s)
        self._trust = TrustAnchor(_root(config), folder / "metadata", self._fetcher, config.max_bytes)
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._wanted: Desired | None = None
        self._worker: threading.Thread | None = None
        self._classifier: Classifier | None = None
        self._refusal = ""
        self._retry_s = _FIRST_RETRY_S
        self._retry_at_s = 0.0
        self._failures = 0
        self.counts = {"inferences": 0, "failures": 0, "unreadable": 0}
        self._proven_at_s = clock.monotonic_s() + config.probation_s
        self._start()

    # -- at start ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Load the active version; whatever is wrong with it, go back to the one before."""
        if self._store.state.on_probation:
            self._store.count_start()
            if self._store.state.starts > self._config.max_starts:
                self._store.go_back(f"the agent started {self._store.state.starts} times during probation")
        while (active := self._store.state.active) is not None:
            try:
                self._classifier = Classifier(self._store.whole(active), active.spec, self._config.labels)
            except ModelUnfitError as error:
                log.exception("model does not start", model=self._config.name, version=active.version)
                self._store.go_back(str(error))
            else:
                return

    # -- what the uplink hands in -----------------------------------------------------------------------------------

    def on_desired(self, body: bytes) -> None:
        """The core says which model to run. Another model's, and what cannot be read, is passed over with a log line."""
        if self._orders is not None:
            # Decided about within a second on the models' own thread: one signature check at a time, however many come.
            self._orders.hand_in(body)
            return
        try:
            desired = decode_desired(body)
        except SchemaError as error:
            log.warning("desired state is refused", error=str(error))
            return
        if desired.name != self._config.name:
            log.info("desired state is for another model", model=desired.name, ours=self._config.name)
            return
        self._want(desired)
        self._wake.set()

    def _want(self, desired: Desired | None) -> None:
        with self._lock:
            if desired != self._wanted:
                self._wanted, self._refusal = desired, ""
                self._retry_s, self._retry_at_s = _FIRST_RETRY_S, 0.0

    def on_piece(self, correlation: bytes, properties: Properties, body: bytes) -> None:
        """A piece of a file came."""
        self._fetcher.on_piece(correlation, properties, body)

    # -- the updater's own thread -----------------------------------------------------------------------------------

    def run_once(self) -> None:
        """Do what is due, then wait up to a second for more. An install runs beside, so this never blocks longer."""
        self._confirm_when_due()
        if self._orders is not None and (desired := self._orders.take()) is not None:
            self._want(desired.of(self._config.name))
        if self._due() is not None and (self._worker is None or not self._worker.is_alive()):
            # A daemon: a download must not keep the agent from stopping, and a kill in the middle of it is harmless.
            self._worker = threading.Thread(target=self._try_install, name=f"model-{self._config.name}", daemon=True)
            self._worker.start()
        self._wake.wait(_WAIT_S)
        self._wake.clear()

    def close(self) -> None:
        """End a download that is under way."""
        self._fetcher.close()
        if self._worker is not None:
            self._worker.join(_WAIT_S * 5)

    def _due(self) -> Desired | None:
        with self._lock:
            wanted, state = self._wanted, self._store.state
            if wanted is None or wanted.version in state.refused or self._clock.monotonic_s() < self._retry_at_s:
                return None
            return None if state.active is not None and state.active.version == wanted.version else wanted

    def _confirm_when_due(self) -> None:
        with self._lock:
            if self._store.state.on_probation and self._clock.monotonic_s() >= self._proven_at_s:
                self._store.confirm()
                log.info("model has proved itself", model=self._config.name, version=self._version())

    def _try_install(self) -> None:
        wanted = self._due()
        if wanted is None:
            return
        try:
            self._install(wanted)
        except ModelUnfitError as error:
            log.warning("model is unfit and refused", model=wanted.name, version=wanted.version, error=str(error))
            with self._lock:
                self._store.refuse(wanted.version, str(error))
                self._refusal = str(error)
        except UntrustedModelError as error:
            # Not for good: the same version may be vouched for once the repository is put right.
            log.error("model is not vouched for", model=wanted.name, version=wanted.version, error=str(error))  # noqa: TRY400  # the reason says it all
            self._later(str(error))
        except ModelError as error:
            log.warning("model cannot be fetched yet", model=wanted.name, version=wanted.version, error=str(error))
            self._later("")
        finally:
            self._wake.set()

    def _later(self, refusal: str) -> None:
        with self._lock:
            self._refusal = refusal or self._refusal
            self._retry_at_s = self._clock.monotonic_s() + self._retry_s
            self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)

    def _install(self, wanted: Desired) -> None:
        """Fetch, verify, load, test, switch: the model in force is not touched before the last step."""
        trusted = self._trust.fetch(wanted, self._store.incoming)
        installed = Installed(wanted.version, trusted.digest, trusted.spec)
        path = self._store.add(installed)
        fresh = Classifier(path, trusted.spec, self._config.labels)
        if self._config.self_test:
            check_golden(fresh)
        with self._lock:
            self._store.activate(installed)
            self._classifier, self._failures, self._refusal = fresh, 0, ""
            self._proven_at_s = self._clock.monotonic_s() + self._config.probation_s
        log.info("model is active", model=wanted.name, version=wanted.version, rollout=wanted.rollout)

    # -- what capture and the report ask ----------------------------------------------------------------------------

    def report(self) -> tuple[ModelReport, ...]:
        """The model's line in the device's report."""
        with self._lock:
            state = self._store.state
            wanted = self._wanted
            refused = bool(self._refusal) or (wanted is not None and wanted.version in state.refused)
            reason = self._refusal or state.reason
            if state.rolled_back and not self._refusal:
                kind = "rolled_back"
            elif refused:
                kind = "refused"
            else:
                kind, reason = ("active" if state.active is not None else "none"), ""
            return (ModelReport(self._config.name, self._version(), kind, reason, state.refused),)

    def _version(self) -> int:
        active = self._store.state.active
        return 0 if active is None else active.version

    def annotate(self, batch: SampleBatch) -> SampleBatch:
        """The batch with what the model says of each payload; unchanged while no model is active.

        A picture the model fails on keeps its columns null and is counted.
        """
        classifier = self._classifier
        if classifier is None or batch.payloads is None:
            return batch
        said = [self._predict(classifier, payload) for payload in batch.payloads]
        spec = classifier.spec
        columns: dict[str, Sequence[Scalar]] = {
            "model_name": [None if answer is None else spec.name for answer in said],
            "model_version": [None if answer is None else spec.version for answer in said],
            "predicted_label": [None if answer is None else answer[0] for answer in said],
            "predicted_score": [None if answer is None else answer[1] for answer in said],
        }
        return replace(batch, columns={**batch.columns, **columns})

    def _predict(self, classifier: Classifier, payload: bytes | Path | None) -> tuple[str, float] | None:
        if payload is None:
            return None
        try:
            answer = classifier.predict(payload)
        except UnreadablePictureError as error:
            self.counts["unreadable"] += 1
            log.debug("picture is unreadable for the model", error=str(error))
            return None
        except ModelError as error:
            self._failed(classifier, str(error))
            return None
        self.counts["inferences"] += 1
        self._failures = 0
        return answer

    def _failed(self, classifier: Classifier, reason: str) -> None:
        with self._lock:
            self.counts["failures"] += 1
            self._failures += 1
            if classifier is not self._classifier or self._failures < self._config.max_failures:
                return
            if not self._store.state.on_probation:
                return
            log.error("model fails on probation; going back", model=self._config.name, version=self._version(), error=reason)
            self._store.go_back(f"{self._failures} inferences failed in a row: {reason}")
            self._classifier, self._failures = None, 0
            self._start()


def _root(config: ModelConfig) -> bytes:
    try:
        return Path(config.root).read_bytes()
    except OSError as error:
        raise ConfigError(f"model {config.name}: root {config.root!r} cannot be read ({error.strerror})") from error
