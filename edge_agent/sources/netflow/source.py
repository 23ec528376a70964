"""A source that collects flows: NetFlow v5, v9 and IPFIX over UDP; each flow is a sample of `network_flow`.

    kind = "netflow"
    listen = "udp://0.0.0.0:2055"
    rename = { exporter = "service" }   # who reported it
    max_exporters = 64                  # each has templates of its own; more are refused
    sampling_rate = 1000                # of exporters that tell none of their own
    scale = true                        # counts become estimates of all packets: each times its sampling rate

A flow is one direction of a connection: src_ip, src_port, dst_ip, dst_port, proto, duration_s, orig_pkts, orig_ip_bytes; of
exporters that tell what came back (RFC 5103, Cisco NSEL, Meraki) both: resp_pkts, resp_ip_bytes. Event time is its beginning.
Data that comes before its template waits for it; what the exporters' sequence numbers miss is counted.
The templates are kept over a restart, as the source's position; the flows themselves nobody sends again.
"""

import socket
from collections.abc import Mapping, Sequence

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.sources.netflow.export import REVERSE, Export, Exporter, Record, recall, remember
from edge_agent.sources.network.frames import FrameBuffer
from edge_agent.sources.network.sockets import DatagramSocket, SocketInbox, read_address
from edge_agent.sources.options import read_options
from edge_agent.sources.rows.mapping import ColumnMapper, MappedRows
from edge_agent.sources.rows.tables import RawChunk
from schemas.contract import Contract

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("listen",)

# What a flow record counts, each way: packets, bytes of IP, bytes of payload. Pure.
# Exporters tell what came back in three ways: by reverse elements (RFC 5103), by the responder's elements (Cisco NSEL and
# others), and, in NetFlow 9, by OUT_BYTES and OUT_PKTS next to IN_BYTES and IN_PKTS (Meraki). OUT_BYTES alone, as an egress
# monitor tells it, is of the flow's own direction; in IPFIX these two numbers are never what came back.
FLOW_COUNTS = ("orig_pkts", "orig_ip_bytes", "orig_bytes", "resp_pkts", "resp_ip_bytes", "resp_bytes")
_PACKETS, _IP_BYTES = (2, 86), (1, 85)
_OUT_BYTES, _OUT_PACKETS = 23, 24
# Initiator's and responder's payload.
_ORIG_PACKETS, _ORIG_PAYLOAD, _RESP_PACKETS, _RESP_PAYLOAD = 298, 231, 299, 232
_V9 = 9

Counts = tuple[int | None, ...]


def flow_counts(record: Record, version: int) -> Counts:
    """The counts, in the order of `FLOW_COUNTS`; None where the exporter does not tell.

    Where it tells bytes of payload alone, they stand for bytes of IP, too.

    Args:
        record: the flow.
        version: of the protocol.
    """
    packets, ip_bytes = first_number(record, *_PACKETS), first_number(record, *_IP_BYTES)
    out_packets, out_bytes = first_number(record, _OUT_PACKETS), first_number(record, _OUT_BYTES)
    back_packets = first_number(record, *(REVERSE | id_ for id_ in _PACKETS), _RESP_PACKETS)
    back_bytes = first_number(record, *(REVERSE | id_ for id_ in _IP_BYTES))
    if version == _V9 and packets is not None and back_packets is None:
        back_packets = out_packets
    if version == _V9 and ip_bytes is not None and back_bytes is None:
        back_bytes = out_bytes
    orig_payload, resp_payload = first_number(record, _ORIG_PAYLOAD), first_number(record, _RESP_PAYLOAD)
    return (
        _known(packets, first_number(record, _ORIG_PACKETS), out_packets),
        _known(ip_bytes, orig_payload, out_bytes),
        orig_payload,
        back_packets,
        _known(back_bytes, resp_payload),
        resp_payload,
    )


def swapped(counts: Counts) -> Counts:
    """The counts of a record whose source is the responder."""
    half = len(FLOW_COUNTS) // 2
    return (*counts[half:], *counts[:half])


def first_number(record: Record, *ids: int) -> int | None:
    """The first of some elements that the record holds as a number."""
    for id_ in ids:
        raw = record.get(id_)
        if raw is not None and 0 < len(raw) <= 8:
            return int.from_bytes(raw, "big")
    return None


def _known(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


_MAX_DATAGRAM_BYTES = 65_535
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp", 132: "sctp"}
_SINCE_1900_S = 2_208_988_800
_NAMES = (
    "src_ip", "src_port", "dst_ip", "dst_port", "proto", "duration_s", "sampling_rate", "is_scaled", "exporter",
    *FLOW_COUNTS,
)  # fmt: skip
_MAX_SAMPLING_RATE = 1 << 32
_BIFLOW_DIRECTION, _REVERSE_INITIATOR = 239, 2


class NetflowOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a flow collector; the module's docstring shows each."""

    listen: str
    rename: dict[str, str] = {}
    max_exporters: int = 64
    sampling_rate: int = 0
    scale: bool = False
    receive_buffer_bytes: int = 4 * 1024 * 1024
    wait_ms: int = 100


class NetflowSource(MappedRows):
    """Collects; see the module.

    Attributes:
        rejected: reason -> datagrams, data sets and cells refused.
        port: where it listens.
    """

    def __init__(self, options: NetflowOptions, contract: Contract, position: bytes | None = None) -> None:
        self._options = options
        self._rejects = Rejects("netflow")
        self._mapper = ColumnMapper(contract, options.rename, frozenset(), self._rejects)
        self._exporters = recall(position, self._rejects)
        self._inbox = SocketInbox(lambda: FrameBuffer(_MAX_DATAGRAM_BYTES, self._rejects), 1, self._rejects)
        at = read_address("netflow", options.listen, ("udp",))
        made = DatagramSocket(at.host, at.port, options.receive_buffer_bytes, _MAX_DATAGRAM_BYTES, self._rejects)
        self.port = self._inbox.add_datagrams(made)

    def read(self, max_samples: int) -> SampleBatch | None:
        """The flows that have come, about `max_samples`; None when none comes within `wait_ms`."""
        times: list[int] = []
        rows: list[tuple[object, ...]] = []
        # A datagram holds some 30 flows.
        for peer, data in self._inbox.take(max(1, max_samples // 30), self._options.wait_ms / 1000):
            for export in self._exports(peer, data):
                for record, rate in zip(export.records, export.rates, strict=True):
                    self._add(record, export, rate or self._options.sampling_rate or None, peer, times, rows)
        if not rows:
            return None
        raw: dict[str, Sequence[object]] = dict(zip(_NAMES, zip(*rows, strict=True), strict=True))
        columns: dict[str, Sequence[Scalar]] = self._mapper.convert(RawChunk(raw, len(rows)))
        return SampleBatch(times, columns, position=self._position())

    def _position(self) -> bytes | None:
        """The templates, when they are others than those reported last; each position is a write to flash."""
        changed = [exporter for exporter in self._exporters.values() if exporter.is_changed]
        for exporter in changed:
            exporter.is_changed = False
        return remember(self._exporters) if changed else None

    def _exports(self, peer: str, data: bytes) -> list[Export]:
        # v9: source id; IPFIX: observation domain; v5: engine. Each has templates and sequence of its own.
        domain = data[20:22] if data[:2] == b"\0\5" else data[16:20] if data[:2] == b"\0\x09" else data[12:16]
        exporter = self._exporters.get((peer, data[:2] + domain))
        if exporter is not None:
            return exporter.read(data)
        exporter = Exporter(self._rejects)
        exports = exporter.read(data)
        # Who sends no flows takes nobody's place: a port is scanned more often than an exporter is added.
        if not exporter.is_heard:
            return []
        if len(self._exporters) >= self._options.max_exporters and not self._forget_one():
            self._rejects.count(f"row: datagram of more than {self._options.max_exporters} exporters", peer)
            return []
        self._exporters[peer, data[:2] + domain] = exporter
        return exports

    def _forget_one(self) -> bool:
        """An exporter of the last run that has not spoken since makes way for one that does."""
        silent = next((key for key, exporter in self._exporters.items() if not exporter.is_heard), None)
        if silent is not None:
            del self._exporters[silent]
        return silent is not None

    def _add(
        self, record: Record, export: Export, rate: float | None, peer: str, times: list[int], rows: list[tuple[object, ...]]
    ) -> None:
        source, target = _address(record, 8, 27), _address(record, 12, 28)
        if source is None or target is None:
            self._rejects.count("row: flow without addresses")
            return
        ends = (source, first_number(record, 7)), (target, first_number(record, 11))
        counts = flow_counts(record, export.version)
        if first_number(record, _BIFLOW_DIRECTION) == _REVERSE_INITIATOR:  # who answered stands first
            ends, counts = ends[::-1], swapped(counts)
        is_scaled = self._options.scale and rate is not None and rate > 1
        if is_scaled and rate is not None:
            counts = tuple(None if count is None else round(count * rate) for count in counts)
        start_ms, end_ms = flow_times(record, export)
        times.append(round(start_ms * 1000))
        protocol = first_number(record, 4)
        proto = "unknown" if protocol is None else _PROTOCOLS.get(protocol, str(protocol))
        lasted_s = max(0.0, end_ms - start_ms) / 1000
        rows.append((*ends[0], *ends[1], proto, lasted_s, rate, None if rate is None else is_scaled, peer, *counts))

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: exporters do not wait for an answer."""

    def close(self) -> None:
        """Close the port."""
        self._inbox.close()


def flow_times(record: Record, export: Export) -> tuple[float, float]:
    """When a flow began and ended, milliseconds since 1970; the time of its export where it does not say."""
    start, end = (_moment(record, export, ids) for ids in ((152, 150, 22, 158, 154, 156), (153, 151, 21, 159, 155, 157)))
    if end is None and start is not None and (observed_ms := first_number(record, 323)) is not None:
        end = float(observed_ms)  # NSEL: when what the record tells of came about
    if end is None and start is not None and (lasted_ms := first_number(record, 161)) is not None:
        end = start + lasted_ms
    if start is None:
        start = end if end is not None else float(export.at_ms)
    return start, end if end is not None else start


def _moment(record: Record, export: Export, ids: tuple[int, int, int, int, int, int]) -> float | None:
    millis, seconds, uptime, before_us = (first_number(record, id_) for id_ in ids[:4])
    fine = next((raw for id_ in ids[4:] if (raw := record.get(id_)) is not None and len(raw) == 8), None)
    if fine is not None:
        # NTP's format (RFC 7011, 6.1.9): seconds since 1900 and their 2^32nd parts.
        return (int.from_bytes(fine[:4], "big") - _SINCE_1900_S) * 1000 + int.from_bytes(fine[4:], "big") / (1 << 32) * 1000
    if millis is not None:
        return float(millis)
    if seconds is not None:
        return seconds * 1000.0
    if uptime is not None and export.uptime_ms is not None:
        # Both count up to 2^32: their difference is right even when one has wrapped.
        behind = (export.uptime_ms - uptime) & 0xFFFF_FFFF
        return float(export.at_ms - (behind if behind < 1 << 31 else behind - (1 << 32)))
    return None if before_us is None else export.at_ms - before_us / 1000


def _address(record: Record, v4: int, v6: int) -> str | None:
    raw = record.get(v4)
    if raw is not None and len(raw) == 4:
        return socket.inet_ntop(socket.AF_INET, raw)
    raw = record.get(v6)
    return socket.inet_ntop(socket.AF_INET6, raw) if raw is not None and len(raw) == 16 else None


def names_given(options: Mapping[str, object], contract: Contract) -> tuple[str, ...]:
    """The names that a flow gives, as the contract's columns where they are renamed."""
    rename = check(options, contract).rename
    return tuple(rename.get(name, name) for name in _NAMES)


def check(options: Mapping[str, object], contract: Contract) -> NetflowOptions:
    """The options of a flow collector.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("netflow", options, NetflowOptions, contract)
    read_address("netflow", chosen.listen, ("udp",))
    if chosen.max_exporters < 1:
        raise ConfigError("source 'netflow': max_exporters must be 1 or more")
    if not 0 <= chosen.sampling_rate <= _MAX_SAMPLING_RATE:
        raise ConfigError(f"source 'netflow': sampling_rate {chosen.sampling_rate} must be 0 (as reported) to 2^32")
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> NetflowSource:
    """Listen.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: the address cannot be bound.
    """
    del clock  # exporters tell their own time
    return NetflowSource(check(options, contract), contract, position)
