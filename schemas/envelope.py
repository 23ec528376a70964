"""The envelope: a batch of samples of one stream, as one MQTT 5 message.

The body is one Arrow IPC stream (schema + one record batch) or, from devices without our agent, JSON (one object or a
list of objects). What the core must know before it trusts the body travels as user properties that follow the
CloudEvents MQTT binding (CloudEvents 1.0, MQTT binding 3.1): see docs/wire.md, which spells out every byte.

Standard columns of an Arrow body, next to the contract's own:

    event_time       timestamp[us, UTC], required: when the device observed the sample
    payload          binary: the bytes themselves, or null when they travel as parts
    payload_sha256   string: SHA-256 of the payload as 64 hexadecimal digits; set for every payload
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from schemas.errors import EnvelopeError
from schemas.ids import MAX_EPOCH, MAX_SEQ, DeviceId, StreamName

ARROW_STREAM = "application/vnd.apache.arrow.stream"
JSON = "application/json"
CONTENT_TYPES = (ARROW_STREAM, JSON)
EVENT_TYPE = "dev.catchment.samples.v1"
DATASCHEMA_PREFIX = "urn:catchment:contract:"
ZSTD = "zstd"

EVENT_TIME = "event_time"
PAYLOAD = "payload"
PAYLOAD_SHA256 = "payload_sha256"

MAX_SAMPLES_PER_ENVELOPE = 1_000_000
MAX_PROPERTY_CHARS = 1_024

Properties = list[tuple[str, str]]

_OURS = frozenset({
    "specversion", "id", "source", "type", "time", "dataschema", "epoch", "firstseq", "samplecount", "contentencoding",
    "clockboot", "clockshift",
})  # fmt: skip
_BOOT = re.compile(r"[0-9A-Za-z-]{1,64}")
_SHIFT = re.compile(r"-?[0-9]{1,19}")
MAX_CLOCK_SHIFT_US = 200 * 366 * 86_400 * 1_000_000
_LEAP_SECOND = re.compile(r"(.{10}[Tt ]\d\d:\d\d:)60(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Span:
    """The samples of an envelope: `count` consecutive seqs of one epoch, from `first_seq` on.

    Raises:
        EnvelopeError: a number is negative, too large, or the count is above `MAX_SAMPLES_PER_ENVELOPE`.
    """

    epoch: int
    first_seq: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.epoch <= MAX_EPOCH:
            raise EnvelopeError(f"epoch {self.epoch} must be within 0 and 2^63-1")
        if not 1 <= self.count <= MAX_SAMPLES_PER_ENVELOPE:
            raise EnvelopeError(f"samplecount {self.count} must be within 1 and {MAX_SAMPLES_PER_ENVELOPE}")
        if not 0 <= self.first_seq <= MAX_SEQ - self.count:
            raise EnvelopeError(f"firstseq {self.first_seq} must be within 0 and 2^63-1 minus the count")

    @property
    def end_seq(self) -> int:
        """The seq after the last."""
        return self.first_seq + self.count


@dataclass(frozen=True, slots=True)
class EnvelopeHead:
    """All that is known of an envelope without opening its body.

    `span` is None for a JSON body from a device that numbers nothing; the bridge then numbers it as it lands.
    `contract_version` is None when the sender names none; the newest version then applies. `clock_boot` is set where the
    event times were read from a clock that was not set: the id of the boot they were read in. `clock_shift_us` is then what
    to add to each of them, None where the clock of that boot was never seen set.
    """

    device: DeviceId
    stream: StreamName
    content_type: str
    span: Span | None
    contract_version: str | None = None
    encoding: str = ""
    created_us: int | None = None
    clock_boot: str | None = None
    clock_shift_us: int | None = None

    def to_properties(self) -> Properties:
        """The user properties to publish next to the body."""
        properties: Properties = [("specversion", "1.0"), ("source", f"/devices/{self.device}"), ("type", EVENT_TYPE)]
        if self.span is not None:
            properties += [
                ("id", f"{self.stream}/{self.span.epoch}/{self.span.first_seq}"),
                ("epoch", str(self.span.epoch)),
                ("firstseq", str(self.span.first_seq)),
                ("samplecount", str(self.span.count)),
            ]
        if self.created_us is not None:
            properties.append(("time", format_time(self.created_us)))
        if self.contract_version is not None:
            properties.append(("dataschema", f"{DATASCHEMA_PREFIX}{self.stream}:{self.contract_version}"))
        if self.clock_boot is not None:
            properties.append(("clockboot", self.clock_boot))
        if self.clock_shift_us is not None:
            properties.append(("clockshift", str(self.clock_shift_us)))
        if self.encoding:
            properties.append(("contentencoding", self.encoding))
        return properties


def read_head(
    device: DeviceId, stream: StreamName, content_type: str | None, properties: Iterable[tuple[str, str]]
) -> EnvelopeHead:
    """Read what a message says of itself. Unknown properties are ignored, ours must be well formed.

    Raises:
        EnvelopeError: a property is missing, repeated, malformed, too long, or contradicts the topic.
    """
    known = _unique(properties)
    # Media types have no case, and HTTP-minded clients add a charset: neither changes what the body is.
    media = (content_type or JSON).partition(";")[0].strip().lower()
    if media not in CONTENT_TYPES:
        raise EnvelopeError(f"content type {(content_type or '')[:80]!r} must be one of {', '.join(CONTENT_TYPES)}")
    source = known.get("source")
    if source is not None and source != f"/devices/{device}":
        raise EnvelopeError(f"source {source!r} contradicts the topic's device {device!r}")
    encoding = known.get("contentencoding", "")
    if encoding not in ("", ZSTD):
        raise EnvelopeError(f"contentencoding {encoding!r} must be absent or {ZSTD!r}")
    span = _span(known)
    if span is None and media == ARROW_STREAM:
        raise EnvelopeError("an Arrow body needs the properties epoch, firstseq and samplecount")
    time = known.get("time")
    return EnvelopeHead(
        device=device,
        stream=stream,
        content_type=media,
        span=span,
        contract_version=_contract_version(stream, known.get("dataschema")),
        encoding=encoding,
        created_us=None if time is None else parse_time(time),
        clock_boot=_clock_boot(known),
        clock_shift_us=parse_clock_shift(known["clockshift"]) if "clockshift" in known else None,
    )


def format_time(micros: int) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")


def parse_time(text: str) -> int:
    """RFC 3339 text with a zone as microseconds since 1970.

    Raises:
        EnvelopeError: not such a text.
    """
    # RFC 3339 lets t and z be small, and a leap second be 60: Python does not. In POSIX time 23:59:60 is the next midnight.
    leap = _LEAP_SECOND.match(text)
    try:
        moment = datetime.fromisoformat((f"{leap[1]}59{leap[2]}" if leap else text).upper())
    except ValueError as error:
        raise EnvelopeError(f"time {text[:80]!r} is not RFC 3339") from error
    if moment.tzinfo is None:
        raise EnvelopeError(f"time {text[:80]!r} names no zone; end it with 'Z' for UTC")
    since = moment - datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=1 if leap else 0)
    return since // timedelta(microseconds=1)


def parse_clock_shift(text: str) -> int:
    """The property `clockshift`: microseconds to add to every event time, up to two hundred years either way.

    Raises:
        EnvelopeError: not such a number.
    """
    if not _SHIFT.fullmatch(text) or abs(int(text)) > MAX_CLOCK_SHIFT_US:
        raise EnvelopeError(f"property clockshift={text[:40]!r} must be whole microseconds, within {MAX_CLOCK_SHIFT_US}")
    return int(text)


def _clock_boot(known: dict[str, str]) -> str | None:
    boot = known.get("clockboot")
    if boot is not None and not _BOOT.fullmatch(boot):
        raise EnvelopeError(f"property clockboot={boot[:80]!r} must be 1 to 64 letters, digits and hyphens")
    if boot is None and "clockshift" in known:
        raise EnvelopeError("property clockshift needs clockboot: the boot whose clock was not set")
    return boot


def _unique(properties: Iterable[tuple[str, str]]) -> dict[str, str]:
    known: dict[str, str] = {}
    for name, value in properties:
        if name not in _OURS:
            continue  # MQTT lets a name stand twice, and gateways add their own
        if name in known:
            raise EnvelopeError(f"property {name[:80]!r} is given twice")
        if len(value) > MAX_PROPERTY_CHARS:
            raise EnvelopeError(f"property {name[:80]!r} is longer than {MAX_PROPERTY_CHARS} characters")
        known[name] = value
    return known


def _span(known: dict[str, str]) -> Span | None:
    names = ("epoch", "firstseq", "samplecount")
    given = [name for name in names if name in known]
    if not given:
        return None
    if len(given) < len(names):
        raise EnvelopeError(f"epoch, firstseq and samplecount go together; only {', '.join(given)} given")
    numbers = []
    for name in names:
        text = known[name]
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise EnvelopeError(f"property {name}={text[:40]!r} must be a decimal number of at most 19 digits")
        numbers.append(int(text))
    return Span(*numbers)


def _contract_version(stream: StreamName, dataschema: str | None) -> str | None:
    if dataschema is None:
        return None
    prefix = f"{DATASCHEMA_PREFIX}{stream}:"
    if not dataschema.startswith(prefix) or len(dataschema) == len(prefix):
        raise EnvelopeError(f"dataschema {dataschema[:120]!r} must be {prefix}<version>")
    return dataschema[len(prefix) :]
