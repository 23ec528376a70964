"""CAN frames into signals, by cantools and a DBC."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol

import cantools.database
from cantools.database import Database
from cantools.database.can.message import Message
from cantools.database.namedsignalvalue import NamedSignalValue

from edge_agent.capture.batch import SampleBatch, Scalar
from edge_agent.capture.rejects import Rejects
from edge_agent.errors import ConfigError
from schemas.contract import Contract
from schemas.source_names import match_columns

# Left out as asked for, so never a warning.
UNKNOWN = "report: frame of no message asked for"


class Frame(Protocol):
    """What python-can hands out."""

    arbitration_id: int
    is_extended_id: bool
    is_error_frame: bool
    is_remote_frame: bool
    data: bytearray


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of one frame. `choice`: the value's name, where the DBC has one."""

    can_id: int
    message: str
    signal: str
    value: float
    unit: str | None
    choice: str | None


class SignalDecoder:
    """Decodes frames.

    Args:
        files: databases; a frame that two of them have is decoded by the first.
        patterns: of `message.signal`.

    Raises:
        ConfigError: a file cannot be read, or nothing in it matches.
    """

    def __init__(self, files: Sequence[str], patterns: Sequence[str]) -> None:
        self._messages: dict[tuple[int, bool], tuple[Message, dict[str, str | None]]] = {}
        for file in files:
            for message in _load(file).messages:
                names = [signal for signal in message.signals if _is_asked(message.name, signal.name, patterns)]
                if names:
                    units = {signal.name: signal.unit for signal in names}
                    self._messages.setdefault((message.frame_id, message.is_extended_frame), (message, units))
        if not self._messages:
            raise ConfigError(f"source 'can': no signal in {', '.join(files)} matches {', '.join(patterns)}")

    @property
    def filters(self) -> list[tuple[int, bool]]:
        """Id, and whether it is an extended one, of each message that is decoded."""
        return list(self._messages)

    def decode(self, frame: Frame, rejects: Rejects) -> list[Signal]:
        """The signals of a frame; none, counted, where it has none that is asked for."""
        if frame.is_error_frame or frame.is_remote_frame:
            rejects.count("row: error frame" if frame.is_error_frame else "row: remote frame")
            return []
        found = self._messages.get((frame.arbitration_id, frame.is_extended_id))
        if found is None:
            rejects.count(UNKNOWN)
            return []
        message, units = found
        try:
            values = message.decode(bytes(frame.data), decode_choices=True, allow_truncated=True)
        except (cantools.database.DecodeError, ValueError, KeyError, TypeError) as error:
            rejects.count(f"row: {message.name} cannot be decoded", error)
            return []
        assert isinstance(values, dict)
        return [
            _signal(frame.arbitration_id, message.name, name, value, units[name])
            for name, value in values.items()
            if name in units and isinstance(value, (int, float, NamedSignalValue))
        ]


@dataclass(slots=True)
class SignalRows:
    """Signals gathered for one batch."""

    channel: str
    contract: Contract
    times_us: list[int] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)

    def add(self, time_us: int, signals: Sequence[Signal]) -> None:
        """The signals of one frame."""
        self.times_us += [time_us] * len(signals)
        self.signals += signals

    def batch(self, position: bytes | None, *, agent_clock: bool) -> SampleBatch | None:
        """One batch of all; None of nothing."""
        if not self.signals:
            return None
        columns: dict[str, Sequence[Scalar]] = {
            "channel": [self.channel] * len(self.signals),
            "can_id": [signal.can_id for signal in self.signals],
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


def _is_asked(message: str, signal: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(f"{message}.{signal}", pattern) for pattern in patterns)


def _signal(can_id: int, message: str, name: str, value: float | NamedSignalValue, unit: str | None) -> Signal:
    if isinstance(value, NamedSignalValue):
        return Signal(can_id, message, name, float(value.value), unit, str(value))
    return Signal(can_id, message, name, float(value), unit, None)
