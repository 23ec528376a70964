"""Read the packet sampling of an exporter: how many packets a counted one stands for. Pure.

It is reported in one of four ways, and the nearest to the flow counts: in the flow's own record; for the sampler that the
record names; for the interface that it came in by; for the whole exporter. A sampler, an interface or the whole
exporter is told of in options records (NetFlow 9, IPFIX); NetFlow 5 has it in each datagram's head.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

# Scopes of NetFlow 9's options have numbers of their own; a template holds them negated.
INTERFACE_SCOPE = -2
_INTERVALS = (34, 50)  # one packet in so many
_TAKEN, _SPACE = 305, 306  # so many packets taken, then so many left out
_SIZE, _POPULATION = 309, 310  # so many of so many
_PROBABILITY = 311
_SAMPLERS = (48, 302)
_INTERFACE = 10
_MAX_ENTRIES = 256
_MAX_RATE = float(1 << 32)


@dataclass(slots=True)
class Sampling:
    """The rates of one exporter: a rate of 100 says that one packet in a hundred was looked at.

    Attributes:
        overall: of the whole exporter; None: it reported none.
        samplers: by the sampler's id.
        interfaces: by the number of the interface by which packets come in.
    """

    overall: float | None = None
    samplers: dict[int, float] = field(default_factory=dict)
    interfaces: dict[int, float] = field(default_factory=dict)

    def learn(self, options: Mapping[int, bytes]) -> bool:
        """Take what an options record tells; returns whether it is news. A rate of 0 says that nothing is sampled any more."""
        rate = _declared_rate(options)
        if rate is None:
            return False
        sampler = _first(options, _SAMPLERS)
        interface = _first(options, (INTERFACE_SCOPE, _INTERFACE))
        if sampler is not None:
            return _set(self.samplers, sampler, rate)
        if interface is not None:
            return _set(self.interfaces, interface, rate)
        before, self.overall = self.overall, rate or None
        return before != self.overall

    def rate(self, record: Mapping[int, bytes]) -> float | None:
        """The number of packets that each counted one stands for; None: the exporter does not announce it."""
        if own := _declared_rate(record):
            return own
        sampler = _first(record, _SAMPLERS)
        if sampler is not None and sampler in self.samplers:
            return self.samplers[sampler]
        interface = _first(record, (_INTERFACE,))
        if interface is not None and interface in self.interfaces:
            return self.interfaces[interface]
        if self.overall is not None:
            return self.overall
        rates = set(self.samplers.values())
        # Records of many exporters name no sampler, because there is but one.
        return rates.pop() if sampler is None and len(rates) == 1 else None


def _declared_rate(record: Mapping[int, bytes]) -> float | None:
    """The rate in a record; 0: it says that there is none."""
    declared: list[float] = [value for id_ in _INTERVALS if (value := _number(record.get(id_))) is not None]
    if taken := _number(record.get(_TAKEN)):
        declared.append((taken + (_number(record.get(_SPACE)) or 0)) / taken)
    if (size := _number(record.get(_SIZE))) and (population := _number(record.get(_POPULATION))) is not None:
        declared.append(population / size)
    if share := _float(record.get(_PROBABILITY)):
        declared.append(1 / share)
    sound = [rate for rate in declared if 1 <= rate <= _MAX_RATE]
    if sound:
        return float(sound[0])
    return 0.0 if declared and not any(declared) else None


def _set(rates: dict[int, float], key: int, rate: float) -> bool:
    if not rate:
        return rates.pop(key, None) is not None
    if rates.get(key) == rate or (key not in rates and len(rates) >= _MAX_ENTRIES):
        return False
    rates[key] = rate
    return True


def _first(record: Mapping[int, bytes], ids: tuple[int, ...]) -> int | None:
    return next((value for id_ in ids if (value := _number(record.get(id_))) is not None), None)


def _number(raw: bytes | None) -> int | None:
    return int.from_bytes(raw, "big") if raw and len(raw) <= 8 else None


def _float(raw: bytes | None) -> float | None:
    if raw is None or len(raw) not in {4, 8}:
        return None
    value: float = struct.unpack("!f" if len(raw) == 4 else "!d", raw)[0]
    return value if 0 < value <= 1 else None
