"""What the broker's answer to a message means for it, and what the end of a connection may mean: over MQTT 5 reason codes."""

import errno
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


# Reasons of a DISCONNECT that have nothing to do with a message: busy, shutting down, keep alive, taken over, moved, by hand, ...
_OTHERWISE = frozenset({0x00, 0x04, 0x89, 0x8B, 0x8D, 0x8E, 0x98, 0x9C, 0x9D, 0x9F, 0xA0})
_UNSPECIFIED = 0x80
_OWN_SIDE = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EBADF, errno.ENOTCONN})


def is_hung_up(code: int, broke_errno: int, *, has_reason: bool) -> bool:
    """Whether the other side ended the connection, perhaps for a message it was sent.

    Args:
        code: of the DISCONNECT; what paho puts in its place where there was none.
        broke_errno: how the socket failed; 0: it was closed.
        has_reason: there was a DISCONNECT from the broker.
    """
    if has_reason:
        return code not in _OTHERWISE
    return code == _UNSPECIFIED and broke_errno not in _OWN_SIDE
