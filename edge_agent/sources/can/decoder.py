"""Decode CAN frames into signals, by cantools and a DBC, and make the samples of one batch.

Signals are decoded by the channel's own databases; without one, a sample is the frame as it is.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

import can
import cantools.database
from cantools.database import Database
from cantools.database.can.message import Message
from cantools.database.can.signal import Signal as DatabaseSignal
from cantools.database.namedsignalvalue import NamedSignalValue

from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.sources.can.source import CanOptions, wants_frames
from schemas.contract import Contract
from schemas.source_names import match_columns

# Decodes multiplexed messages group by group, so that an unknown selector value costs the signals below it and no others.
Value = float | NamedSignalValue


@dataclass(frozen=True, slots=True)
class Decoded:
    """The content of a frame of a multiplexed message.

    Attributes:
        values: signal -> its value, in the order of the message.
        unknown: (selector, raw value) for which the message has no signals.
        missing: signals that lie behind the end of a short frame.
    """

    values: dict[str, Value]
    unknown: tuple[tuple[str, int], ...]
    missing: int


class MultiplexedMessage:
    """A message cut into groups of signals that are there together.

    Args:
        message: as the database has it; `is_multiplexed()`.
    """

    def __init__(self, message: Message) -> None:
        self.name = message.name
        self._root = _part(message, [signal for signal in message.signals if not signal.multiplexer_ids])
        self._selectors = frozenset(signal.name for signal in message.signals if signal.is_multiplexer)
        self._groups: dict[str, dict[int, Message]] = {name: {} for name in self._selectors}
        for selector, groups in self._groups.items():
            below = [s for s in message.signals if s.multiplexer_signal == selector and s.multiplexer_ids]
            for value in sorted({value for signal in below for value in signal.multiplexer_ids or ()}):
                groups[value] = _part(message, [signal for signal in below if value in (signal.multiplexer_ids or ())])

    def decode(self, data: bytes) -> Decoded:
        """The signals of a frame.

        Raises:
            DecodeError: the frame is too short for what is always there.
        """
        values: dict[str, Value] = {}
        unknown: list[tuple[str, int]] = []
        missing = 0
        pending = [self._root]
        while pending:
            part = pending.pop(0)
            found = part.decode(data, decode_choices=True, allow_truncated=True)
            raw = part.decode(data, decode_choices=False, scaling=False, allow_truncated=True)
            assert isinstance(found, dict)
            assert isinstance(raw, dict)
            missing += len(part.signals) - len(found)
            values |= {name: value for name, value in found.items() if isinstance(value, (int, float, NamedSignalValue))}
            for name in self._selectors & raw.keys():
                value = int(raw[name])  # type: ignore[arg-type]  # unscaled values are whole numbers
                group = self._groups[name].get(value)
                if group is not None:
                    pending.append(group)
                elif self._groups[name]:
                    unknown.append((name, value))
        return Decoded(values, tuple(unknown), missing)


def _part(message: Message, signals: list[DatabaseSignal]) -> Message:
    """A message of these signals alone, none of them multiplexed."""
    plain = []
    for signal in signals:
        one = copy.copy(signal)
        one.is_multiplexer, one.multiplexer_ids, one.multiplexer_signal = False, None, None
        plain.append(one)
    return Message(
        message.frame_id, message.name, message.length, plain, is_extended_frame=message.is_extended_frame, is_fd=message.is_fd,
        strict=False,
    )  # fmt: skip


# Identifiers of J1939 and NMEA 2000: which message a 29-bit id names, apart from its priority and who sends it. Pure.
# Source: SAE J1939-21, 5.2: priority (3 bits), extended data page, data page, PDU format (8), PDU specific (8), source
# address (8).
# A database names messages with this address: nobody sends with it (SAE J1939-81, the null address).
NULL_ADDRESS = 0xFE
_FIRST_BROADCAST_FORMAT = 0xF0
_CLASSIC_BYTES = 8
# Groups of NMEA 2000 that may be longer than a frame: 126,208 to 131,071.
_FAST_PACKETS = range(0x1ED00, 0x20000)


def group_number(can_id: int) -> int:
    """The parameter group number (PGN) of an extended id. Below PDU format 240 the PDU specific byte is who it is for."""
    pdu_format = can_id >> 16 & 0xFF
    pages_and_format = can_id >> 8 & 0x3FF00
    return pages_and_format if pdu_format < _FIRST_BROADCAST_FORMAT else pages_and_format | (can_id >> 8 & 0xFF)


def is_fast_packet(frame: "Frame") -> bool:
    """Whether a message of more than eight bytes comes in pieces, each a frame of this id: so NMEA 2000 sends its own groups."""
    return len(frame.data) <= _CLASSIC_BYTES and group_number(frame.arbitration_id) in _FAST_PACKETS


def source_address(can_id: int) -> int:
    """Return the sender's address."""
    return can_id & 0xFF


def group_mask(can_id: int) -> int:
    """The bits of an id that its group number is made of, for a kernel filter."""
    return 0x03FF_0000 if (can_id >> 16 & 0xFF) < _FIRST_BROADCAST_FORMAT else 0x03FF_FF00


# Left out as asked for, so never a warning.
FAST_PACKET = "report: piece of a message of several frames (NMEA 2000 fast packet), which are not put together"
UNKNOWN = "report: frame of no message asked for"
_J1939 = "j1939"


class Frame(Protocol):
    """The interface of python-can's messages."""

    arbitration_id: int
    is_extended_id: bool
    is_error_frame: bool
    is_remote_frame: bool
    data: bytearray


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of one frame.

    Attributes:
        choice: the value's name, where the DBC has one.
        sender: the source address of a J1939 or NMEA 2000 frame.
    """

    channel: str
    can_id: int
    message: str
    signal: str
    value: float
    unit: str | None
    choice: str | None
    sender: int | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """A message that is decoded: whole, or in groups where it is multiplexed; and the units of the signals asked for."""

    message: Message
    groups: MultiplexedMessage | None
    units: dict[str, str | None]


class SignalDecoder:
    """Decodes frames of one channel.

    Args:
        files: databases; a frame that two of them have is decoded by the first.
        patterns: of `message.signal`.
        j1939: which extended messages are matched by group number, apart from priority and sender: "auto" those that the
            database marks so or names with the null address, "yes" all, "no" none.

    Raises:
        ConfigError: a file cannot be read, or nothing in it matches.
    """

    def __init__(self, files: Sequence[str], patterns: Sequence[str], j1939: str = "auto") -> None:
        self._messages: dict[tuple[int, bool], _Known] = {}
        self._groups: dict[int, _Known] = {}
        for file in files:
            for message in _load(file).messages:
                self._add(message, patterns, j1939)
        if not self._messages:
            raise ConfigError(f"source 'can': no signal in {', '.join(files)} matches {', '.join(patterns)}")

    def _add(self, message: Message, patterns: Sequence[str], j1939: str) -> None:
        names = [signal for signal in message.signals if _is_requested(message.name, signal.name, patterns)]
        if not names:
            return
        groups = MultiplexedMessage(message) if message.is_multiplexed() else None
        known = _Known(message, groups, {signal.name: signal.unit for signal in names})
        self._messages.setdefault((message.frame_id, message.is_extended_frame), known)
        if message.is_extended_frame and _is_group(message, j1939):
            self._groups.setdefault(group_number(message.frame_id), known)

    @property
    def filters(self) -> list[tuple[int, int, bool]]:
        """Id, mask, and whether it is an extended one, of each message that is decoded."""
        by_group = [(known.message.frame_id, group_mask(known.message.frame_id), True) for known in self._groups.values()]
        return by_group + [(id_, 0x1FFF_FFFF if extended else 0x7FF, extended) for id_, extended in self._messages]

    def decode(self, frame: Frame, channel: str, rejects: Rejects) -> list[Signal]:
        """The signals of a frame; none, counted, where it has none that is asked for."""
        if frame.is_error_frame or frame.is_remote_frame:
            rejects.count("row: error frame" if frame.is_error_frame else "row: remote frame")
            return []
        known, sender = self._messages.get((frame.arbitration_id, frame.is_extended_id)), None
        if frame.is_extended_id and (by_group := self._groups.get(group_number(frame.arbitration_id))) is not None:
            known, sender = known or by_group, source_address(frame.arbitration_id)
        if known is None:
            rejects.count(UNKNOWN)
            return []
        if sender is not None and known.message.length > _CLASSIC_BYTES and is_fast_packet(frame):
            # The frame begins with a counter, and what follows it is a piece of the message: its signals would be made up.
            rejects.count(FAST_PACKET)
            return []
        try:
            values = _values(known, bytes(frame.data), rejects)
        except (cantools.database.DecodeError, ValueError, KeyError, TypeError) as error:
            rejects.count(f"row: {known.message.name} cannot be decoded", error)
            return []
        head = (channel, frame.arbitration_id, known.message.name)
        return [_signal(head, name, value, known.units[name], sender) for name, value in values.items() if name in known.units]


def _values(known: _Known, data: bytes, rejects: Rejects) -> dict[str, float | NamedSignalValue]:
    if known.groups is not None:
        decoded = known.groups.decode(data)
        for selector, value in decoded.unknown:
            # Its own signals are lost, and with them nothing else of the frame.
            rejects.count(f"report: {known.message.name}: multiplexer {selector} has a value without signals", value)
        if decoded.missing:
            rejects.count(f"cell: {known.message.name}: signals behind the end of a short frame")
        return decoded.values
    found = known.message.decode(data, decode_choices=True, allow_truncated=True)
    assert isinstance(found, dict)
    if known.units.keys() - found.keys():
        rejects.count(f"cell: {known.message.name}: signals behind the end of a short frame")
    return {name: value for name, value in found.items() if isinstance(value, (int, float, NamedSignalValue))}


def _is_group(message: Message, j1939: str) -> bool:
    if j1939 != "auto":
        return j1939 == "yes"
    return message.protocol == _J1939 or source_address(message.frame_id) == NULL_ADDRESS


@dataclass(slots=True)
class SignalRows:
    """Signals gathered for one batch."""

    contract: Contract
    times_us: list[int] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)

    def add(self, time_us: int, signals: Sequence[Signal]) -> None:
        """The signals of one frame."""
        self.times_us += [time_us] * len(signals)
        self.signals += signals

    def __len__(self) -> int:
        return len(self.signals)

    def batch(self, position: bytes | None, *, agent_clock: bool) -> SampleBatch | None:
        """One batch of all; None of nothing."""
        if not self.signals:
            return None
        columns: dict[str, Sequence[Scalar]] = {
            "channel": [signal.channel for signal in self.signals],
            "can_id": [signal.can_id for signal in self.signals],
            "source_address": [signal.sender for signal in self.signals],
            "message": [signal.message for signal in self.signals],
            "signal": [signal.signal for signal in self.signals],
            "value": [signal.value for signal in self.signals],
            "unit": [signal.unit for signal in self.signals],
            "choice": [signal.choice for signal in self.signals],
        }
        matched = match_columns(columns, self.contract.columns, {})
        known = {column.name: columns[name] for name, column in matched.items()}
        return SampleBatch(self.times_us, known, None, position, agent_clock)


def _load(file: str) -> Database:
    try:
        found = cantools.database.load_file(file)
    except OSError as error:
        raise ConfigError(f"source 'can': dbc {file} cannot be read ({error.strerror}); correct `dbc`") from error
    except Exception as error:
        raise ConfigError(f"source 'can': dbc {file} is not understood: {str(error)[:300]}") from error
    if not isinstance(found, Database):
        raise ConfigError(f"source 'can': dbc {file} describes diagnostics, not messages")
    return found


def _is_requested(message: str, signal: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(f"{message}.{signal}", pattern) for pattern in patterns)


def _signal(
    head: tuple[str, int, str], name: str, value: float | NamedSignalValue, unit: str | None, sender: int | None
) -> Signal:
    if isinstance(value, NamedSignalValue):
        return Signal(*head, name, float(value.value), unit, str(value), sender)
    return Signal(*head, name, float(value), unit, None, sender)


@dataclass(slots=True)
class FrameRows:
    """Frames gathered for one batch, undecoded."""

    contract: Contract
    times_us: list[int] = field(default_factory=list)
    frames: list[tuple[str, can.Message]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, position: bytes | None, *, agent_clock: bool) -> SampleBatch | None:
        """One batch of all; None of nothing."""
        if not self.frames:
            return None
        ids = [(frame.arbitration_id, frame.is_extended_id) for _, frame in self.frames]
        columns: dict[str, Sequence[Scalar]] = {
            "channel": [channel for channel, _ in self.frames],
            "can_id": [id_ for id_, _ in ids],
            "is_extended": [extended for _, extended in ids],
            "group_number": [group_number(id_) if extended else None for id_, extended in ids],
            "source_address": [source_address(id_) if extended else None for id_, extended in ids],
            "is_fd": [frame.is_fd for _, frame in self.frames],
            "is_remote": [frame.is_remote_frame for _, frame in self.frames],
            "data": [bytes(frame.data) for _, frame in self.frames],
        }
        matched = match_columns(columns, self.contract.columns, {})
        known = {column.name: columns[name] for name, column in matched.items()}
        return SampleBatch(self.times_us, known, None, position, agent_clock)


class FrameSampler:
    """Turns frames into rows.

    Args:
        options: databases, for all channels and for each.
        contract: of signals (`can_signal`), or of frames as they are (`can_frame`).
        rejects: where frames are counted that give nothing.

    Attributes:
        matched: frames that gave rows.

    Raises:
        ConfigError: a database cannot be read.
    """

    def __init__(self, options: CanOptions, contract: Contract, rejects: Rejects) -> None:
        self._contract = contract
        self._rejects = rejects
        self._is_raw = wants_frames(contract)
        self._decoder = SignalDecoder(options.dbc, options.signals, options.j1939) if options.dbc else None
        self._by_channel = {
            channel: SignalDecoder(files, options.signals, options.j1939) for channel, files in options.dbc_by_channel.items()
        }
        self.matched = 0
        self.rows: SignalRows | FrameRows = self._new_rows()

    def begin(self) -> None:
        """Start the next batch."""
        self.rows = self._new_rows()

    def take(self, time_us: int, frame: can.Message, channel: str) -> None:
        """One frame."""
        if isinstance(self.rows, FrameRows):
            if frame.is_error_frame:
                self._rejects.count("row: error frame")
                return
            self.rows.times_us.append(time_us)
            self.rows.frames.append((channel, frame))
            self.matched += 1
            return
        decoder = self._by_channel.get(channel, self._decoder)
        if decoder is None:
            self._rejects.count(UNKNOWN)
            return
        signals = decoder.decode(frame, channel, self._rejects)
        self.matched += bool(signals)
        self.rows.add(time_us, signals)

    def filters(self, channel: str) -> list[tuple[int, int, bool]]:
        """Kernel filters: id, mask, whether extended; empty where every frame is wanted."""
        decoder = self._by_channel.get(channel, self._decoder)
        return [] if self._is_raw or decoder is None else decoder.filters

    def _new_rows(self) -> SignalRows | FrameRows:
        return FrameRows(self._contract) if self._is_raw else SignalRows(self._contract)
