"""The process that decodes pictures: its requests, and the target that serves them. See `catchment.runtime.worker.child`."""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from schemas.contract import ImageRedact

_LOCK = threading.Lock()


class InspectRequest(msgspec.Struct, frozen=True, tag="inspect"):
    """Ask for the statistics of a picture, given as bytes or as the path of a file."""

    body: bytes = b""
    path: str = ""


class RedactRequest(msgspec.Struct, frozen=True, tag="redact"):
    """Ask for a picture without what must not be seen; `regions` is what the contract's column says of its regions."""

    redact: ImageRedact
    regions: str | None
    body: bytes = b""
    path: str = ""


PictureRequest = InspectRequest | RedactRequest


@contextmanager
def as_errors() -> Iterator[None]:
    """Within it every warning is raised.

    The filters are the whole process's: two threads that came in and left crosswise would leave them changed for good, and
    then some harmless warning, anywhere, would end a thread. So one waits for the other.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def open_decoder(options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Serve requests of one kind; only the libraries of that kind are loaded.

    Args:
        options: `inspect` or `redact`.
    """
    # Each needs an extra of its own, and a device may have only one of them.
    if options == b"inspect":
        from edge_agent.pictures.statistics import picture_facts  # noqa: PLC0415
    else:
        from edge_agent.pictures.hiding import PictureRedactor  # noqa: PLC0415

    def handle(body: bytes) -> bytes:
        request = msgspec.msgpack.decode(body, type=PictureRequest)
        payload = Path(request.path) if request.path else request.body
        if isinstance(request, InspectRequest):
            return msgspec.msgpack.encode(picture_facts(payload))
        return PictureRedactor(request.redact).redact(payload, request.regions)

    return handle
