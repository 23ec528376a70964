"""The key-value metadata of an ONNX file, read and added to without the onnx package.

An ONNX file is one protobuf message, and its metadata are field 14 of it: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
Repeated fields may lie anywhere in a message (https://protobuf.dev/programming-guides/encoding/): an entry is added at the end.
Only the outermost fields are looked at; the weights are skipped, not read.
"""

from collections.abc import Iterator, Mapping

from pipelines.errors import RefusedError
from pipelines.rollout.onnx_file import BYTES, fields

_ENTRIES, _KEY, _VALUE = 14, 1, 2
_MAX_FIELDS = 100_000
_MAX_ENTRY_BYTES = 64 * 1024


def read_metadata(onnx: bytes) -> dict[str, str]:
    """The entries of an ONNX file; of a key that is there twice, the last one. Entries above 64 KiB are left out.

    Raises:
        RefusedError: not an ONNX file.
    """
    found: dict[str, str] = {}
    for number, entry in _parts(memoryview(onnx)):
        if number == _ENTRIES and len(entry) <= _MAX_ENTRY_BYTES:
            parts = {field: bytes(value) for field, value in _parts(entry)}
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


def _parts(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and bytes of each field that has any."""
    try:
        for count, (number, value) in enumerate(fields(message)):
            if count == _MAX_FIELDS:
                break
            if isinstance(value, memoryview):
                yield number, value
        else:
            return
    except (IndexError, ValueError) as error:
        raise RefusedError(f"not an ONNX file, or it is cut off: {error}") from error
    raise RefusedError(f"not an ONNX file: it has more than {_MAX_FIELDS:,} fields")


def _field(number: int, body: bytes) -> bytes:
    return _encoded(number << 3 | BYTES) + _encoded(len(body)) + body


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _text(body: bytes) -> str:
    return body.decode("utf-8", errors="replace")
