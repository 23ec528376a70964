"""What the broker's answer to a message means for it: a pure decision over MQTT 5 reason codes."""

from enum import Enum, auto


class Verdict(Enum):
    """What happens to the message next."""

    TAKEN = auto()  # the broker has it; now a receipt is awaited
    NOT_SENT = auto()  # nobody will get it: send it again after a while, and nothing else meanwhile
    NEVER = auto()  # this very message will be refused again: put it aside


NO_SUBSCRIBERS = 0x10
_NOT_SENT = frozenset({NO_SUBSCRIBERS, 0x87, 0x97})  # nobody listens, not authorised, over a quota
_NEVER = frozenset({0x90, 0x95, 0x99})  # topic invalid, packet too large, payload format invalid
MAX_TRIES = 8


def judge(code: int, tries: int) -> Verdict:
    """Judge a PUBACK.

    Args:
        code: its MQTT 5 reason code.
        tries: how often this message was sent, this time included.
    """
    if code == 0:
        return Verdict.TAKEN
    if code in _NEVER or (code not in _NOT_SENT and tries >= MAX_TRIES):
        return Verdict.NEVER
    return Verdict.NOT_SENT
