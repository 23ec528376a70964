"""The names of things: devices, streams, digests, epochs and the key of one sample; and how they are written in JSON.

Each is validated at birth, so the code behind never checks a string again and never builds a path from free text.
"""

import re
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from schemas.errors import IdError

_DEVICE = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_STREAM = re.compile(r"[a-z][a-z0-9_]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")

# Common names of certificates that the broker's access rules give the core's rights to (deploy/broker/acl).
_ROLE = re.compile(r"core|models|bridge-.*")

EPOCH_ENTROPY_BITS = 20
MAX_EPOCH = 2**63 - 1
MAX_SEQ = 2**63 - 1


class DeviceId(str):
    """A device's name, as its certificate's common name gives it: ``^[a-z0-9][a-z0-9-]{0,62}$``.

    Raises:
        IdError: the text is not of that form.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text, then be it."""
        if not _DEVICE.fullmatch(text):
            raise IdError(f"device id {text[:80]!r} must be 1-63 of a-z, 0-9 and '-', not starting with '-'")
        return super().__new__(cls, text)


def is_role_name(text: str) -> bool:
    """Whether a name is one of the core's roles at the broker: a certificate with it has the core's rights."""
    return _ROLE.fullmatch(text.strip().lower()) is not None


def enrolled_id(text: str) -> DeviceId:
    """The id of a device that is to be enrolled; data of a device that has another's name already is not judged by this.

    Raises:
        IdError: the text is not a device id, or is the name of one of the core's roles.
    """
    device = DeviceId(text)
    if is_role_name(device):
        raise IdError(
            f"device id {device!r} is a name of the core's own: its certificate would have the core's rights at the broker;"
            f" give the device another, as in dev-{device}"
        )
    return device


class StreamName(str):
    """A stream's name, equal to its contract's: ``^[a-z][a-z0-9_]{0,62}$``.

    Raises:
        IdError: the text is not of that form.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text, then be it."""
        if not _STREAM.fullmatch(text):
            raise IdError(f"stream name {text[:80]!r} must be 1-63 of a-z, 0-9 and '_', starting with a letter")
        return super().__new__(cls, text)


class Digest(str):
    """The SHA-256 of some bytes as 64 lower-case hexadecimal digits.

    Raises:
        IdError: the text is not of that form.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text, then be it."""
        if not _DIGEST.fullmatch(text):
            raise IdError(f"digest {text[:80]!r} must be 64 lower-case hexadecimal digits (SHA-256)")
        return super().__new__(cls, text)


@dataclass(frozen=True, slots=True, order=True)
class SampleKey:
    """The key of one sample, everywhere and permanently."""

    device: DeviceId
    stream: StreamName
    epoch: int
    seq: int

    def __post_init__(self) -> None:
        if not 0 <= self.epoch <= MAX_EPOCH or not 0 <= self.seq <= MAX_SEQ:
            raise IdError(f"epoch {self.epoch} and seq {self.seq} must be within 0 and 2^63-1")


def next_epoch(previous: int, now_ms: int, entropy: int) -> int:
    """The epoch for a spool that is being opened: above every earlier one it remembers, unlike any it forgot.

    Milliseconds since 1970 shifted by 20 random bits: a spool that lost its file, on a device whose clock jumped back,
    still does not meet an old epoch again (1 in a million per same millisecond).

    Args:
        previous: the highest epoch this spool has used, 0 for none.
        now_ms: wall clock, milliseconds since 1970.
        entropy: random integer; its low 20 bits are used.
    """
    fresh = (max(now_ms, 0) << EPOCH_ENTROPY_BITS) | (entropy & ((1 << EPOCH_ENTROPY_BITS) - 1))
    return max(previous + 1, fresh)


def encode_json(value: Any) -> bytes:
    """The JSON bytes; checked names (`DeviceId`, `StreamName`, `Digest`, …) as the texts they are.

    Raises:
        TypeError: something in it is no part of the language.
    """
    return msgspec.json.encode(value, enc_hook=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} is no part of the language")
