"""The key-value metadata of an ONNX file, read and added to without the onnx package.

An ONNX file is one protobuf message, and its metadata are field 14 of it: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
Repeated fields may lie anywhere in a message (https://protobuf.dev/programming-guides/encoding/): an entry is added at the end.
Only the outermost fields are looked at; the weights are skipped, not read.
"""

from collections.abc import Iterator, Mapping

from pipelines.errors import RefusedError

_ENTRIES, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_FIELDS = 100_000
_MAX_ENTRY_BYTES = 64 * 1024


def read_metadata(onnx: bytes) -> dict[str, str]:
    """The entries of an ONNX file; of a key that is there twice, the last one. Entries above 64 KiB are left out.

    Raises:
        RefusedError: not an ONNX file.
    """
    found: dict[str, str] = {}
    for number, low, high in _fields(memoryview(onnx)):
        if number == _ENTRIES and high - low <= _MAX_ENTRY_BYTES:
            entry = memoryview(onnx)[low:high]
            parts = {field: bytes(entry[start:end]) for field, start, end in _fields(entry)}
            found[_text(parts.get(_KEY, b""))] = _text(parts.get(_VALUE, b""))
    return found


def with_metadata(onnx: bytes, entries: Mapping[str, str]) -> bytes:
    """The file with these entries; one that says the same already is left as it is.

    Raises:
        RefusedError: not an ONNX file.
    """
    known = read_metadata(onnx)
    fresh = {key: value for key, value in entries.items() if known.get(key) != value}
    return onnx + b"".join(
        _field(_ENTRIES, _field(_KEY, key.encode()) + _field(_VALUE, value.encode())) for key, value in fresh.items()
    )


def _fields(message: memoryview) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of the bytes of each field that has any."""
    at = 0
    for _ in range(_MAX_FIELDS):
        if at == len(message):
            return
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
            continue
        if kind == _BYTES:
            size, at = _varint(message, at)
        elif kind in {_FIXED32, _FIXED64}:
            size = 4 if kind == _FIXED32 else 8
        else:
            raise RefusedError("not an ONNX file: it is no protobuf message")
        if not number or at + size > len(message):
            raise RefusedError("not an ONNX file, or it is cut off")
        yield number, at, at + size
        at += size
    raise RefusedError(f"not an ONNX file: it has more than {_MAX_FIELDS:,} fields")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise RefusedError("not an ONNX file, or it is cut off")


def _field(number: int, body: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(body)) + body


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _text(body: bytes) -> str:
    return body.decode("utf-8", errors="replace")
