"""The one way from bytes to a picture in libvips: an allow-list of formats by content, each with its own loader.

libvips chooses among all loaders it was built with by looking at the bytes, whatever media type a device claims; some of them
run programs (SVG filters, PDF), read other files, or were never meant for foreign bytes. Importing this module blocks all
loaders in this process but those below; and because a loader may be out of reach of that, its choice is checked as well.
"""

from typing import Any

import pyvips

from pipelines.errors import UnreadableImageError
from schemas.picture_format import HEAD_BYTES, PictureFormat, picture_format

_LOADERS = {
    PictureFormat.JPEG: "VipsForeignLoadJpeg",
    PictureFormat.PNG: "VipsForeignLoadPng",
    PictureFormat.TIFF: "VipsForeignLoadTiff",
    PictureFormat.WEBP: "VipsForeignLoadWebp",
    PictureFormat.GIF: "VipsForeignLoadNsgif",
}
_READ = ", ".join(kind.upper() for kind in _LOADERS)


def _block_other_loaders() -> None:
    pyvips.block_untrusted_set(True)
    pyvips.operation_block_set("VipsForeignLoad", True)
    for loader in _LOADERS.values():
        pyvips.operation_block_set(loader, False)


_block_other_loaders()


def open_header(body: bytes, max_pixels: int) -> Any:
    """The picture with its header read and nothing decoded.

    Args:
        body: JPEG, PNG, TIFF, WebP or GIF.
        max_pixels: the largest picture.

    Raises:
        UnreadableImageError: another format, a damaged header, or too large.
    """
    kind = _checked_format(body)
    try:
        head: Any = getattr(pyvips.Image, f"{kind}load_buffer")(body, access="sequential")
    except pyvips.Error as error:
        raise UnreadableImageError(_reason(error)) from error
    if head.width * head.height > max_pixels:
        raise UnreadableImageError(f"a picture of {head.width} x {head.height} px is above the limit of {max_pixels} pixels")
    return head


def shrink(body: bytes, width: int, height: int, max_pixels: int, **options: Any) -> Any:
    """A picture no larger than `width` x `height` px, decoded at no more than it needs.

    Args:
        body: JPEG, PNG, TIFF, WebP or GIF.
        width: px.
        height: px.
        max_pixels: the largest picture.
        options: of libvips' `thumbnail_buffer`.

    Raises:
        UnreadableImageError: another format, damaged, or too large.
    """
    open_header(body, max_pixels)
    try:
        return pyvips.Image.thumbnail_buffer(body, width, height=height, **options)
    except pyvips.Error as error:
        raise UnreadableImageError(_reason(error)) from error


def _checked_format(body: bytes) -> PictureFormat:
    kind = picture_format(body[:HEAD_BYTES])
    if kind not in _LOADERS:
        raise UnreadableImageError(f"not a picture that is read; {_READ} are")
    chosen = pyvips.vips_lib.vips_foreign_find_load_buffer(pyvips.ffi.from_buffer(body), len(body))
    name = "" if chosen == pyvips.ffi.NULL else pyvips.ffi.string(chosen).decode()
    if not name.startswith(_LOADERS[kind]):
        raise UnreadableImageError(f"not a picture: it begins like {kind.upper()} and is none")
    return kind


def _reason(error: pyvips.Error) -> str:
    return f"not a picture: {' '.join(str(error).split())[:120]}"
