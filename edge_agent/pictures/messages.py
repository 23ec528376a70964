"""What the agent and the process that decodes pictures say to each other."""

import msgspec

from schemas.redaction import ImageRedact


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
