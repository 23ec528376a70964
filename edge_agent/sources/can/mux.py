"""Decodes multiplexed messages group by group, so that an unknown selector value costs the signals below it and no others."""

import copy
from dataclasses import dataclass

from cantools.database.can.message import Message
from cantools.database.can.signal import Signal
from cantools.database.namedsignalvalue import NamedSignalValue

Value = float | NamedSignalValue


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a frame of a multiplexed message holds.

    Attributes:
        values: signal -> its value, in the order of the message.
        unknown: (selector, raw value) for which the message has no signals.
    """

    values: dict[str, Value]
    unknown: tuple[tuple[str, int], ...]


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
        pending = [self._root]
        while pending:
            part = pending.pop(0)
            found = part.decode(data, decode_choices=True, allow_truncated=True)
            raw = part.decode(data, decode_choices=False, scaling=False, allow_truncated=True)
            assert isinstance(found, dict)
            assert isinstance(raw, dict)
            values |= {name: value for name, value in found.items() if isinstance(value, (int, float, NamedSignalValue))}
            for name in self._selectors & raw.keys():
                value = int(raw[name])  # type: ignore[arg-type]  # unscaled values are whole numbers
                group = self._groups[name].get(value)
                if group is not None:
                    pending.append(group)
                elif self._groups[name]:
                    unknown.append((name, value))
        return Decoded(values, tuple(unknown))


def _part(message: Message, signals: list[Signal]) -> Message:
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
