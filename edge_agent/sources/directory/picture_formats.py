"""Read the heads of pictures and find out whether their ends are there, by their formats; nothing is decoded.

The head gives media type, width and height of JPEG, PNG, TIFF, BigTIFF, GIF, BMP and WebP. The end is known for these and
for MP4 and its kin. A file that is still being copied can look finished: its size stands still while a network hesitates,
or was set before the content came. A format's own lengths must lie within the file.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_MAX_SEGMENTS = 4096
_MAX_TAGS = 4096
_BMP_BYTES = 26
_WIDTH_TAG, _HEIGHT_TAG = 256, 257
# Start-of-frame markers: C0..CF without C4 (Huffman tables), C8 (reserved) and CC (arithmetic tables).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})

_CHUNK_BYTES = 256 * 1024
_MAGIC_BYTES = 16
_MAX_STEPS = 100_000
_MAX_DIRECTORIES = 4_096
_MAX_ENTRIES = 65_536
_MAX_OFFSETS = 16_000_000
_MAGICS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF87a", b"GIF89a", b"BM", b"RIFF")
_BOX_SUFFIXES = (".mp4", ".mov", ".heic", ".avif", ".jp2")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".svs", ".gif", ".bmp", ".webp", *_BOX_SUFFIXES)
# A marker within a JPEG's entropy-coded data: not a stuffed FF, a restart, or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_APPLICATION = range(0xE0, 0xF0)
# What an application's segment begins with: JFIF, Exif, ICC_PROFILE, http://ns.adobe.com/xap/1.0/
_JPEG_SIGNATURE = re.compile(rb"[ -~]{3,80}\0|Adobe")
_SIGNATURE_BYTES = 96
# No compressed picture ends in so many NUL bytes.
_COMPRESSED_END_BYTES = 64
# Of JPEG 2000.
_CODESTREAM_END = b"\xff\xd9"
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
# Bytes of a TIFF value by its type.
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TIFF_NUMBERS = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
# Where the parts of a picture lie, and how long each is: strips, tiles, an embedded JPEG.
_TIFF_PARTS = ((273, 279), (324, 325), (513, 514))
_TIFF_DIRECTORIES = (330, 34665)


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The facts in the first bytes; width and height in px are None where they cannot be read."""

    media_type: str
    width: int | None = None
    height: int | None = None


def read_image_header(file: BinaryIO) -> ImageHeader | None:
    """Look at a file that stands at its start; None if it is none of the known kinds. Never raises on bad content."""
    magic = file.read(16)
    try:
        if magic.startswith(b"\xff\xd8\xff"):
            return ImageHeader("image/jpeg", *_jpeg_size(file))
        if magic.startswith(b"\x89PNG\r\n\x1a\n"):
            return ImageHeader("image/png", *_png_size(file))
        if magic[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return ImageHeader("image/tiff", *_tiff_size(file, magic))
        return _plain(magic + file.read(16))
    except (struct.error, OverflowError):
        return ImageHeader(_media_type(magic))


def _plain(head: bytes) -> ImageHeader | None:
    """Formats that tell their size where they begin."""
    if head.startswith((b"GIF87a", b"GIF89a")):
        return ImageHeader("image/gif", *struct.unpack_from("<HH", head, 6))
    if head.startswith(b"BM") and len(head) >= _BMP_BYTES:
        width, height = struct.unpack_from("<ii", head, 18)
        return ImageHeader("image/bmp", width, abs(height))  # below 0: the first row is the topmost
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return ImageHeader("image/webp", *_webp_size(head))
    return None


def _webp_size(head: bytes) -> tuple[int | None, int | None]:
    match head[12:16]:
        case b"VP8X":
            return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None, None


def _media_type(magic: bytes) -> str:
    known = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"GI": "gif", b"RI": "webp"}
    return f"image/{known.get(magic[:2], 'tiff')}"


def _png_size(file: BinaryIO) -> tuple[int | None, int | None]:
    file.seek(12)
    kind, width, height = struct.unpack(">4sII", file.read(12))
    return (width, height) if kind == b"IHDR" else (None, None)


def _jpeg_size(file: BinaryIO) -> tuple[int | None, int | None]:
    file.seek(2)
    for _ in range(_MAX_SEGMENTS):
        marker = _next_marker(file)
        if marker in _BARE_MARKERS:
            continue
        if marker is None or marker == 0xDA:  # the picture's data begin: no frame header came
            return None, None
        (length,) = struct.unpack(">H", file.read(2))
        if marker in _FRAME_MARKERS:
            _precision, height, width = struct.unpack(">BHH", file.read(5))
            return width, height
        file.seek(length - 2, 1)
    return None, None


def _next_marker(file: BinaryIO) -> int | None:
    if file.read(1) != b"\xff":
        return None
    byte = b"\xff"
    while byte == b"\xff":  # any number of fill bytes may stand before the marker
        byte = file.read(1)
    return byte[0] if byte else None


def _tiff_size(file: BinaryIO, magic: bytes) -> tuple[int | None, int | None]:
    order = "<" if magic[:2] == b"II" else ">"
    big = magic[2:4] in (b"+\0", b"\0+")
    (first,) = struct.unpack(order + ("Q" if big else "I"), magic[8:16] if big else magic[4:8])
    file.seek(first)
    (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    sizes: dict[int, int | None] = {}
    for _ in range(min(count, _MAX_TAGS)):
        tag, kind, _values, raw = entry.unpack(file.read(entry.size))
        if tag in (_WIDTH_TAG, _HEIGHT_TAG):
            sizes[tag] = _number(order, kind, raw)
    return sizes.get(_WIDTH_TAG), sizes.get(_HEIGHT_TAG)


def _number(order: str, kind: int, raw: bytes) -> int | None:
    form = {3: "H", 4: "I", 16: "Q"}.get(kind)  # SHORT, LONG, LONG8
    if form is None:
        return None
    (value,) = struct.unpack_from(order + form, raw)
    return int(value)


class _CutShortError(Exception):
    """The file ends before what it says of itself."""


def has_end(file: BinaryIO, size: int, name: str = "") -> bool | None:
    """Whether a picture has its end; None where its format is not known, or does not tell.

    Args:
        file: open for reading, anywhere.
        size: of the file.
        name: of the file; where it is a picture's, nothing and NUL bytes are no picture yet.
    """
    file.seek(0)
    magic = file.read(_MAGIC_BYTES)
    if magic and len(magic) < _MAGIC_BYTES and any(known.startswith(magic) for known in _MAGICS):
        return False
    is_named_boxes = len(magic) < _MAGIC_BYTES and name.lower().endswith(_BOX_SUFFIXES)
    if is_named_boxes or (not magic.strip(b"\0") and name.lower().endswith(_SUFFIXES)):
        return False  # nothing written yet, perhaps space that was allocated, or too little for a first box
    try:
        return _judge(file, size, magic)
    except (_CutShortError, struct.error, OverflowError):
        return False


def _judge(file: BinaryIO, size: int, magic: bytes) -> bool | None:
    if magic.startswith(b"\xff\xd8\xff"):
        return _jpeg(file, size)
    if magic.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(file, size)
    if magic[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _Tiff(file, size, magic).has_end()
    if magic.startswith((b"GIF87a", b"GIF89a")):
        return _gif(file)
    return _boxes(file, size) if magic[4:8] in (b"ftyp", b"jP  ") else _by_size(file, size, magic)


def _by_size(file: BinaryIO, size: int, magic: bytes) -> bool | None:
    """Formats that tell their size where they begin."""
    if magic.startswith(b"RIFF"):
        end = 8 + int(struct.unpack_from("<I", magic, 4)[0])
        is_picture = magic[8:12] == b"WEBP"
        return size >= end and not (is_picture and _is_empty(file, end))
    declared_bytes = int(struct.unpack_from("<I", magic, 2)[0]) if magic.startswith(b"BM") else 0
    return size >= declared_bytes if declared_bytes > _MAGIC_BYTES else None


def _is_empty(file: BinaryIO, end: int) -> bool:
    """Whether compressed content ends in NUL bytes: its size was set before it came."""
    file.seek(max(0, end - _COMPRESSED_END_BYTES))
    return not file.read(_COMPRESSED_END_BYTES).strip(b"\0")


def _exactly(file: BinaryIO, count: int) -> bytes:
    found = file.read(count)
    if len(found) < count:
        raise _CutShortError
    return found


def _jpeg(file: BinaryIO, size: int) -> bool | None:
    """Segment by segment, so that the end of a thumbnail within one is not taken for the picture's.

    Of a file whose segments make no sense, as those of a maker's own do, the last two bytes decide.
    """
    file.seek(2)
    is_strange = False
    try:
        for _ in range(_MAX_STEPS):
            if _exactly(file, 1) != b"\xff":
                is_strange = True
                _pass_to_marker(file)  # stray bytes, which decoders skip, too
                continue
            marker = 0xFF
            while marker == 0xFF:
                marker = _exactly(file, 1)[0]
            if marker == _JPEG_END:
                return True
            if marker in _JPEG_BARE:
                continue
            (length,) = struct.unpack(">H", _exactly(file, 2))
            at = file.tell()
            is_strange = is_strange or (marker in _JPEG_APPLICATION and not _JPEG_SIGNATURE.match(file.read(_SIGNATURE_BYTES)))
            file.seek(at)
            _exactly(file, max(0, length - 2))
            if marker == _JPEG_SCAN:
                _pass_to_marker(file)
    except _CutShortError:
        file.seek(size - 2)
        return is_strange and file.read(2) == bytes((0xFF, _JPEG_END))
    return None


def _pass_to_marker(file: BinaryIO) -> None:
    """To the next marker, as behind entropy-coded data."""
    before = b""
    while True:
        piece = file.read(_CHUNK_BYTES)
        if not piece:
            raise _CutShortError
        text = before + piece
        found = _JPEG_MARKER.search(text)
        if found:
            file.seek(found.start() - len(text), 1)
            return
        before = text[-1:]


def _png(file: BinaryIO, size: int) -> bool | None:
    at = 8
    for _ in range(_MAX_STEPS):
        file.seek(at)
        length, kind = struct.unpack(">I4s", _exactly(file, 8))
        at += 12 + length
        if not kind.isalpha() or at > size:
            return False
        if kind == b"IEND":
            return True
    return None


def _gif(file: BinaryIO) -> bool | None:
    file.seek(10)
    _pass_colours(file, 2)
    for _ in range(_MAX_STEPS):
        kind = _exactly(file, 1)
        if kind == b"\x3b":
            return True
        if kind == b"\x21":
            _exactly(file, 1)
        elif kind == b"\x2c":
            _exactly(file, 8)
            _pass_colours(file, 0)
            _exactly(file, 1)
        else:
            return False
        while length := _exactly(file, 1)[0]:
            _exactly(file, length)
    return None


def _pass_colours(file: BinaryIO, more: int) -> None:
    """Flags, so many more bytes, and the table of colours that the flags tell of."""
    flags = _exactly(file, 1)[0]
    _exactly(file, more)
    if flags & 0x80:
        _exactly(file, 3 * 2 ** ((flags & 7) + 1))


def _boxes(file: BinaryIO, size: int) -> bool | None:
    """MP4, MOV, HEIF, AVIF, JPEG 2000: each box lies within the file; one says what is in it, and one holds it.

    A video may be an index alone, as the first segment of a stream is.
    """
    at, kinds = 0, set[bytes]()
    for _ in range(_MAX_STEPS):
        if at == size:
            return _has_parts(file, size, kinds)
        file.seek(at)
        length, kind = struct.unpack(">I4s", _exactly(file, 8))
        if length == 1:
            (length,) = struct.unpack(">Q", _exactly(file, 8))
        if not kind.strip(b"\0"):
            return False
        kinds.add(kind)
        if kind == b"meta" and b"idat" in file.read(min(length, _CHUNK_BYTES)):
            kinds.add(b"mdat")  # a small picture within its index
        if length == 0:  # to the end of the file, wherever that is
            return _has_parts(file, size, kinds) if kind == b"jp2c" else _has_index(kinds) or None
        if length < 8 or at + length > size:
            return False
        at += length
    return None


def _has_index(kinds: set[bytes]) -> bool:
    return not kinds.isdisjoint((b"moov", b"meta", b"jp2h"))


def _has_parts(file: BinaryIO, size: int, kinds: set[bytes]) -> bool | None:
    if b"jp2h" in kinds:
        file.seek(size - 2)
        return b"jp2c" in kinds and file.read(2) == _CODESTREAM_END
    if b"moov" not in kinds and b"meta" in kinds:
        return b"mdat" in kinds and not _is_empty(file, size)
    return _has_index(kinds) and (b"mdat" in kinds or None)


class _Tiff:
    """The directories of a TIFF or BigTIFF, and what they point at."""

    def __init__(self, file: BinaryIO, size: int, magic: bytes) -> None:
        self._file = file
        self._size = size
        self._order = "<" if magic[:2] == b"II" else ">"
        self._is_big = magic[2:4] in (b"+\0", b"\0+")
        self._word = "Q" if self._is_big else "I"
        (self._first,) = struct.unpack_from(self._order + self._word, magic, 8 if self._is_big else 4)
        self._offsets_left = _MAX_OFFSETS

    def has_end(self) -> bool | None:
        """Whether all of it lies within the file."""
        waiting, seen = [self._first], set[int]()
        if not self._first:
            return False  # written when all else is
        while waiting:
            at = waiting.pop()
            if at in seen:
                continue
            seen.add(at)
            if len(seen) > _MAX_DIRECTORIES:
                return None
            waiting += self._directory(at)
        return None if self._offsets_left <= 0 else True

    def _directory(self, at: int) -> list[int]:
        """Check a directory; which others it names."""
        self._file.seek(at)
        head = struct.Struct(self._order + ("Q" if self._is_big else "H"))
        (count,) = head.unpack(_exactly(self._file, head.size))
        entry = struct.Struct(self._order + ("HHQ8s" if self._is_big else "HHI4s"))
        if not 0 < count <= _MAX_ENTRIES:
            raise _CutShortError
        raw = _exactly(self._file, count * entry.size)
        (after,) = struct.unpack(self._order + self._word, _exactly(self._file, struct.calcsize(self._order + self._word)))
        entries = {tag: (kind, values, where) for tag, kind, values, where in entry.iter_unpack(raw)}
        for kind, values, where in entries.values():
            self._place(kind, values, where)
        for offsets, lengths in _TIFF_PARTS:
            if offsets in entries:
                self._parts(entries[offsets], entries.get(lengths))
        named = [at for tag in _TIFF_DIRECTORIES if tag in entries for at in self._numbers(entries[tag])]
        return [at for at in (after, *named) if at]

    def _place(self, kind: int, values: int, where: bytes) -> int | None:
        """Find the place of an entry's values; None: in the entry itself."""
        count = _TIFF_SIZES.get(kind, 0) * values
        if count <= len(where):
            return None
        (at,) = struct.unpack(self._order + self._word, where)
        if at + count > self._size:
            raise _CutShortError
        return int(at)

    def _parts(self, offsets: tuple[int, int, bytes], lengths: tuple[int, int, bytes] | None) -> None:
        pairs = zip(self._numbers(offsets), self._numbers(lengths), strict=False) if lengths is not None else ()
        for at, length in pairs:
            if at + length > self._size:
                raise _CutShortError
        if lengths is None and any(at >= self._size for at in self._numbers(offsets)):
            raise _CutShortError

    def _numbers(self, entry: tuple[int, int, bytes]) -> Iterator[int]:
        kind, values, where = entry
        form = _TIFF_NUMBERS.get(kind)
        if form is None:
            return
        at, each = self._place(kind, values, where), _TIFF_SIZES[kind]
        self._offsets_left -= values
        if self._offsets_left <= 0:
            return
        for done in range(0, values, _CHUNK_BYTES):
            count = min(_CHUNK_BYTES, values - done)
            if at is None:
                raw = where[: count * each]
            else:
                self._file.seek(at + done * each)
                raw = _exactly(self._file, count * each)
            yield from struct.unpack(f"{self._order}{count}{form}", raw)
