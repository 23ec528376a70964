"""What the agent and the model's process say to each other."""

import msgspec

from schemas.model import ModelSpec

DECODED = b"decoded"
"""The note of the model's process once a picture is decoded: what happens after it is the model's doing, not the picture's."""


class LoadOptions(msgspec.Struct, frozen=True):
    """What the model's process loads."""

    path: str
    spec: ModelSpec
    labels: tuple[str, ...] = ()


class GoldenRequest(msgspec.Struct, frozen=True, tag="golden"):
    """Ask for the answers to the golden input: a list of numbers."""


class PictureRequest(msgspec.Struct, frozen=True, tag="picture"):
    """Ask for label and score of a picture, given as bytes or, where it is large, as the path of a file."""

    body: bytes = b""
    path: str = ""


Request = GoldenRequest | PictureRequest
