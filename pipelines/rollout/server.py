"""The model server: hands out pieces of the repository, tells devices what they should run, and stops a rollout that fails."""

import threading
from dataclasses import dataclass
from datetime import timedelta

import msgspec
import structlog
from paho.mqtt.client import MQTTMessage

from pipelines.clock import Clock, SystemClock
from pipelines.config import CoreConfig
from pipelines.director.orders import DesiredOrders
from pipelines.errors import ConflictError, NotFoundError, PipelineError, RefusedError
from pipelines.rollout.connection import BrokerLink, reply_properties
from pipelines.rollout.keys import KeyFolder
from pipelines.rollout.paths import keys_folder, models_folder
from pipelines.rollout.pieces import answer
from pipelines.rollout.repository import ModelRepository
from pipelines.rollout.rollouts import Rollout, RolloutStore, progress, wanted_by
from schemas.errors import SchemaError
from schemas.ids import DeviceId
from schemas.reported import DocumentReport, ModelReport, decode_reported
from schemas.topics import Kind, Topics

RENEW_WITHIN = timedelta(days=7)
TICK_S = 0.5
_RENEW_EVERY_S = 600.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Told:
    """What a device was last ordered: by which rollout, signed by which keys, when."""

    rollout: Rollout | None
    keys: tuple[str, ...] = ()
    at_ms: int = 0


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
        self._told: dict[str, Told] = {}
        self._config = config
        self._keys: tuple[str, ...] | None = None
        self._refusing: dict[str, str] = {}
        self._renew_at_s = clock.monotonic_s()
        filters = (self._topics.model_get_filter(), self._topics.reported_filter())
        self._link = BrokerLink(config.broker, "catchment-models", filters, self._on_message)

    def open(self) -> None:
        """Connect.

        Raises:
            RetryLaterError: the broker cannot be reached.
        """
        self._link.open()

    def close(self) -> None:
        """Leave the broker."""
        self._link.close()

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
        found = answer(self._root, bytes(message.payload))
        self._link.publish(
            self._topics.model_data(device), found.body, properties=reply_properties(correlation, found.user_properties)
        )

    def _remember(self, device: DeviceId, body: bytes) -> None:
        if not body:
            return
        report = decode_reported(body)
        with self._lock:
            self._reports[device] = report.models
        self._note_refusals(device, report.documents or ())

    def _note_refusals(self, device: DeviceId, documents: tuple[DocumentReport, ...]) -> None:
        """Log what a device refuses, once for each reason: nobody else hears of it."""
        reason = "; ".join(f"{each.kind}: {each.reason}" for each in documents if each.reason)
        if reason and self._refusing.get(device) != reason:
            log.warning("device_does_not_follow", device=device, reason=reason)
        self._refusing[device] = reason

    def tick(self) -> None:
        """What is due: fresh signatures, failing rollouts stopped, devices told."""
        self._renew()
        with self._lock:
            reports = dict(self._reports)
        rollouts = [self._halted_if_failing(item, reports) for item in self._rollouts.all()]
        named = {device for item in rollouts if item.state == "running" for device in item.devices.named_devices}
        orders = self._open_orders()
        for device in sorted({*reports, *named, *self._told}):
            self._tell(device, rollouts, reports.get(device, ()), orders)

    def _open_orders(self) -> DesiredOrders:
        """What signs this round's orders, with the keys that are there now."""
        orders = DesiredOrders.open(self._config, self._clock)
        if orders.public_keys != self._keys:
            self._keys = orders.public_keys
            if orders.public_keys:
                log.info("director_keys_loaded", public_keys=orders.public_keys)
            else:
                log.warning("desired_state_unsigned", action="make a key with: catchment director init")
        return orders

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

    def _tell(self, device: str, rollouts: list[Rollout], models: tuple[ModelReport, ...], orders: DesiredOrders) -> None:
        wanted, told = wanted_by(device, rollouts), self._told.get(device, Told(None))
        if wanted == told.rollout and (wanted is None or not self._is_stale(told, orders)):
            return
        if runs_halted(device, rollouts, models):
            # It works there: a halted rollout takes nothing away, it only goes no further.
            self._told[device] = Told(wanted)
            return
        body = orders.message(device, None if wanted is None else wanted.desired)
        self._link.publish(self._topics.desired(DeviceId(device)), body, retain=True)
        self._told[device] = Told(wanted, orders.public_keys, self._clock.now_ms())
        log.info("device is told", device=device, rollout=None if wanted is None else wanted.name)

    def _is_stale(self, told: Told, orders: DesiredOrders) -> bool:
        """Whether what a device was told must be signed again: by other keys, or before it expires."""
        if told.keys != orders.public_keys:
            return True
        return bool(told.keys) and self._clock.now_ms() - told.at_ms >= orders.renew_after_ms


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
    """
    server = ModelServer(config, clock or SystemClock())
    server.open()
    try:
        while not stop.is_set():
            try:
                server.tick()
            except (PipelineError, OSError) as error:
                log.exception("model server goes on after an error", error=str(error))
            stop.wait(TICK_S)
    finally:
        server.close()
