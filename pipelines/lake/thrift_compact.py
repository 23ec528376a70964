"""Thrift's compact protocol as a tree that keeps every field, known or not: what a Parquet footer is written in. No IO.

Only what footers use: a struct is a list of `Field`; a list a `Sequence` with its element type. Numbers, text and truth are
themselves. A footer read and written again is the same bytes, so what this version does not know passes through.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_INTEGERS = frozenset({I16, I32, I64})
MAX_DEPTH = 32

Value: TypeAlias = Any
"""int, bool, bytes (doubles stay their eight bytes), `Sequence`, or a list of `Field`."""


class ThriftError(Exception):
    """The bytes are not what a footer is made of."""


@dataclass(slots=True)
class Field:
    """One field of a struct."""

    id: int
    type: int
    value: Value


@dataclass(slots=True)
class Sequence:
    """A list, all of one type."""

    type: int
    items: list[Value]


Struct: TypeAlias = list[Field]


def field(struct: Struct, number: int) -> Value:
    """The value of a field; None if the struct does not have it."""
    return next((each.value for each in struct if each.id == number), None)


def put(struct: Struct, number: int, value: Value) -> None:
    """Give a field that the struct has another value."""
    for each in struct:
        if each.id == number:
            each.value = value


def without(struct: Struct, numbers: frozenset[int]) -> Struct:
    """The struct without these fields."""
    return [each for each in struct if each.id not in numbers]


def decode_struct(body: bytes) -> Struct:
    """Read one struct.

    Raises:
        ThriftError: not one.
    """
    try:
        return _Reader(body).struct(0)
    except IndexError as error:
        raise ThriftError("the footer ends in the middle of a field") from error


def encode_struct(struct: Struct) -> bytes:
    """Write one struct."""
    out = bytearray()
    _write_struct(out, struct)
    return bytes(out)


class _Reader:
    def __init__(self, body: bytes) -> None:
        self._body, self._at = body, 0

    def struct(self, depth: int) -> Struct:
        if depth > MAX_DEPTH:
            raise ThriftError("nested too deeply")
        fields: Struct = []
        last = 0
        while True:
            head = self._byte()
            if head == 0:
                return fields
            kind, step = head & 0x0F, head >> 4
            last = last + step if step else _unzigzag(self._varint())
            fields.append(Field(last, kind, kind == TRUE if kind in (TRUE, FALSE) else self._value(kind, depth)))

    def _value(self, kind: int, depth: int) -> Value:
        if kind in _INTEGERS:
            return _unzigzag(self._varint())
        if kind == BINARY:
            return self._take(self._varint())
        if kind == STRUCT:
            return self.struct(depth + 1)
        if kind == LIST:
            return self._list(depth)
        if kind == DOUBLE:
            return self._take(8)
        if kind in (TRUE, FALSE, BYTE):
            return self._byte()
        raise ThriftError(f"type {kind} is none that footers use")

    def _list(self, depth: int) -> Sequence:
        head = self._byte()
        size, kind = head >> 4, head & 0x0F
        if size == 0x0F:
            size = self._varint()
        if size > len(self._body):
            raise ThriftError("a list longer than the footer")
        return Sequence(kind, [self._value(kind, depth + 1) for _ in range(size)])

    def _byte(self) -> int:
        self._at += 1
        return self._body[self._at - 1]

    def _take(self, size: int) -> bytes:
        if self._at + size > len(self._body):
            raise ThriftError("the footer ends in the middle of a value")
        self._at += size
        return self._body[self._at - size : self._at]

    def _varint(self) -> int:
        result = shift = 0
        while True:
            byte = self._byte()
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result
            shift += 7
            if shift > 63:
                raise ThriftError("a number longer than 64 bits")


def _unzigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)


def _write_varint(out: bytearray, number: int) -> None:
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _write_zigzag(out: bytearray, number: int) -> None:
    _write_varint(out, (number << 1) ^ (number >> 63))


def _write_struct(out: bytearray, struct: Struct) -> None:
    last = 0
    for each in struct:
        kind = (TRUE if each.value else FALSE) if each.type in (TRUE, FALSE) else each.type
        step = each.id - last
        if 0 < step <= 15:
            out.append(step << 4 | kind)
        else:
            out.append(kind)
            _write_zigzag(out, each.id)
        last = each.id
        if kind not in (TRUE, FALSE):
            _write_value(out, kind, each.value)
    out.append(0)


def _write_value(out: bytearray, kind: int, value: Value) -> None:
    if kind in _INTEGERS:
        _write_zigzag(out, value)
    elif kind == BINARY:
        _write_varint(out, len(value))
        out += value
    elif kind == STRUCT:
        _write_struct(out, value)
    elif kind == LIST:
        if len(value.items) < 0x0F:
            out.append(len(value.items) << 4 | value.type)
        else:
            out.append(0xF0 | value.type)
            _write_varint(out, len(value.items))
        for item in value.items:
            _write_value(out, value.type, item)
    elif kind == DOUBLE:
        out += value
    else:
        out.append(value)
