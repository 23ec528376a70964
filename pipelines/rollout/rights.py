"""Does the broker deliver piece requests to this role? Asked by sending one: a SUBACK says yes where nothing ever comes.

A broker's access rules may grant a subscription and then deliver nothing of it (Mosquitto does). Every client may ask for
pieces in its own name, so the model server asks in the name of its own certificate, and must hear itself.
"""

import os
from pathlib import Path

import structlog

from catchment.runtime.clock import Clock
from pipelines.config import BrokerConfig
from pipelines.rollout.connection import BrokerLink, reply_properties
from schemas.errors import IdError
from schemas.ids import DeviceId
from schemas.rollout import PieceRequest, encode_piece_request
from schemas.topics import Topics

_WITHIN_S = 10.0
_REQUEST = encode_piece_request(PieceRequest("metadata/timestamp.json", 0, 1))

log = structlog.get_logger(__name__)


class RightsProbe:
    """Sends a request to itself after each connection.

    Args:
        broker: whose certificate names this role.
        topics: of the namespace.
        link: the model server's connection.
        clock: for how long to wait.
    """

    def __init__(self, broker: BrokerConfig, topics: Topics, link: BrokerLink, clock: Clock) -> None:
        self._role = _common_name(broker)
        self._topics = topics
        self._link = link
        self._clock = clock
        self._mark = b"probe-" + os.urandom(8).hex().encode()
        self._probed_connection = 0
        self._sent_s = 0.0
        self._is_heard = True
        self._is_logged = False

    @property
    def trouble(self) -> str:
        """Why no device can be served; empty if nothing says so."""
        if self._is_heard or self._clock.monotonic_s() - self._sent_s < _WITHIN_S:
            return ""
        return (
            f"the broker delivers no requests of devices to the role {str(self._role)!r}: give the model server a certificate"
            " named `models`, or let this role read models/get/+ (deploy/broker/acl)"
        )

    def step(self) -> None:
        """Send a request after a new connection, and log one that did not come back."""
        if self._role is None or not self._link.is_ready:
            return
        if self._probed_connection != self._link.connections:
            self._probed_connection = self._link.connections
            self._is_heard, self._is_logged, self._sent_s = False, False, self._clock.monotonic_s()
            self._link.probe(self._topics.model_get(self._role), _REQUEST, reply_properties(self._mark, []))
        elif self.trouble and not self._is_logged:
            self._is_logged = True
            log.error("piece_requests_not_delivered", reason=self.trouble)

    def is_ours(self, device: DeviceId, correlation: bytes) -> bool:
        """Whether a request is the one this process sent to itself."""
        if device != self._role or correlation != self._mark:
            return False
        self._is_heard = True
        return True


def _common_name(broker: BrokerConfig) -> DeviceId | None:
    """The name the broker knows this role by; None where it cannot be known."""
    if broker.tls is None:
        return None
    from cryptography import x509  # noqa: PLC0415  # with TLS only
    from cryptography.x509.oid import NameOID  # noqa: PLC0415  # likewise

    try:
        subject = x509.load_pem_x509_certificate(Path(broker.tls.cert).read_bytes()).subject
        return DeviceId(str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))
    except (OSError, ValueError, IndexError, IdError) as error:
        log.warning("certificate_name_unknown", path=broker.tls.cert, error=str(error))
        return None
