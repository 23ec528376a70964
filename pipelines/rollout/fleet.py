"""The devices as the broker knows them: what they last reported, and what they are told."""

import time
from collections.abc import Iterable, Mapping
from functools import partial

import structlog
from paho.mqtt.client import MQTTMessage

from pipelines.config import CoreConfig
from pipelines.director import DesiredOrders
from pipelines.refusals import refusal_error
from pipelines.rollout.connection import BrokerLink, expiring
from pipelines.rollout.keys import models_folder
from pipelines.rollout.rollouts import Rollout, RolloutStore, order_for
from schemas.errors import SchemaError
from schemas.ids import DeviceId
from schemas.reason_codes import is_refusal
from schemas.reported import ModelReport, decode_reported
from schemas.topics import Topics

_QUIET_S, _LONGEST_S = 0.4, 5.0

log = structlog.get_logger(__name__)


def reported_models(config: CoreConfig, quiet_s: float = _QUIET_S) -> dict[str, tuple[ModelReport, ...]]:
    """What every device last reported of its models, from the broker's retained messages.

    Raises:
        RetryLaterError: the broker cannot be reached.
        ConfigError: it refuses the subscription.
    """
    topics = Topics(config.broker.namespace)
    reports: dict[str, tuple[ModelReport, ...]] = {}
    last = [time.monotonic()]

    def take(message: MQTTMessage) -> None:
        last[0] = time.monotonic()
        try:
            reports[topics.parse(message.topic).device] = decode_reported(bytes(message.payload)).models
        except SchemaError:
            log.warning("report_unreadable", topic=message.topic[:200])

    link = BrokerLink(config.broker, "", (topics.reported_filter(),), take)
    link.open()
    try:
        began = last[0] = time.monotonic()
        # Retained messages come in one burst after the subscription: silence means that was all.
        while time.monotonic() - last[0] < quiet_s and time.monotonic() - began < _LONGEST_S:
            time.sleep(0.02)
    finally:
        link.close()
    return dict(reports)


def publish_orders(
    config: CoreConfig, rollout: Rollout, reports: Mapping[str, tuple[ModelReport, ...]], orders: DesiredOrders
) -> list[str]:
    """Order a rollout's devices what they are to run now: those that have reported, and those named in full.

    Devices that report later are ordered it by the model server.

    Args:
        config: names the broker and the lake.
        rollout: whose devices are ordered something; what, all rollouts together decide.
        reports: what devices last reported.
        orders: signs it for each of them.

    Raises:
        RetryLaterError: the broker cannot be reached or does not acknowledge; the rollout's document stands, the server goes on.
        ConfigError: the broker refuses the messages.
    """
    devices = sorted({*rollout.among(reports), *rollout.named()})
    topics = Topics(config.broker.namespace)
    codes: dict[str, int] = {}
    link = BrokerLink(config.broker, "", (), lambda _message: None)
    link.open()
    try:
        messages = sign_orders(devices, reports, RolloutStore(models_folder(config) / "rollouts"), orders)
        infos = [
            link.publish(
                topic, body, retain=True, properties=expiring(orders.expiry_s), on_answer=partial(codes.__setitem__, topic)
            )
            for topic, body in ((topics.desired(DeviceId(device)), body) for device, body in messages.items())
        ]
        link.wait_published(infos, _LONGEST_S)
    finally:
        link.close()
    for topic, code in codes.items():
        if is_refusal(code):
            raise refusal_error(topic, code)
    return devices


def sign_orders(
    devices: Iterable[str], reports: Mapping[str, tuple[ModelReport, ...]], store: RolloutStore, orders: DesiredOrders
) -> dict[str, bytes]:
    """The messages that say what devices are to run, by all rollouts as they stand now."""
    rollouts = store.read_for_orders(orders.take_counter)
    wanted = {device: order_for(device, rollouts, reports.get(device, ())) for device in devices}
    return {device: orders.message(device, None if each is None else each.desired) for device, each in wanted.items()}
