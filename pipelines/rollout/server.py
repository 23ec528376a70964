"""The model server: hands out pieces of the repository, tells devices what they should run, and stops a rollout that fails."""

import threading
from datetime import timedelta
from functools import partial

import msgspec
import structlog
from paho.mqtt.client import MQTTMessage

from pipelines.clock import Clock, SystemClock
from pipelines.config import CoreConfig
from pipelines.errors import ConflictError, NotFoundError, PipelineError, RefusedError
from pipelines.lake.remote import lake_of
from pipelines.rollout.connection import BrokerLink, reply_properties
from pipelines.rollout.keys import KeyFolder
from pipelines.rollout.paths import keys_folder, models_folder
from pipelines.rollout.pieces import answer
from pipelines.rollout.repository import ModelRepository
from pipelines.rollout.rights import RightsProbe
from pipelines.rollout.rollouts import Rollout, RolloutStore, progress, wanted_by
from pipelines.status.beat import Health, Heart
from schemas.errors import SchemaError
from schemas.ids import DeviceId
from schemas.reason_codes import is_refusal
from schemas.reported import ModelReport, decode_reported
from schemas.rollout import encode_desired
from schemas.topics import Kind, Topics

RENEW_WITHIN = timedelta(days=7)
TICK_S = 0.5
_RENEW_EVERY_S = 600.0
# What the broker refused is sent again after so long: its access rules may have been corrected.
_REFUSED_AGAIN_S = 15.0

log = structlog.get_logger(__name__)


class ModelServer:
    """Serves one lake's repository on one broker."""

    def __init__(self, config: CoreConfig, clock: Clock) -> None:
        self._topics = Topics(config.broker.namespace)
        self._root = models_folder(config)
        self._repository = ModelRepository(self._root, KeyFolder(keys_folder(config)), clock)
        self._rollouts = RolloutStore(self._root / "rollouts")
        self._clock = clock
        self._lock = threading.Lock()
        self._reports: dict[str, tuple[ModelReport, ...]] = {}
        self._told: dict[str, Rollout | None] = {}
        self._renew_at_s = clock.monotonic_s()
        self._refused_at_s: dict[str, float] = {}
        self._pieces = self._reports_heard = 0
        filters = (self._topics.model_get_filter(), self._topics.reported_filter())
        self._link = BrokerLink(config.broker, "catchment-models", filters, self._on_message, clock)
        self._probe = RightsProbe(config.broker, self._topics, self._link, clock)

    def open(self) -> None:
        """Connect.

        Raises:
            RetryLaterError: the broker cannot be reached.
        """
        self._link.open()

    def close(self) -> None:
        """Leave the broker."""
        self._link.close()

    def health(self) -> Health:
        """Say what keeps it from serving, for the heartbeat. From any thread."""
        trouble = self._link.refusals.trouble or self._probe.trouble
        if not self._link.is_ready:
            trouble = "no connection to the broker"
        counters = {
            "pieces": self._pieces,
            "reports_heard": self._reports_heard,
            "refused_messages": self._link.refusals.count,
            "devices": len(self._reports),
        }
        return Health(not trouble, trouble, counters)

    def _note_answer(self, device: str, code: int) -> None:
        """Remember a refused order: the device does not know what it should run, so it is sent again."""
        if is_refusal(code):
            with self._lock:
                self._refused_at_s[device] = self._clock.monotonic_s()

    def _on_message(self, message: MQTTMessage) -> None:
        try:
            address = self._topics.parse(message.topic)
            if address.kind is Kind.MODEL_GET:
                self._answer(address.device, message)
            elif address.kind is Kind.REPORTED:
                self._remember(address.device, bytes(message.payload))
        except SchemaError as error:
            log.warning("message is refused", topic=message.topic[:200], error=str(error))

    def _answer(self, device: DeviceId, message: MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", None)
        if not isinstance(correlation, bytes) or len(correlation) > 256:
            log.warning("piece request without correlation data", device=device)
            return
        if self._probe.is_ours(device, correlation):
            return
        self._pieces += 1
        found = answer(self._root, bytes(message.payload))
        self._link.publish(
            self._topics.model_data(device), found.body, properties=reply_properties(correlation, found.user_properties)
        )

    def _remember(self, device: DeviceId, body: bytes) -> None:
        if not body:
            return
        models = decode_reported(body).models
        self._reports_heard += 1
        with self._lock:
            self._reports[device] = models

    def tick(self) -> None:
        """What is due: fresh signatures, failing rollouts stopped, devices told."""
        self._renew()
        self._forget_refused()
        self._probe.step()
        with self._lock:
            reports = dict(self._reports)
        rollouts = [self._halted_if_failing(item, reports) for item in self._rollouts.all()]
        named = {device for item in rollouts if item.state == "running" for device in item.devices.named_devices}
        for device in sorted({*reports, *named}):
            self._tell(device, rollouts, reports.get(device, ()))

    def _forget_refused(self) -> None:
        """Have orders that the broker refused a while ago sent again."""
        before_s = self._clock.monotonic_s() - _REFUSED_AGAIN_S
        with self._lock:
            due = [device for device, at_s in self._refused_at_s.items() if at_s <= before_s]
            for device in due:
                del self._refused_at_s[device]
                self._told.pop(device, None)

    def _renew(self) -> None:
        if self._clock.monotonic_s() < self._renew_at_s:
            return
        self._renew_at_s = self._clock.monotonic_s() + _RENEW_EVERY_S
        try:
            if self._repository.renew(when_within=RENEW_WITHIN):
                log.info("repository is signed anew", expires=self._repository.timestamp_expires().isoformat())
        except NotFoundError:
            log.info("there is no model repository yet; make one with: catchment model init")
        except (RefusedError, ConflictError) as error:
            log.error("repository cannot be signed anew; devices stop taking models when it expires", error=str(error))  # noqa: TRY400

    def _halted_if_failing(self, rollout: Rollout, reports: dict[str, tuple[ModelReport, ...]]) -> Rollout:
        if rollout.state != "running":
            return rollout
        found = progress(rollout, reports)
        if not found.should_halt(rollout):
            return rollout
        reason = f"{len(found.failed)} of {found.answers} devices failed"
        halted = msgspec.structs.replace(rollout, state="halted", reason=reason)
        self._rollouts.save(halted)
        log.error("rollout is halted", rollout=rollout.name, reason=reason, failed=found.failed[:20])
        return halted

    def _tell(self, device: str, rollouts: list[Rollout], models: tuple[ModelReport, ...]) -> None:
        wanted = wanted_by(device, rollouts)
        if device in self._told and self._told[device] == wanted:
            return
        if wanted is None and self._told.get(device) is None:
            return
        if runs_halted(device, rollouts, models):
            # It works there: a halted rollout takes nothing away, it only goes no further.
            self._told[device] = wanted
            return
        body = b"" if wanted is None else encode_desired(wanted.desired)
        self._link.publish(
            self._topics.desired(DeviceId(device)), body, retain=True, on_answer=partial(self._note_answer, device)
        )
        self._told[device] = wanted
        log.info("device is told", device=device, rollout=None if wanted is None else wanted.name)


def runs_halted(device: str, rollouts: list[Rollout], models: tuple[ModelReport, ...]) -> bool:
    """Whether the newest rollout that covers the device is halted, and the device runs its version well."""
    covering = [item for item in rollouts if item.devices.covers(item.name, device)]
    newest = max(covering, key=lambda item: item.issued_ms, default=None)
    if newest is None or newest.state != "halted":
        return False
    return any((report.name, report.version, report.state) == (newest.model, newest.version, "active") for report in models)


def serve(config: CoreConfig, stop: threading.Event, clock: Clock | None = None) -> None:
    """Serve until `stop` is set. Errors that pass by themselves are logged and waited out.

    Raises:
        RetryLaterError: the broker cannot be reached at the start.
        ConfigError: it refuses a subscription, or a TLS file is not what it should be.
    """
    clock = clock or SystemClock()
    root = lake_of(config)
    server = ModelServer(config, clock)
    server.open()
    log.info("model_server_ready", broker=f"{config.broker.host}:{config.broker.port}")
    try:
        with Heart(root, "models", "server", clock, server.health):
            while not stop.is_set():
                try:
                    server.tick()
                except (PipelineError, OSError) as error:
                    log.exception("model server goes on after an error", error=str(error))
                stop.wait(TICK_S)
    finally:
        server.close()
