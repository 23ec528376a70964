"""The target of the process that decodes pictures. See `catchment.runtime.worker.child`."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_agent.pictures.messages import InspectRequest, PictureRequest


def open_decoder(options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Serve requests of one kind; only the libraries of that kind are loaded.

    Args:
        options: `inspect` or `redact`.
    """
    # Each needs an extra of its own, and a device may have only one of them.
    if options == b"inspect":
        from edge_agent.inspect.picture import picture_facts  # noqa: PLC0415
    else:
        from edge_agent.redaction.picture import PictureRedactor  # noqa: PLC0415

    def handle(body: bytes) -> bytes:
        request = msgspec.msgpack.decode(body, type=PictureRequest)
        payload = Path(request.path) if request.path else request.body
        if isinstance(request, InspectRequest):
            return msgspec.msgpack.encode(picture_facts(payload))
        return PictureRedactor(request.redact).redact(payload, request.regions)

    return handle
