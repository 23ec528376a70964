"""Which version the core wants here now, by the newest order that this device may follow.

Orders are signed where this device trusts a director key, unsigned where it was never given one. An order that came down takes
effect before the next switch, whatever is under way.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

import structlog

from catchment.runtime.clock import Clock
from edge_agent.clock_quality import EARLIEST_MS
from edge_agent.config import AgentConfig
from edge_agent.documents.gate import AdmittedDocument, CounterFile, DocumentGate, DocumentInbox
from edge_agent.documents.trust import director_trust
from edge_agent.errors import ModelError, ModelNotWantedError
from schemas.errors import SchemaError
from schemas.rollout import MAX_DESIRED_BYTES, Desired, DesiredModels, decode_desired
from schemas.signed_document import DocumentKind

log = structlog.get_logger(__name__)


def open_orders(config: AgentConfig, clock: Clock) -> DocumentInbox[DesiredModels] | None:
    """Build what admits signed desired states; None without `[director]`: then unsigned ones are followed, for this release."""
    trust = director_trust(config)
    if trust is None:
        action = "add the [director] table that `catchment director show` prints; the next release follows signed orders alone"
        log.warning("desired_state_unsigned", action=action)
        return None
    counter = CounterFile(config.state_dir, DocumentKind.DESIRED, trust.keys)
    gate = DocumentGate(DocumentKind.DESIRED, DesiredModels, trust, counter, clock, MAX_DESIRED_BYTES)
    return DocumentInbox(DocumentKind.DESIRED, gate, counter, clock, MAX_DESIRED_BYTES)


_MAX_ROUNDS = 5


class Orders(Protocol):
    """Admits signed desired states."""

    def hand_in(self, body: bytes) -> None:
        """Take a message in."""
        ...

    @property
    def is_due(self) -> bool:
        """Whether a message has come that is to be decided about now."""
        ...

    def take_admitted(self) -> AdmittedDocument[DesiredModels] | None:
        """Decide about the messages that have come; the order to follow from now on, if there is a new one."""
        ...


class WantedModel:
    """The newest order for one model. Any thread may call.

    Args:
        name: the model's.
        orders: admits signed desired states; None: unsigned ones are followed.
        clock: for when an order expires.
        on_change: called when another version, or none, is wanted.
    """

    def __init__(self, name: str, orders: Orders | None, clock: Clock, on_change: Callable[[], None]) -> None:
        self._name = name
        self._orders = orders
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.RLock()
        self._judging = threading.Lock()
        self._desired: Desired | None = None
        self._expires_ms: int | None = None

    def receive(self, body: bytes) -> bool:
        """Take in an order as it came; whether it has been decided about already.

        Signed ones are decided about within a second on the models' own thread: one signature check at a time, however
        many come.
        """
        with self._lock:  # not in the middle of a switch
            if self._orders is not None:
                self._orders.hand_in(body)
                return False
            if not body:
                self._set(None, None)
                return True
            try:
                desired = decode_desired(body)
            except SchemaError as error:
                log.warning("desired_state_refused", error=str(error))
                return False
            if desired.name != self._name:
                log.info("desired_state_of_other_model", model=desired.name, ours=self._name)
                return False
            self._set(desired, None)
            return True

    def decide(self) -> None:
        """Decide about the newest signed order, if one has come."""
        if self._orders is None:
            return
        with self._judging:
            admitted = self._orders.take_admitted()
            if admitted is not None:
                self._set(admitted.body.of(self._name), admitted.document.expires_ms)

    def _set(self, desired: Desired | None, expires_ms: int | None) -> None:
        with self._lock:
            has_changed = desired != self._desired
            self._desired, self._expires_ms = desired, expires_ms
        if has_changed:
            self._on_change()

    @property
    def ordered(self) -> Desired | None:
        """What the newest order wants, expired or not."""
        return self._desired

    @property
    def current(self) -> Desired | None:
        """What may be installed now; None: nothing."""
        with self._lock:
            return None if self._is_expired() else self._desired

    @property
    def trouble(self) -> str:
        """Why what is ordered may not be installed."""
        with self._lock:
            if self._desired is None or not self._is_expired():
                return ""
            until = datetime.fromtimestamp((self._expires_ms or 0) / 1000, tz=UTC).isoformat(timespec="seconds")
            return f"clock: the order expired at {until} by this device's clock; waiting for a newer one"

    def _is_expired(self) -> bool:
        """Whether the order is too old to begin with; a clock that was never set says nothing of that."""
        now_ms = self._clock.now_ms()
        return self._expires_ms is not None and now_ms >= EARLIEST_MS and now_ms >= self._expires_ms

    @contextmanager
    def holding(self, desired: Desired) -> Iterator[None]:
        """Keep out newer orders while a version is switched to. Those that came before are decided about first.

        Raises:
            ModelNotWantedError: another version, or none, is wanted by now.
            ModelError: orders come faster than they can be decided about.
        """
        for _ in range(_MAX_ROUNDS):
            self.decide()
            with self._lock:
                if self._orders is not None and self._orders.is_due:
                    continue
                if self.current != desired:
                    raise ModelNotWantedError(f"version {desired.version} is not wanted any more")
                yield
                return
        raise ModelError("orders come faster than they can be checked")
