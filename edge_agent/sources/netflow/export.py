"""Decode NetFlow v5, v9 and IPFIX (RFC 3954, RFC 7011) datagrams into flow records. Pure: an exporter's templates are its memory.

Lengths are checked before anything is read: a datagram is a stranger's. Exporters repeat templates and sampling rates once
in minutes, so they are kept over a restart as the position of the source: the first flows would wait for the templates, and
count too little without the rates.
"""

import struct
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec

from edge_agent.sources.api import Rejects
from edge_agent.sources.netflow.sampling import Sampling

MALFORMED = "row: datagram is malformed"
NO_TEMPLATE = "row: data set whose template never came"
LOST = "row: lost on the way, as the exporter's sequence tells"
_MAX_TEMPLATES = 1_024
_MAX_FIELDS = 512
_MAX_WAITING = 256
_VARIABLE = 0xFFFF
_WORD_BYTES = 4
_FIRST_DATA_SET = 256
# An exporter's clock may be set a little; further apart, it was restarted.
_SAME_START_MS = 60_000
# So far back in the sequence a datagram is a late one: a network's queues hold no more.
_LATE = 4_096
# What a v5 record holds, as information elements of RFC 7012: id, offset, length.
_V5 = ((8, 0, 4), (12, 4, 4), (2, 16, 4), (1, 20, 4), (22, 24, 4), (21, 28, 4), (7, 32, 2), (11, 34, 2), (6, 37, 1), (4, 38, 1))
_V5_HEAD, _V5_RECORD = 24, 48

# The enterprise number of reverse elements (RFC 5103): of what came back from the flow's destination.
REVERSE = 29_305 << 16
_ENTERPRISE_SHIFT = 16
# IANA's own elements end here for now; NetFlow 9 has vendors' above.
_MAX_STANDARD = 600
_MAX_UNUSED = 64

# One flow: information element -> its bytes. An enterprise's element is its number above that of the enterprise.
Record = dict[int, bytes]

# It is written to flash with each change of a template; who has more begins without the rest.
MAX_BYTES = 64 * 1024
UNREADABLE = "file: the stored templates are unreadable; each exporter's are waited for"

_OVERALL, _SAMPLER, _INTERFACE = "all", "sampler", "interface"

Key = tuple[str, bytes]


class MalformedError(ValueError):
    """The lengths it tells contradict each other."""


@dataclass(frozen=True, slots=True)
class Export:
    """Flow records of one datagram, and the exporter's clock: `uptime_ms` when `at_ms` (since 1970) was.

    Attributes:
        rates: for each record how many packets each one that it counts stands for, None where the exporter does not tell.
        version: of the protocol.
    """

    records: tuple[Record, ...]
    at_ms: int
    uptime_ms: int | None
    rates: tuple[float | None, ...] = ()
    version: int = 0


@dataclass(frozen=True, slots=True)
class Template:
    """The fields of a data set's records: (information element; length), in order. Scopes of NetFlow 9 are negative.

    Attributes:
        is_kept: it was reported before this agent's start; the exporter may have been given others meanwhile.
    """

    fields: tuple[tuple[int, int], ...]
    is_options: bool
    is_kept: bool = False

    def fits(self, body: bytes) -> bool:
        """Whether the data set's length can be that of such records and less than a word of padding."""
        sizes = [length for _, length in self.fields]
        return _VARIABLE in sizes or len(body) % sum(sizes) < _WORD_BYTES

    @property
    def unknown(self) -> tuple[str, ...]:
        """Elements that we do not know, so that they fill no column: vendors' own, and those newer than we are."""
        return _unknown(self.fields)


@dataclass(slots=True)
class Exporter:
    """One exporter's templates, and data sets that came before theirs.

    Args:
        rejects: where what cannot be read is counted.
        templates: known already.
        init_ms: when an IPFIX exporter began to count its uptime, if it reported that.
        kept_boot_ms: when it was started, as it reported before this agent was; None: it did not.

    Attributes:
        is_changed: a template is another than when this was last set to False.
        boot_ms: when it was started, as it tells.
        is_heard: something came of it since this agent's start.
        sampling: what it tells of its packet sampling.
        version: of the protocol, as the datagram at hand has it.
    """

    rejects: Rejects
    templates: dict[int, Template] = field(default_factory=dict)
    init_ms: int | None = None
    kept_boot_ms: int | None = None
    expected: int | None = None
    is_changed: bool = False
    boot_ms: int | None = None
    is_heard: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    version: int = 0
    record_count: int | None = 0  # data records of the datagram at hand; None: one of its sets could not be read
    waiting: deque[tuple[int, bytes, int, int | None]] = field(default_factory=deque)

    def read(self, data: bytes) -> list[Export]:
        """The flows of a datagram, and of earlier ones that waited for a template in this one."""
        try:
            exports = self._read(data, int.from_bytes(data[:2], "big"))
        except (MalformedError, struct.error):
            self.rejects.count(MALFORMED)
            return []
        self.is_heard = True
        return exports

    def _read(self, data: bytes, version: int) -> list[Export]:
        self.version = version
        if version == 5:
            return [self._v5(data)]
        if version == 9 and len(data) >= 20:
            uptime_ms, seconds, sequence = struct.unpack("!III", data[4:16])
            self._check_sequence(sequence, 1)
            self._check_start(seconds * 1000 - uptime_ms)
            return self._sets(data[20:], (0, 1), seconds * 1000, uptime_ms)
        if version == 10 and len(data) >= 16 and int.from_bytes(data[2:4], "big") == len(data):
            exports = self._sets(data[16:], (2, 3), int.from_bytes(data[4:8], "big") * 1000, None)
            # It counts data records: only who knows all templates of this datagram knows what the next one says.
            self._check_sequence(int.from_bytes(data[8:12], "big"), self.record_count)
            return exports
        raise MalformedError("no version known, or short")

    def _v5(self, data: bytes) -> Export:
        if len(data) < _V5_HEAD:
            raise MalformedError("short")
        count, uptime_ms, seconds, nanos, sequence = struct.unpack("!HIIII", data[2:20])
        if len(data) != _V5_HEAD + count * _V5_RECORD:
            raise MalformedError("count and length differ")
        self._check_sequence(sequence, count)
        rows = [data[at : at + _V5_RECORD] for at in range(_V5_HEAD, len(data), _V5_RECORD)]
        records = tuple({id_: row[start : start + size] for id_, start, size in _V5} for row in rows)
        # Two bits of mode, then the interval. Many leave the mode 0 and sample all the same.
        interval = int.from_bytes(data[22:24], "big") & 0x3FFF
        rate = float(interval) if interval else None
        return Export(records, seconds * 1000 + nanos // 1_000_000, uptime_ms, (rate,) * count, version=5)

    def _check_start(self, boot_ms: int) -> None:
        self.boot_ms = boot_ms
        if self.kept_boot_ms is not None and abs(boot_ms - self.kept_boot_ms) > _SAME_START_MS:
            self.templates = {id_: template for id_, template in self.templates.items() if not template.is_kept}
        self.kept_boot_ms = None

    def _check_sequence(self, sequence: int, step: int | None) -> None:
        lost = 0 if self.expected is None else (sequence - self.expected) & 0xFFFF_FFFF
        if lost > 0xFFFF_FFFF - _LATE and sequence > 0:
            return  # overtaken by the one after it, and counted as lost then: what comes next is known
        if 0 < lost < 1 << 20:  # further off the exporter was restarted
            self.rejects.count(LOST, times=lost)
        self.expected = None if step is None else (sequence + step) & 0xFFFF_FFFF

    def _sets(self, data: bytes, kinds: tuple[int, int], at_ms: int, uptime_ms: int | None) -> list[Export]:
        sets: list[tuple[int, bytes]] = []
        at = 0
        while at + 4 <= len(data):
            set_id, length = struct.unpack("!HH", data[at : at + 4])
            if length < 4 or at + length > len(data):
                raise MalformedError("set length")
            sets.append((set_id, data[at + 4 : at + length]))
            at += length
        has_templates = False
        found: list[tuple[int, bytes, Template | None]] = []
        for set_id, body in sets:
            if set_id in kinds:
                has_templates = True
                self._take_templates(body, is_options=set_id == kinds[1], is_ipfix=kinds[0] == 2)
            elif set_id >= _FIRST_DATA_SET:
                # A template holds for what follows it, also where the same datagram replaces it.
                known = self.templates.get(set_id)
                found.append((set_id, body, None if known is None or known.is_kept else known))
        early: list[tuple[int, bytes, int, int | None]] = []
        if has_templates:
            early = list(self.waiting)
            self.waiting.clear()
        exports = [
            self._data(set_id, body, self.templates.get(set_id), early_ms, early_uptime_ms)
            for set_id, body, early_ms, early_uptime_ms in early
        ]
        self.record_count = 0
        data_sets = [(set_id, body, template or self.templates.get(set_id)) for set_id, body, template in found]
        # What options tell of sampling holds for the flows next to them, in whatever order they stand.
        data_sets.sort(key=lambda one: one[2] is None or not one[2].is_options)
        exports += [self._data(set_id, body, template, at_ms, uptime_ms) for set_id, body, template in data_sets]
        return [export for export in exports if export is not None]

    def _data(self, set_id: int, body: bytes, template: Template | None, at_ms: int, uptime_ms: int | None) -> Export | None:
        if template is None or (template.is_kept and not template.fits(body)):
            self.record_count = None
            if len(self.waiting) >= _MAX_WAITING:
                self.waiting.popleft()
                self.rejects.count(NO_TEMPLATE)
            self.waiting.append((set_id, body, at_ms, uptime_ms))
            return None
        records = tuple(_records(body, template))
        self.record_count = None if self.record_count is None else self.record_count + len(records)
        if template.is_options:
            for record in records:
                self._take_options(record)
            return None
        self._count_unknown(template, len(records))
        if uptime_ms is None and self.init_ms is not None:
            uptime_ms = at_ms - self.init_ms
        rates = tuple(self.sampling.rate(record) for record in records)
        return Export(records, at_ms, uptime_ms, rates, version=self.version)

    def _take_options(self, record: Record) -> None:
        if 160 in record:
            before, self.init_ms = self.init_ms, int.from_bytes(record[160], "big")
            self.is_changed |= before != self.init_ms
        self.is_changed |= self.sampling.learn(record)

    def _count_unknown(self, template: Template, records: int) -> None:
        for name in template.unknown if records else ():
            self.rejects.count(f"cell: element {name} fills no column", times=records)

    def _take_templates(self, body: bytes, *, is_options: bool, is_ipfix: bool) -> None:
        at = 0
        head = 6 if is_options else 4
        while at + head <= len(body):
            id_, count = struct.unpack("!HH", body[at : at + 4])
            if id_ < 256:
                return  # padding
            scopes = 0
            if is_options and not is_ipfix:
                scopes = int.from_bytes(body[at + 2 : at + 4], "big") // 4
                count = (count + int.from_bytes(body[at + 4 : at + 6], "big")) // 4  # v9 counts bytes, scopes apart
            at += head if count else 4
            if count == 0:
                self.is_changed |= self.templates.pop(id_, None) is not None
                continue
            fields, at = _fields(body, at, count, is_ipfix=is_ipfix)
            fields = (*((-id_, length) for id_, length in fields[:scopes]), *fields[scopes:])
            if len(self.templates) >= _MAX_TEMPLATES and id_ not in self.templates:
                raise MalformedError("too many templates")
            before = self.templates.get(id_)
            self.is_changed |= before is None or (before.fields, before.is_options) != (fields, is_options)
            self.templates[id_] = Template(fields, is_options)


def _fields(body: bytes, at: int, count: int, *, is_ipfix: bool) -> tuple[tuple[tuple[int, int], ...], int]:
    if count > _MAX_FIELDS:
        raise MalformedError("too many fields")
    fields: list[tuple[int, int]] = []
    for _ in range(count):
        if at + 4 > len(body):
            raise MalformedError("template is cut")
        id_, length = struct.unpack("!HH", body[at : at + 4])
        at += 4
        if is_ipfix and id_ & 0x8000:
            if at + 4 > len(body):
                raise MalformedError("template is cut")
            enterprise = int.from_bytes(body[at : at + 4], "big")
            id_, at = enterprise << _ENTERPRISE_SHIFT | id_ & 0x7FFF, at + 4
        fields.append((id_, length))
    if not any(length for _, length in fields):
        raise MalformedError("records of no length")
    return tuple(fields), at


@lru_cache(maxsize=1_024)
def _unknown(fields: tuple[tuple[int, int], ...]) -> tuple[str, ...]:
    names: list[str] = []
    for id_, _ in fields:
        enterprise, number = id_ >> _ENTERPRISE_SHIFT, id_ & 0xFFFF
        if id_ > 0 and enterprise in {0, REVERSE >> _ENTERPRISE_SHIFT} and number <= _MAX_STANDARD:
            continue
        names.append(f"{enterprise}/{number}" if enterprise else str(number))
    found = tuple(dict.fromkeys(names))
    return found if len(found) <= _MAX_UNUSED else (*found[:_MAX_UNUSED], "of others")


def _records(body: bytes, template: Template) -> Iterator[Record]:
    least = sum(1 if length == _VARIABLE else length for _, length in template.fields)
    at = 0
    while at + least <= len(body):
        record: Record = {}
        for id_, declared in template.fields:
            length = declared
            if declared == _VARIABLE:
                length, at = _variable_length(body, at)
            if at + length > len(body):
                raise MalformedError("record is cut")
            if id_:
                record[id_] = body[at : at + length]
            at += length
        yield record


def _variable_length(body: bytes, at: int) -> tuple[int, int]:
    if at >= len(body):
        raise MalformedError("record is cut")
    if body[at] < 255:
        return body[at], at + 1
    return int.from_bytes(body[at + 1 : at + 3], "big"), at + 3


class KeptExporter(msgspec.Struct, frozen=True, array_like=True):
    """One exporter: who (address, version and domain), its templates, what its clock says of its own start, and its sampling.

    `sampling` holds (what, id, rate); a file of the release before has none.
    """

    peer: str
    domain: bytes
    templates: dict[int, tuple[tuple[tuple[int, int], ...], bool]]
    init_ms: int | None
    boot_ms: int | None
    sampling: list[tuple[str, int, float]] = []


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[KeptExporter])


def remember(exporters: Mapping[Key, Exporter]) -> bytes:
    """The templates of all exporters, at most `MAX_BYTES`."""
    kept: list[KeptExporter] = []
    size_bytes = 16
    for (peer, domain), exporter in sorted(exporters.items(), key=lambda item: not item[1].is_heard):
        templates = {id_: (template.fields, template.is_options) for id_, template in exporter.templates.items()}
        boot_ms = exporter.kept_boot_ms if exporter.boot_ms is None else exporter.boot_ms
        one = KeptExporter(peer, domain, templates, exporter.init_ms, boot_ms, _sampling(exporter.sampling))
        size_bytes += len(_ENCODER.encode(one))
        if size_bytes > MAX_BYTES:
            break
        kept.append(one)
    return _ENCODER.encode(kept)


def recall(position: bytes | None, rejects: Rejects) -> dict[Key, Exporter]:
    """The exporters as they were; none where nothing was kept, or it cannot be read."""
    if position is None:
        return {}
    try:
        kept = _DECODER.decode(position)
    except msgspec.MsgspecError:
        rejects.count(UNREADABLE)
        return {}
    return {(one.peer, one.domain): _exporter(one, rejects) for one in kept}


def _exporter(kept: KeptExporter, rejects: Rejects) -> Exporter:
    templates = {id_: Template(fields, is_options, is_kept=True) for id_, (fields, is_options) in kept.templates.items()}
    sampling = Sampling()
    for what, id_, rate in kept.sampling:
        if what == _OVERALL:
            sampling.overall = rate
        else:
            (sampling.samplers if what == _SAMPLER else sampling.interfaces)[id_] = rate
    return Exporter(rejects, templates, init_ms=kept.init_ms, kept_boot_ms=kept.boot_ms, sampling=sampling)


def _sampling(sampling: Sampling) -> list[tuple[str, int, float]]:
    overall = [] if sampling.overall is None else [(_OVERALL, 0, sampling.overall)]
    samplers = [(_SAMPLER, id_, rate) for id_, rate in sampling.samplers.items()]
    return [*overall, *samplers, *((_INTERFACE, id_, rate) for id_, rate in sampling.interfaces.items())]
