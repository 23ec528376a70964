"""Receive receipts, object states, desired models and their pieces. Nothing is trusted before it is decoded."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from edge_agent.spool.spool import Spool
from edge_agent.uplink.parts import PartSender
from edge_agent.uplink.session import MessageArrived
from schemas.errors import SchemaError
from schemas.ids import DeviceId
from schemas.receipts import ShareNotice, decode_object_state, decode_receipt, decode_share_notice
from schemas.reported import ModelReport
from schemas.topics import Topics

_MAX_REMEMBERED = 10_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A message to the model server.

    Attributes:
        correlation: MQTT correlation data, which the answer repeats.
        body: an encoded `schemas.rollout.PieceRequest`.
    """

    correlation: bytes
    body: bytes


class ModelMessages(Protocol):
    """The calls that the uplink makes to the model updater."""

    def on_desired(self, body: bytes) -> None:
        """Take in a desired state from the core."""
        ...

    def on_piece(self, correlation: bytes, properties: list[tuple[str, str]], body: bytes) -> None:
        """Take in a piece of a repository file."""
        ...

    def report(self) -> tuple[ModelReport, ...]:
        """Report the models that run on this device."""
        ...


class Downlink:
    """Gives each message that comes down to whom it concerns.

    Args:
        spool: settles receipts.
        parts: waits for object states.
        models: the models' room, None without `[model]`.
        topics: of the namespace.
        device: this device.
    """

    def __init__(self, spool: Spool, parts: PartSender, models: ModelMessages | None, topics: Topics, device: DeviceId) -> None:
        self._spool = spool
        self._parts = parts
        self._models = models
        self._receipts = topics.receipts(device)
        self._pages = f"{self._receipts}/"
        self._objects = topics.objects(device)
        self._desired = topics.desired(device)
        self._pieces = topics.model_data(device)
        self._policy = topics.policy(device)
        self._share = topics.share(device)
        self._on_share: Callable[[ShareNotice], None] = lambda _notice: None
        self._on_policy: Callable[[bytes], None] | None = None
        # Topic -> digest of the receipt, or page of it, that was last acted on.
        self._last_receipts: dict[str, bytes] = {}
        self.refused_count = 0

    def hand_policies_to(self, taker: Callable[[bytes], None]) -> None:
        """Give edge policies to the rules' room."""
        self._on_policy = taker

    def hand_shares_to(self, taker: Callable[[ShareNotice], None]) -> None:
        """Give notices that this device sends more than its share to the sender."""
        self._on_share = taker

    def handle(self, message: MessageArrived) -> bool:
        """Act on a message; a malformed one is logged and counted. Returns whether it was a receipt that says something new.

        Raises:
            SpoolError: the spool is broken.
        """
        try:
            if message.topic == self._receipts or message.topic.startswith(self._pages):
                return self._settle(message.topic, message.body)
            if message.topic == self._objects:
                self._parts.heard(decode_object_state(message.body))
            elif message.topic == self._share:
                self._on_share(decode_share_notice(message.body))
            elif message.topic == self._policy and self._on_policy is not None:
                self._on_policy(message.body)
            elif message.topic == self._desired and self._models is not None:
                self._models.on_desired(message.body)
            elif message.topic == self._pieces and self._models is not None:
                self._models.on_piece(message.correlation, list(message.properties), message.body)
            else:
                log.debug("core_message_of_other_agent", topic=message.topic)
        except SchemaError as error:
            self.refused_count += 1
            log.warning("core_message_malformed", topic=message.topic, error=str(error))
        return False

    def _settle(self, topic: str, body: bytes) -> bool:
        """Settle by a receipt, or by a page of one: each is true without the others. An empty page is one no longer needed."""
        digest = hashlib.sha256(body).digest()
        if not body or digest == self._last_receipts.get(topic):
            return False
        # Only what was decoded and handed over counts as known; the same receipt again then costs nothing.
        self._spool.settle(decode_receipt(body))
        if len(self._last_receipts) >= _MAX_REMEMBERED:
            self._last_receipts.clear()
        self._last_receipts[topic] = digest
        return True
