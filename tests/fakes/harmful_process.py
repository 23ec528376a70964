"""What a model's process runs where version 2 is a model whose own code leaks or crashes."""

import os
import signal
from collections.abc import Callable

import msgspec

from edge_agent.models.config import LoadOptions, PictureRequest, Request
from edge_agent.models.inference import open_model

_MIB = 1024 * 1024
_LEAKED: list[bytearray] = []
_BAD_VERSION = 2


def _with(harm: Callable[[], None], options: bytes, note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    handle = open_model(options, note)
    is_bad = msgspec.msgpack.decode(options, type=LoadOptions).spec.version == _BAD_VERSION

    def harmful(body: bytes) -> bytes:
        answer = handle(body)
        if is_bad and isinstance(msgspec.msgpack.decode(body, type=Request), PictureRequest):
            harm()
        return answer

    return harmful


def open_leaking(options: bytes, note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Version 2 keeps 1 MB more after each picture."""
    return _with(lambda: _LEAKED.append(bytearray(b"x") * _MIB), options, note)


def open_crashing(options: bytes, note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Version 2 reads where nothing is after each picture."""
    return _with(lambda: os.kill(os.getpid(), signal.SIGSEGV), options, note)
