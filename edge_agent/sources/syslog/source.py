"""A source that listens for syslog: RFC 5424 and RFC 3164, over UDP, TCP and TLS.

    kind = "syslog"
    listen = ["udp://127.0.0.1:5514", "tcp://127.0.0.1:5514", "tls://0.0.0.0:6514"]
    cert = "server.pem"           # of tls://, with key
    key = "server.key"
    client_ca = "ca.pem"          # only senders with a certificate of this authority
    max_message_bytes = 16384     # a longer message is refused and counted
    time_zone = "Europe/Berlin"   # of RFC 3164 times, which tell none; default: this machine's

Over TCP and TLS, octet counting, line feeds and NULs (RFC 6587) are told apart message by message. What cannot be read whole is
kept as far as it can be, with the text as it came. Datagrams that the kernel dropped are counted when the next one comes.
"""

import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError, SourceError
from edge_agent.identity import refuse_password
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.sources.network.frames import FrameBuffer
from edge_agent.sources.network.sockets import DatagramSocket, HostPort, SocketInbox, read_address
from edge_agent.sources.options import read_options
from edge_agent.sources.rows.mapping import ColumnMapper
from edge_agent.sources.rows.tables import RawChunk
from edge_agent.sources.syslog.message import SyslogMessage, read_message
from schemas.contract import Contract

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


class SyslogSource:
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

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many messages, cells or connections were refused since the source was built."""
        return dict(self._rejects.counts)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names in the source that fill no column."""
        return tuple(sorted(self._mapper.left_out))

    @property
    def matched(self) -> dict[str, str]:
        """Column -> the source's name for it."""
        return self._mapper.matched

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
