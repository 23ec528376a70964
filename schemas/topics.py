"""The topic grammar: the only place where a topic is built or taken apart.

<ns>/up/<device>/<stream>        envelopes: samples of one stream              device -> core
<ns>/parts/<device>/<sha256>     parts of a large payload, and queries for it  device -> core
<ns>/reported/<device>           the device's books and running model (kept)   device -> core
<ns>/models/get/<device>         request for a piece of a TUF file             device -> core
<ns>/down/<device>/receipts      settled ranges (retained)                     core -> device
<ns>/down/<device>/receipts/<n>  their further pages, n from 1 (retained)      core -> device
<ns>/down/<device>/desired       desired model (retained)                      core -> device
<ns>/down/<device>/policy        edge rules (retained)                         core -> device
<ns>/down/<device>/objects       which parts of a large payload are durable    core -> device
<ns>/down/<device>/share         the device sends more than its share          core -> device
<ns>/models/data/<device>        the piece asked for                           core -> device
<ns>/bridges/<bridge>            which process is this bridge (retained)       core -> core
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from schemas.errors import IdError, TopicError
from schemas.ids import DeviceId, Digest, StreamName

DEFAULT_NAMESPACE = "catchment"
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64}){0,3}")


class Kind(StrEnum):
    """Kinds of messages to the core."""

    UP = "up"
    PARTS = "parts"
    REPORTED = "reported"
    MODEL_GET = "models/get"


@dataclass(frozen=True, slots=True)
class Address:
    """An upward topic, taken apart: who sends what. `stream` only with UP, `digest` only with PARTS."""

    kind: Kind
    device: DeviceId
    stream: StreamName | None = None
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Topics:
    """Builds and parses every topic of one namespace.

    Raises:
        TopicError: the namespace has other characters than letters, digits, ``_``, ``-`` and up to three ``/``.
    """

    namespace: str = DEFAULT_NAMESPACE

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise TopicError(f"namespace {self.namespace[:80]!r} must be words of letters, digits, '_' and '-' joined by '/'")

    def up(self, device: DeviceId, stream: StreamName) -> str:
        """Topic of the envelopes of a stream, published by its device."""
        return f"{self.namespace}/up/{device}/{stream}"

    def parts(self, device: DeviceId, digest: Digest) -> str:
        """Topic of the parts of the payload with this digest, published by the device."""
        return f"{self.namespace}/parts/{device}/{digest}"

    def reported(self, device: DeviceId) -> str:
        """Topic of a device's books."""
        return f"{self.namespace}/reported/{device}"

    def receipts(self, device: DeviceId) -> str:
        """Topic of a device's receipts."""
        return f"{self.namespace}/down/{device}/receipts"

    def receipt_page(self, device: DeviceId, page: int) -> str:
        """Topic of page `page` of a receipt that is too large for one message; page 0 is the receipt itself."""
        return f"{self.receipts(device)}/{page}" if page else self.receipts(device)

    def receipt_page_filter(self, device: DeviceId) -> str:
        """The filter that matches all further pages of a device's receipt."""
        return f"{self.receipts(device)}/+"

    def desired(self, device: DeviceId) -> str:
        """Topic of the model that a device should run."""
        return f"{self.namespace}/down/{device}/desired"

    def policy(self, device: DeviceId) -> str:
        """Topic of a device's edge rules."""
        return f"{self.namespace}/down/{device}/policy"

    def objects(self, device: DeviceId) -> str:
        """Topic of the durable ranges of a device's large payloads."""
        return f"{self.namespace}/down/{device}/objects"

    def share(self, device: DeviceId) -> str:
        """Topic of notices that a device sends more than its share."""
        return f"{self.namespace}/down/{device}/share"

    def down_filter(self, device: DeviceId) -> str:
        """The filter that matches all a device hears, except model pieces and further pages of its receipt."""
        return f"{self.namespace}/down/{device}/+"

    def model_get(self, device: DeviceId) -> str:
        """Topic of a device's requests for pieces of a TUF file."""
        return f"{self.namespace}/models/get/{device}"

    def model_data(self, device: DeviceId) -> str:
        """Topic of the pieces that a device requested."""
        return f"{self.namespace}/models/data/{device}"

    def bridge_filters(self) -> tuple[str, ...]:
        """Subscriptions of a bridge: everything that must become durable."""
        return (f"{self.namespace}/up/+/+", f"{self.namespace}/parts/+/+", f"{self.namespace}/reported/+")

    def reported_filter(self) -> str:
        """The filter that matches every device's report."""
        return f"{self.namespace}/reported/+"

    def bridge_instance(self, bridge: DeviceId) -> str:
        """Topic on which a bridge's process claims its id; an older process with the same id hears it and stops."""
        return f"{self.namespace}/bridges/{bridge}"

    def model_get_filter(self) -> str:
        """Subscription of the model server."""
        return f"{self.namespace}/models/get/+"

    def rule_of(self, topic: str) -> str:
        """The topic with `+` in place of the device: the access rule that grants it, and a label of few values."""
        words = topic.removeprefix(f"{self.namespace}/").split("/")
        place = 2 if words[0] == "models" else 1
        if words[0] != "bridges" and len(words) > place:
            words[place] = "+"
        if words[0] in ("up", "parts"):
            words[2:] = ["+"]
        return "/".join((self.namespace, *words))

    def sender_of(self, topic: str) -> str:
        """The device word of an upward topic, whether or not the rest of it is well formed; empty if it has none."""
        words = topic.removeprefix(f"{self.namespace}/").split("/", 3)
        place = 2 if words[0] == "models" else 1
        return words[place] if len(words) > place else ""

    def parse(self, topic: str) -> Address:
        """Take an upward topic apart.

        Raises:
            TopicError: not an upward topic of this namespace, or an id in it is not of its form.
        """
        prefix = f"{self.namespace}/"
        if not topic.startswith(prefix):
            raise TopicError(f"topic {topic[:120]!r} is not below {prefix!r}")
        try:
            match topic[len(prefix) :].split("/"):
                case ["up", device, stream]:
                    return Address(Kind.UP, DeviceId(device), stream=StreamName(stream))
                case ["parts", device, digest]:
                    return Address(Kind.PARTS, DeviceId(device), digest=Digest(digest))
                case ["reported", device]:
                    return Address(Kind.REPORTED, DeviceId(device))
                case ["models", "get", device]:
                    return Address(Kind.MODEL_GET, DeviceId(device))
        except IdError as error:
            raise TopicError(f"topic {topic[:120]!r}: {error}") from error
        raise TopicError(f"topic {topic[:120]!r} is none of up/<device>/<stream>, parts/<device>/<sha256>, reported/<device>")
