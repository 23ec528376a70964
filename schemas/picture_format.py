"""Recognise a picture format by its first bytes alone: bytes of no known format never reach a decoder. Pure.

A media type is the sender's claim. A library that chooses among all its decoders by content can be made to run any of them.
"""

from enum import StrEnum

HEAD_BYTES = 16
"""How many of the first bytes decide."""


class PictureFormat(StrEnum):
    """The formats that are decoded anywhere."""

    JPEG = "jpeg"
    PNG = "png"
    TIFF = "tiff"
    WEBP = "webp"
    GIF = "gif"
    BMP = "bmp"


_HEADS = (
    (b"\xff\xd8\xff", PictureFormat.JPEG),
    (b"\x89PNG\r\n\x1a\n", PictureFormat.PNG),
    (b"II*\0", PictureFormat.TIFF),
    (b"MM\0*", PictureFormat.TIFF),
    (b"II+\0", PictureFormat.TIFF),
    (b"MM\0+", PictureFormat.TIFF),
    (b"GIF87a", PictureFormat.GIF),
    (b"GIF89a", PictureFormat.GIF),
    (b"BM", PictureFormat.BMP),
)


def picture_format(head: bytes) -> PictureFormat | None:
    """The format of a picture that begins with these bytes; None for every other content."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return PictureFormat.WEBP
    return next((kind for magic, kind in _HEADS if head.startswith(magic)), None)
