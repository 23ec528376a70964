"""JSON of the shared language's objects. Its names are checked texts: a kind of str that msgspec asks about."""

from typing import Any

import msgspec


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
