"""What an ONNX file says of itself, without loading it: operator sets, operators, external data, the exporter's notes.

Reads the few fields of `onnx.proto` that it needs. The file is untrusted: lengths are checked, nesting is limited.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from pipelines.errors import RefusedError

_MAX_DEPTH = 32
_MAX_NOTE_BYTES = 1024 * 1024
_VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BITS = 63


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """One file.

    Attributes:
        opsets: domain -> version; the empty domain is ONNX's own.
        operators: (domain, name) of every node, those of inner graphs included.
        notes: the exporter's key and value pairs (`metadata_props`).
        has_external_data: whether weights lie in other files.
    """

    opsets: dict[str, int]
    operators: frozenset[tuple[str, str]]
    notes: dict[str, str]
    has_external_data: bool

    def literal(self, name: str) -> object:
        """A note written as a Python literal, as Ultralytics does; None where it is absent or malformed."""
        try:
            return ast.literal_eval(self.notes[name])
        except (KeyError, ValueError, SyntaxError, MemoryError, RecursionError):
            return None


@dataclass(slots=True)
class _Seen:
    operators: set[tuple[str, str]] = field(default_factory=set)
    has_external_data: bool = False


def read_onnx_file(body: bytes) -> OnnxFile:
    """Read a model's bytes.

    Raises:
        RefusedError: not an ONNX model, or damaged.
    """
    opsets: dict[str, int] = {}
    notes: dict[str, str] = {}
    seen = _Seen()
    has_graph = False
    try:
        for number, value in fields(memoryview(body)):
            if number == 8 and isinstance(value, memoryview):
                domain, version = _opset(value)
                opsets["" if domain == "ai.onnx" else domain] = version
            elif number == 7 and isinstance(value, memoryview):
                has_graph = True
                _read_graph(value, seen, 0)
            elif number == 14 and isinstance(value, memoryview) and len(value) <= _MAX_NOTE_BYTES:
                key, text = _texts(value, 1, 2)
                notes[key] = text
    except (IndexError, ValueError, UnicodeDecodeError) as error:
        raise RefusedError(f"the file is no ONNX model, or damaged: {error}; export it again") from error
    if not has_graph or not opsets:
        raise RefusedError("the file is no ONNX model: it has no graph or no operator set; export it again")
    return OnnxFile(opsets, frozenset(seen.operators), notes, seen.has_external_data)


def fields(body: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: number, and a number or bytes; those of fixed width are passed over.

    Raises:
        IndexError: it is cut off.
        ValueError: it is no protobuf message, or a field is longer than it.
    """
    at, end = 0, len(body)
    while at < end:
        tag, at = _varint(body, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(body, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(body, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind}")
        if not number or at + size > end:
            raise ValueError("a field is longer than the file, or has no number")
        if kind == BYTES:
            yield number, body[at : at + size]
        at += size


def _varint(body: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _MAX_VARINT_BITS:
            raise ValueError("a number is too long")


def _texts(body: memoryview, *numbers: int) -> list[str]:
    found = {number: value for number, value in fields(body) if number in numbers and isinstance(value, memoryview)}
    return [bytes(found.get(number, b"")).decode() for number in numbers]


def _opset(body: memoryview) -> tuple[str, int]:
    values = dict(fields(body))
    domain, version = values.get(1, b""), values.get(2, 0)
    return (bytes(domain).decode() if not isinstance(domain, int) else ""), (version if isinstance(version, int) else 0)


def _read_graph(body: memoryview, seen: _Seen, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"graphs are nested deeper than {_MAX_DEPTH}")
    for number, value in fields(body):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            _read_node(value, seen, depth)
        elif number == 5:
            _read_tensor(value, seen)


def _read_node(body: memoryview, seen: _Seen, depth: int) -> None:
    name, domain = _texts(body, 4, 7)
    seen.operators.add(("" if domain == "ai.onnx" else domain, name))
    for number, value in fields(body):
        if number == 5 and isinstance(value, memoryview):
            for inner, part in fields(value):
                if inner in (6, 11) and isinstance(part, memoryview):
                    _read_graph(part, seen, depth + 1)
                elif inner in (5, 10) and isinstance(part, memoryview):
                    _read_tensor(part, seen)


def _read_tensor(body: memoryview, seen: _Seen) -> None:
    for number, value in fields(body):
        if (number == 14 and value == 1) or number == 13:
            seen.has_external_data = True
