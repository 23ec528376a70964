"""The model server: hands out pieces of the repository, tells devices what they should run, and stops a rollout that fails.

Answers to requests for pieces of repository files. Nothing outside the repository can be asked for.
"""

import os
import threading
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog
from paho.mqtt.client import MQTTMessage

from catchment.runtime.clock import Clock, SystemClock
from pipelines.bridge.shares import Shares
from pipelines.config import CoreConfig, ShareConfig
from pipelines.director import DesiredOrders
from pipelines.errors import ConflictError, NotFoundError, PipelineError, RefusedError
from pipelines.heartbeat import Heartbeats, ProcessHealth, starting
from pipelines.lake.claims import held_alone
from pipelines.lake.lake import lake_of
from pipelines.logs import LogLimit
from pipelines.rollout.connection import BrokerLink, RightsProbe, expiring, reply_properties
from pipelines.rollout.fleet_evidence import FleetWatch
from pipelines.rollout.gates import GateDecision
from pipelines.rollout.judged import read_judged
from pipelines.rollout.keys import KeyFolder, keys_folder, models_folder
from pipelines.rollout.repository import ModelRepository, expiry_warnings
from pipelines.rollout.rollouts import Rollout, RolloutStore, order_for, progress
from schemas.errors import SchemaError
from schemas.ids import DeviceId
from schemas.reason_codes import is_refusal
from schemas.reported import MAX_REPORTED_BYTES, DocumentReport, ModelReport, decode_reported
from schemas.rollout import (
    MAX_PIECE_BYTES,
    STATUS_MISSING,
    STATUS_OK,
    STATUS_PROPERTY,
    STATUS_REFUSED,
    TOTAL_PROPERTY,
    decode_piece_request,
)
from schemas.topics import Kind, Topics

RENEW_WITHIN = timedelta(days=7)
TICK_S = 0.5
_LEASE = ".serving"
_RENEW_EVERY_S = 600.0
# One device's part of the pieces: an answer is counted as the largest there is.
_PIECE_BYTES = MAX_PIECE_BYTES
_PIECE_SHARE = ShareConfig(
    bytes_per_s=16 * 1024 * 1024, burst_bytes=64 * 1024 * 1024, messages_per_s=0, burst_messages=0, streams=0
)
# What the broker refused is sent again after so long: its access rules may have been corrected.
_REFUSED_AGAIN_S = 15.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Announced:
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
        self._watch = FleetWatch()
        self._clock = clock
        self._lock = threading.Lock()
        self._reports: dict[str, tuple[ModelReport, ...]] = {}
        self._announced: dict[str, Announced] = {}
        self._config = config
        self._keys: tuple[str, ...] | None = None
        self._refusing: dict[str, str] = {}
        self._renew_at_s = clock.monotonic_s()
        self._refused_at_s: dict[str, float] = {}
        self._pieces = self._reports_heard = self._deferred = self._litter = 0
        self._expires_in_s = 0.0
        self._warnings: tuple[str, ...] = ()
        self._budget = Shares(_PIECE_SHARE)
        self._unread: dict[str, bytes] = {}  # each device's newest report that came too soon after another
        self._read_s: dict[str, float] = {}
        self._logged = LogLimit()
        filters = (self._topics.model_get_filter(), self._topics.reported_filter())
        # A name of its own: two servers that know nothing of each other would take turns in ending the other's connection.
        client_id = f"catchment-models-{os.getpid()}-{os.urandom(3).hex()}"
        self._link = BrokerLink(config.broker, client_id, filters, self._on_message, clock, filters[:1])
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

    def health(self) -> ProcessHealth:
        """Say what keeps it from serving, for the heartbeat. From any thread."""
        trouble = self._link.refusals.trouble or self._probe.trouble
        if not self._link.is_ready:
            trouble = "no connection to the broker"
        counters = {
            "pieces": self._pieces,
            "reports_heard": self._reports_heard,
            "deferred_requests": self._deferred,
            "litter": self._litter,
            "refused_messages": self._link.refusals.count,
            "devices": len(self._reports),
            "repository_expires_in_s": self._expires_in_s,
        }
        return ProcessHealth(not trouble, trouble, counters, self._warnings)

    def _note_answer(self, device: str, code: int) -> None:
        """Remember a refused order: the device does not know what it should run, so it is sent again."""
        if is_refusal(code):
            with self._lock:
                self._refused_at_s[device] = self._clock.monotonic_s()

    def _on_message(self, message: MQTTMessage) -> None:
        try:
            address = self._topics.parse(message.topic)
            if address.kind is Kind.MODEL_GET:
                self._take_request(address.device, message)
            elif address.kind is Kind.REPORTED:
                self._remember(address.device, bytes(message.payload))
        except SchemaError as error:
            self._warn(self._topics.sender_of(message.topic), "message_refused", str(error))

    def _warn(self, device: str, event: str, reason: str) -> None:
        """Log what a device can cause, once a minute for each."""
        left_out = self._logged.due((device[:80], event), self._clock.monotonic_s())
        if left_out is not None:
            log.warning(event, device=device[:80], reason=reason, more=left_out)

    def _take_request(self, device: DeviceId, message: MQTTMessage) -> None:
        """Answer within the device's share; what it retained is taken back at the broker."""
        if message.retain and message.payload:
            self._litter += 1
            self._link.probe(message.topic, b"", reply_properties(b"", []), retain=True)
        if not message.payload:
            return
        if not self._budget.admit(device, "", _PIECE_BYTES, self._clock.monotonic_s()):
            self._deferred += 1
            self._warn(device, "piece_requests_over_share", "it is answered no faster; it asks again")
            return
        self._answer(device, message)

    def _answer(self, device: DeviceId, message: MQTTMessage) -> None:
        correlation = getattr(message.properties, "CorrelationData", None)
        if not isinstance(correlation, bytes) or len(correlation) > 256:
            self._warn(device, "piece_request_refused", "it has no correlation data, or too much")
            return
        if self._probe.is_ours(device, correlation):
            return
        self._pieces += 1
        found = answer(self._root, bytes(message.payload))
        self._link.publish(
            self._topics.model_data(device), found.body, properties=reply_properties(correlation, found.user_properties)
        )

    def _remember(self, device: DeviceId, body: bytes) -> None:
        """Read a report, or keep it for the next tick: of one device the newest alone, however many it sends."""
        if not body:
            return
        if len(body) > MAX_REPORTED_BYTES:
            self._warn(device, "message_refused", f"report of {len(body)} bytes is above the limit of {MAX_REPORTED_BYTES}")
            return
        self._reports_heard += 1
        now_s = self._clock.monotonic_s()
        with self._lock:
            if now_s - self._read_s.get(device, float("-inf")) < TICK_S:
                self._unread[device] = body
                return
        self._read(device, body, now_s)

    def _read_kept(self) -> None:
        """Read the reports that came too soon after another of their device."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            unread, self._unread = self._unread, {}
        for device, body in unread.items():
            self._read(device, body, now_s)

    def _read(self, device: str, body: bytes, now_s: float) -> None:
        try:
            report = decode_reported(body)
        except SchemaError as error:
            self._warn(device, "message_refused", str(error))
            return
        finally:
            with self._lock:
                self._read_s[device] = now_s
        with self._lock:
            self._reports[device] = report.models
        self._note_refusals(device, report.documents or ())

    def _note_refusals(self, device: str, documents: tuple[DocumentReport, ...]) -> None:
        """Log what a device refuses, once for each reason: nobody else hears of it."""
        reason = "; ".join(f"{each.kind}: {each.reason}" for each in documents if each.reason)
        if reason and self._refusing.get(device) != reason:
            log.warning("device_does_not_follow", device=device, reason=reason)
        self._refusing[device] = reason

    def tick(self) -> None:
        """What is due: fresh signatures, failing rollouts stopped, devices told."""
        self._renew()
        self._forget_refused()
        self._probe.step()
        self._read_kept()
        with self._lock:
            reports = dict(self._reports)
        rollouts = [self._followed(item, reports) for item in self._rollouts.all()]
        self._watch.forget(item.name for item in rollouts if item.state == "running")
        named = {device for item in rollouts for device in item.named()}
        orders = self._open_orders()
        devices = sorted({*reports, *named, *self._announced})
        due = [device for device in devices if self._is_due(device, rollouts, reports.get(device, ()), orders)]
        if due:
            rollouts = self._rollouts.read_for_orders(orders.take_counter)
        for device in due:
            self._order(device, order_for(device, rollouts, reports.get(device, ())), orders)

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

    def _forget_refused(self) -> None:
        """Have orders that the broker refused a while ago sent again."""
        before_s = self._clock.monotonic_s() - _REFUSED_AGAIN_S
        with self._lock:
            due = [device for device, at_s in self._refused_at_s.items() if at_s <= before_s]
            for device in due:
                del self._refused_at_s[device]
                self._announced.pop(device, None)

    def _renew(self) -> None:
        if self._clock.monotonic_s() < self._renew_at_s:
            return
        self._renew_at_s = self._clock.monotonic_s() + _RENEW_EVERY_S
        try:
            self._note_expiries()
            if self._repository.renew(when_within=RENEW_WITHIN):
                log.info("repository_signed", expires=self._repository.timestamp_expires().isoformat())
        except NotFoundError:
            log.info("model_repository_missing", hint="make one with: catchment model init")
        except (RefusedError, ConflictError) as error:
            log.error("repository_not_signed", hint="devices stop taking models when it expires", error=str(error))  # noqa: TRY400

    def _note_expiries(self) -> None:
        """Warn of signatures that somebody must make again, from when a third of their life is left; what is over, at once."""
        now = self._repository.files.now()
        theirs = [each for each in self._repository.expiries() if each.role not in {"snapshot", "timestamp"}]
        self._expires_in_s = min(each.left(now).total_seconds() for each in theirs)
        warnings = expiry_warnings(theirs, now)
        if warnings != self._warnings:
            for text in warnings:
                log.warning("repository_expires_soon", reason=text)
        self._warnings = warnings

    def _followed(self, rollout: Rollout, reports: dict[str, tuple[ModelReport, ...]]) -> Rollout:
        """The rollout after what its devices report: halted, with its next wave, or as it is."""
        if rollout.state != "running":
            return rollout
        if not rollout.waves:
            found = progress(rollout, reports)
            reason = f"{len(found.failed)} of {found.answers} devices failed"
            return self._halted(rollout, reason) if found.should_halt(rollout) else rollout
        decision = GateDecision("widen", "the first device reported")
        if rollout.opened_ms:
            judged = read_judged(self._root / "rollouts", rollout.name)
            decision, _ = self._watch.decide(rollout, reports, judged, self._clock.now_ms())
        if decision.action == "halt":
            return self._halted(rollout, decision.reason)
        if decision.action == "widen" and not rollout.is_paused:
            return self._widened(rollout, reports)
        return rollout

    def _halted(self, rollout: Rollout, reason: str) -> Rollout:
        halted = self._rollouts.halt(rollout.name, reason)
        log.error("rollout_halted", rollout=rollout.name, reason=reason)
        return halted

    def _widened(self, rollout: Rollout, reports: dict[str, tuple[ModelReport, ...]]) -> Rollout:
        """With its next wave, unless somebody changed it meanwhile: that is decided about in the next round."""
        wider = rollout.opened(reports, self._clock.now_ms())
        if wider == rollout:
            return rollout
        stored = self._rollouts.change(rollout.name, lambda now: wider if now == rollout else now)
        log.info("rollout_wave_opened", rollout=rollout.name, devices=len(stored.among(reports)))
        return stored

    def _is_due(self, device: str, rollouts: list[Rollout], models: tuple[ModelReport, ...], orders: DesiredOrders) -> bool:
        """Whether a device must be ordered something, as far as is known without the lock of the rollouts."""
        wanted, announced = order_for(device, rollouts, models), self._announced.get(device)
        if announced is None:
            # Nobody knows what the broker holds for it: an order of a halted rollout, perhaps, from before this start.
            return any(each.covers(device) for each in rollouts)
        return wanted != announced.rollout or (wanted is not None and self._is_stale(announced, orders))

    def _order(self, device: str, wanted: Rollout | None, orders: DesiredOrders) -> None:
        body = orders.message(device, None if wanted is None else wanted.desired)
        self._link.publish(
            self._topics.desired(DeviceId(device)),
            body,
            retain=True,
            properties=expiring(orders.expiry_s),
            on_answer=partial(self._note_answer, device),
        )
        self._announced[device] = Announced(wanted, orders.public_keys, self._clock.now_ms())
        log.info("desired_state_published", device=device, rollout=None if wanted is None else wanted.name)

    def _is_stale(self, announced: Announced, orders: DesiredOrders) -> bool:
        """Whether what a device was told must be signed again: by other keys, or before it expires."""
        if announced.keys != orders.public_keys:
            return True
        return bool(announced.keys) and self._clock.now_ms() - announced.at_ms >= orders.renew_after_ms


def serve(config: CoreConfig, stop: threading.Event, clock: Clock | None = None) -> None:
    """Serve until `stop` is set. Errors that pass by themselves are logged and waited out.

    A second server of the same lake waits, and takes over when the first one ends.

    Raises:
        RetryLaterError: the broker cannot be reached at the start.
        ConfigError: it refuses a subscription, or a TLS file is not what it should be.
    """
    clock = clock or SystemClock()
    is_waiting = False
    while not stop.is_set():
        with held_alone(models_folder(config) / _LEASE) as is_ours:
            if is_ours:
                _serve(config, stop, clock)
                return
        if not is_waiting:
            log.warning("model_server_waits", reason="another one serves this lake; this one takes over when it ends")
            is_waiting = True
        stop.wait(TICK_S)


def _serve(config: CoreConfig, stop: threading.Event, clock: Clock) -> None:
    lake = lake_of(config)
    with starting(lake.root, "models", "server", clock):
        server = ModelServer(config, clock)
        server.open()
    log.info("model_server_ready", broker=f"{config.broker.host}:{config.broker.port}")
    try:
        with Heartbeats(lake, "models", "server", clock, server.health):
            while not stop.is_set():
                try:
                    server.tick()
                except (PipelineError, OSError) as error:
                    log.exception("model_server_round_failed", error=str(error))
                stop.wait(TICK_S)
    finally:
        server.close()


@dataclass(frozen=True, slots=True)
class PieceAnswer:
    """A piece's bytes, the whole file's size, and how it went."""

    status: str
    total: int = 0
    body: bytes = b""

    @property
    def user_properties(self) -> list[tuple[str, str]]:
        """What travels next to the bytes."""
        return [(STATUS_PROPERTY, self.status), (TOTAL_PROPERTY, str(self.total))]


def answer(root: Path, request_body: bytes) -> PieceAnswer:
    """The piece asked for, out of the repository below `root`."""
    try:
        request = decode_piece_request(request_body)
    except SchemaError as error:
        log.warning("piece_request_refused", error=str(error))
        return PieceAnswer(STATUS_REFUSED)
    path = (root / request.path).resolve()
    if not path.is_relative_to(root.resolve()):
        # The grammar of names lets none out; a link inside the repository could.
        log.warning("piece_request_outside_repository", path=request.path)
        return PieceAnswer(STATUS_REFUSED)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return PieceAnswer(STATUS_MISSING)  # TUF asks for the next root until there is none: no news
    try:
        total = os.fstat(descriptor).st_size
        return PieceAnswer(STATUS_OK, total, os.pread(descriptor, request.length, request.offset))
    except OSError as error:
        log.exception("repository_file_unreadable", path=request.path, error=str(error))
        return PieceAnswer(STATUS_MISSING)
    finally:
        os.close(descriptor)
