"""A source that listens for syslog: RFC 5424 and RFC 3164, over UDP, TCP and TLS.

    kind = "syslog"
    listen = ["udp://127.0.0.1:5514", "tcp://127.0.0.1:5514", "tls://0.0.0.0:6514"]
    cert = "server.pem"           # of tls://, with key
    key = "server.key"
    client_ca = "ca.pem"          # only senders with a certificate of this authority
    max_message_bytes = 16384     # a longer message is refused and counted
    time_zone = "Europe/Berlin"   # of RFC 3164 times, which tell none; default: this machine's

Over TCP and TLS each message may use octet counting, line feeds or NULs (RFC 6587). A message (RFC 5424, RFC 3164,
Meraki's or any other) is read as far as it can be, never refused, and kept with its text as it came. Datagrams that the kernel
dropped are counted when the next one comes.
"""

import re
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError, SourceError
from edge_agent.identity import refuse_password
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.sources.network.frames import FrameBuffer
from edge_agent.sources.network.sockets import DatagramSocket, HostPort, SocketInbox, read_address
from edge_agent.sources.options import read_options
from edge_agent.sources.rows.cells import CellError, to_time
from edge_agent.sources.rows.mapping import ColumnMapper, MappedRows
from edge_agent.sources.rows.tables import RawChunk
from schemas.contract import Contract
from schemas.written_values import TimeForm

_NIL = "-"
_PRI = re.compile(r"<(\d{1,3})>")
_MAX_PRI = 191
_HEADER = re.compile(r"1 (\S{1,64}) (\S{1,255}) (\S{1,128}) (\S{1,128}) (\S{1,128}) ")
# Meraki: seconds since 1970 with their fraction, the device, and which of its logs this is; its text follows at once.
_EPOCH = re.compile(r"(\d{9,11})(?:\.(\d{1,9}))?")
_MERAKI = re.compile(r"(?:1 )?(\d{9,11}\.\d{1,9}|(?<=1 )\d{9,11}) ([^\s=]{1,255}) ([^\s=]{1,128})(?: |$)")
_STRUCTURED_NEXT = re.compile(r"-(?: |$)|\[")
_ELEMENT = re.compile(r"\[([^\s=\]\"]{1,128})")
_PARAMETER = re.compile(r" ([^\s=\]\"]{1,128})=\"((?:[^\"\\\]]|\\.)*)\"", re.DOTALL)
# Some write the day without its blank, the year behind it, or a colon where the host would follow (Cisco).
_BSD_TIME = re.compile(
    r"([A-Z][a-z]{2}) ( ?\d{1,2})(?: (\d{4}))? (\d{1,2}):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?: (UTC|GMT)(?=:))?(?: ?: | )"
)
# Before the time Cisco may write a number, the host, and a dot: the clock was set once. A star says that it never was.
_CISCO = re.compile(r"(?:\d{1,10}: )?(?:([^\s\[\]:<>]{1,255}): )?\.?(?=[A-Z][a-z]{2} )")
_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\S{1,40}) ")
_HOST = re.compile(r"([^\s\[\]:]{1,255}|[0-9a-fA-F:]{2,45}) (?=\S)")
# A number alone is no program: Cisco counts its messages so.
_TAG = re.compile(r"(?!\d+:)([^\s\[\]:<>]{1,64})(?:\[([^\]]{1,128})\])?: ?")
_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# A device's clock may be ahead; a message of longer ago than the rest of the year is one that was kept.
_AHEAD_US = 31 * 86_400_000_000


@dataclass(frozen=True, slots=True)
class SyslogMessage:
    """The fields of a message. None: missing.

    Attributes:
        time_us: its own time, microseconds since 1970.
        structured: element -> parameter -> value.
        problem: why it was read only in part; empty if it was read whole.
    """

    message: str
    facility: int | None = None
    severity: int | None = None
    time_us: int | None = None
    host: str | None = None
    app: str | None = None
    proc_id: str | None = None
    msg_id: str | None = None
    structured: dict[str, dict[str, str]] | None = None
    problem: str = ""


def read_message(raw: bytes, now_us: int, zone: tzinfo | None) -> SyslogMessage:
    """Read one message.

    Args:
        raw: without its framing.
        now_us: the year of an RFC 3164 time is the last that brings it no further than a month ahead of this.
        zone: of RFC 3164 times, which tell none; None: this machine's.
    """
    problem = ""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text, problem = raw.decode(errors="replace"), "not UTF-8, replaced by U+FFFD"
    text = text.rstrip("\r\n\0").removeprefix("\ufeff")
    found = _PRI.match(text)
    if found is None or int(found[1]) > _MAX_PRI:
        return SyslogMessage(text, problem=problem or "no priority")
    facility, severity = divmod(int(found[1]), 8)
    header = _HEADER.match(text, found.end())
    meraki = _MERAKI.match(text, found.end())
    if meraki is not None and (header is None or not _STRUCTURED_NEXT.match(text, header.end())):
        return _meraki(text, meraki, (facility, severity), problem)
    if header is not None:
        return _rfc5424(text, header, (facility, severity), now_us, zone, problem)
    return _rfc3164(text[found.end() :], (facility, severity), now_us, zone, problem)


def _rfc5424(
    text: str, header: re.Match[str], pri: tuple[int, int], now_us: int, zone: tzinfo | None, problem: str
) -> SyslogMessage:
    timestamp, host, app, proc_id, msg_id = (None if value == _NIL else value for value in header.groups())
    time_us = None
    if timestamp is not None:
        try:
            time_us = _epoch_us(timestamp) if _EPOCH.fullmatch(timestamp) else _iso_time(timestamp, now_us, zone)
        except CellError:
            problem = problem or "its time is no RFC 3339 time"
    structured, end = _structured(text, header.end())
    if structured is None:
        problem = problem or "its structured data is malformed"
    message = text[end:].removeprefix(" ").removeprefix("\ufeff")
    return SyslogMessage(message, *pri, time_us, host, app, proc_id, msg_id, structured or None, problem)


def _structured(text: str, start: int) -> tuple[dict[str, dict[str, str]] | None, int]:
    """The structured data and where it ends; None, and the start, where it is malformed."""
    if text.startswith(_NIL, start):
        return {}, start + 1
    elements: dict[str, dict[str, str]] = {}
    at = start
    while element := _ELEMENT.match(text, at):
        at = element.end()
        values = elements.setdefault(element[1], {})
        while parameter := _PARAMETER.match(text, at):
            values[parameter[1]] = re.sub(r"\\([\"\\\]])", r"\1", parameter[2])
            at = parameter.end()
        if not text.startswith("]", at):
            return None, start
        at += 1
    is_whole = bool(elements) and (at == len(text) or text[at] == " ")
    return (elements, at) if is_whole else (None, start)


def _meraki(text: str, header: re.Match[str], pri: tuple[int, int], problem: str) -> SyslogMessage:
    return SyslogMessage(text[header.end() :], *pri, _epoch_us(header[1]), header[2], header[3], problem=problem)


def _epoch_us(timestamp: str) -> int:
    seconds, _, fraction = timestamp.partition(".")
    return int(seconds) * 1_000_000 + int(fraction[:6].ljust(6, "0"))


def _rfc3164(text: str, pri: tuple[int, int], now_us: int, zone: tzinfo | None, problem: str) -> SyslogMessage:
    lead = _CISCO.match(text)
    time_us, at = _bsd_time(text, lead.end() if lead else 0, now_us, zone)
    host = lead[1] if lead and time_us is not None else None
    # Without a time there is no header at all, and the first word is the message's.
    if time_us is not None and host is None and (found := _HOST.match(text, at)):
        host, at = found[1], found.end()
    app = proc_id = None
    if found := _TAG.match(text, at):
        app, proc_id, at = found[1], found[2], found.end()
    return SyslogMessage(text[at:], *pri, time_us, host, app, proc_id, problem=problem)


def _bsd_time(text: str, start: int, now_us: int, zone: tzinfo | None) -> tuple[int | None, int]:
    """The time from `start` on and where it ends; None and 0 where there is none."""
    try:
        if found := _ISO_TIME.match(text, start):
            return _iso_time(found[1], now_us, zone), found.end()
        found = _BSD_TIME.match(text, start)
        if found is None or found[1] not in _MONTHS:
            return None, 0
        year = datetime.fromtimestamp(now_us / 1e6, UTC).year
        numbers = [int(found[group]) for group in (2, 4, 5, 6)]
        micros = int((found[7] or "").ljust(6, "0"))
        month = _MONTHS.index(found[1])
        zone = UTC if found[8] else zone
        if found[3] is not None:
            moment = _moment((int(found[3]), month, *numbers), micros, zone, now_us)
            return (None, 0) if moment is None else (moment, found.end())
        moments = [_moment((year + step, month, *numbers), micros, zone, now_us) for step in (-1, 0, 1)]
        past = [moment for moment in moments if moment is not None and moment - now_us <= _AHEAD_US]
        return (past[-1], found.end()) if past else (None, 0)
    except (CellError, ValueError, OverflowError, OSError):
        return None, 0


def _iso_time(text: str, now_us: int, zone: tzinfo | None) -> int:
    """An RFC 3339 time; one that tells no zone is of the configured one, or UTC."""
    return to_time(text, TimeForm("rfc3339", zone=zone or UTC), near_us=now_us).micros


def _moment(numbers: tuple[int, ...], micros: int, zone: tzinfo | None, now_us: int) -> int | None:
    """A local time; of one that occurs twice, as the clocks are set back, the one nearer to its arrival."""
    try:
        moments = [datetime(*numbers, micros, tzinfo=zone, fold=fold) for fold in (0, 1)]  # type: ignore[arg-type,misc]
    except ValueError:
        return None  # February 29 of another year
    early, late = (round(moment.timestamp() * 1e6) for moment in moments)
    return late if late > early and abs(late - now_us) < abs(early - now_us) else early


# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("listen",)

SCHEMES = frozenset({"udp", "tcp", "tls"})
_NAMES = ("message", "facility", "severity", "host", "app", "proc_id", "msg_id", "peer", "structured")
_MAX_MESSAGE_BYTES = 64 * 1024


class SyslogOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a syslog listener; the module's docstring shows each."""

    listen: tuple[str, ...]
    cert: str = ""
    key: str = ""
    client_ca: str = ""
    max_message_bytes: int = 16 * 1024
    max_connections: int = 256
    receive_buffer_bytes: int = 4 * 1024 * 1024
    time_zone: str = ""
    rename: dict[str, str] = {}
    wait_ms: int = 100


class SyslogSource(MappedRows):
    """Listens; see the module.

    Attributes:
        rejected: reason -> messages, cells and connections refused.
        ports: where it listens, in the order of `listen`.
    """

    def __init__(self, options: SyslogOptions, contract: Contract, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._rejects = Rejects("syslog")
        self._mapper = ColumnMapper(contract, options.rename, frozenset(), self._rejects)
        self._zone = _zone(options.time_zone)
        self._inbox = SocketInbox(self._frames, options.max_connections, self._rejects)
        self._read: deque[tuple[str, SyslogMessage]] = deque()
        try:
            self.ports = [self._listen(read_address("syslog", text, SCHEMES)) for text in options.listen]
        except BaseException:
            self._inbox.close()
            raise

    def _frames(self) -> FrameBuffer:
        return FrameBuffer(self._options.max_message_bytes, self._rejects)

    def _listen(self, at: HostPort) -> int:
        options = self._options
        if at.scheme == "udp":
            made = DatagramSocket(at.host, at.port, options.receive_buffer_bytes, options.max_message_bytes, self._rejects)
            return self._inbox.add_datagrams(made)
        return self._inbox.add_listener(at.host, at.port, _tls(options) if at.scheme == "tls" else None)

    def read(self, max_samples: int) -> SampleBatch | None:
        """The messages that have come; None when none comes within `wait_ms`."""
        if not self._read:
            now_us = self._clock.now_ms() * 1000
            for peer, raw in self._inbox.take(max_samples, self._options.wait_ms / 1000):
                message = read_message(raw, now_us, self._zone)
                if message.problem:
                    self._rejects.count(f"cell: {message.problem}")
                self._read.append((peer, message))
        if not self._read:
            return None
        # Own times and times of reading have a quality of their own, so that they do not share a batch.
        has_time = self._read[0][1].time_us is not None
        rows: list[tuple[str, SyslogMessage]] = []
        while self._read and (self._read[0][1].time_us is not None) == has_time and len(rows) < max_samples:
            rows.append(self._read.popleft())
        return self._batch(rows, has_time=has_time)

    def _batch(self, rows: Sequence[tuple[str, SyslogMessage]], *, has_time: bool) -> SampleBatch:
        now_us = self._clock.now_ms() * 1000
        messages = [message for _, message in rows]
        raw: dict[str, Sequence[object]] = {name: [getattr(message, name) for message in messages] for name in _NAMES[:7]}
        raw["peer"] = [peer for peer, _ in rows]
        raw["structured"] = [m.structured and msgspec.json.encode(m.structured).decode() for m in messages]
        columns: dict[str, Sequence[Scalar]] = self._mapper.convert(RawChunk(raw, len(rows)))
        times = [now_us if message.time_us is None else message.time_us for message in messages]
        return SampleBatch(times, columns, agent_clock=not has_time)

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: syslog has no acknowledgement."""

    def close(self) -> None:
        """Close the ports."""
        self._inbox.close()


def _zone(name: str) -> tzinfo | None:
    return ZoneInfo(name) if name else None


def _tls(options: SyslogOptions) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # many switches speak no 1.3
    try:
        context.load_cert_chain(options.cert, options.key, refuse_password)
        if options.client_ca:
            context.load_verify_locations(options.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise SourceError(f"source 'syslog': cert, key or client_ca cannot be used ({error}); give PEM files") from error
    return context


def names_given(options: Mapping[str, object], contract: Contract) -> tuple[str, ...]:
    """The names that a message gives, as the contract's columns where they are renamed."""
    rename = check(options, contract).rename
    return tuple(rename.get(name, name) for name in _NAMES)


def check(options: Mapping[str, object], contract: Contract) -> SyslogOptions:
    """The options of a syslog listener.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("syslog", options, SyslogOptions, contract)
    addresses = [read_address("syslog", text, SCHEMES) for text in chosen.listen]
    if not addresses:
        raise ConfigError("source 'syslog': listen is empty; give addresses like udp://127.0.0.1:5514")
    if any(address.scheme == "tls" for address in addresses) and not (chosen.cert and chosen.key):
        raise ConfigError("source 'syslog': tls:// needs cert and key, PEM files of this listener's certificate")
    if not 480 <= chosen.max_message_bytes <= _MAX_MESSAGE_BYTES:
        raise ConfigError(f"source 'syslog': max_message_bytes must be within 480 and {_MAX_MESSAGE_BYTES}")
    try:
        _zone(chosen.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"source 'syslog': time_zone {chosen.time_zone!r} is unknown; write Europe/Berlin") from error
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> SyslogSource:
    """Listen.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: an address cannot be bound, or a certificate not be read.
    """
    del position  # what was sent is gone
    return SyslogSource(check(options, contract), contract, clock)
