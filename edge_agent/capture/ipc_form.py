"""One Arrow IPC stream per batch, written many times: nanoarrow makes it once per schema, and each batch fills its numbers in.

To have nanoarrow write each batch costs several copies of every payload and as much again in objects; to write the format again
would be a library of our own. So its stream of one row is the form. All that differs between two batches of a schema
are numbers at known places of the batch's metadata (a Flatbuffers table: Arrow's Message.fbs): how many rows, how many
nulls, and where each buffer lies.
"""

import io
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import nanoarrow as na
from nanoarrow.c_schema import c_schema_view
from nanoarrow.ipc import StreamWriter

# A message is preceded by this mark and the length of its metadata, as 32 bits each.
_PREFIX = struct.Struct("<Ii")
_CONTINUES = 0xFFFF_FFFF
_END_OF_STREAM = _PREFIX.pack(_CONTINUES, 0)
# Fields of the tables, in the order of Message.fbs.
_HEADER, _BODY_LENGTH = 2, 3
_LENGTH, _NODES, _BUFFERS = 0, 1, 2
_ALIGN_BYTES = 8
_PADDINGS = tuple(bytes(length) for length in range(_ALIGN_BYTES))

Buffer = bytes | array  # type: ignore[type-arg]  # of any number type


@dataclass(frozen=True, slots=True)
class Filled:
    """A column's values.

    Attributes:
        null_count: how many are null.
        buffers: in Arrow's order (b"" for a validity that says nothing).
        children: a list's items, a struct's fields.
        rows: how many values there are; None: as many as the batch has rows.
    """

    null_count: int
    buffers: tuple[Buffer, ...]
    children: tuple["Filled", ...] = ()
    rows: int | None = None


class Form:
    """The stream of one schema.

    Args:
        fields: name -> nanoarrow's C schema of each column, in order.
    """

    def __init__(self, fields: Mapping[str, object]) -> None:
        # One row without nulls: a number that is zero would be left out.
        sample = [_one(schema) for schema in fields.values()]
        record = na.c_array_from_buffers(
            na.c_schema(na.struct(fields)), 1, [None], children=sample, null_count=0, validation_level="none"
        )
        out = io.BytesIO()
        StreamWriter.from_writable(out).serialize_stream(record)
        written = out.getvalue()
        batch_at = _PREFIX.size + _PREFIX.unpack_from(written)[1]
        batch_bytes = _PREFIX.size + _PREFIX.unpack_from(written, batch_at)[1]
        self._schema_message = written[:batch_at]
        self._batch_message = written[batch_at : batch_at + batch_bytes]
        message = _PREFIX.size + _number(self._batch_message, _PREFIX.size)
        self._body_length_at = _field(self._batch_message, message, _BODY_LENGTH)
        header = _target(self._batch_message, message, _HEADER)
        self._length_at = _field(self._batch_message, header, _LENGTH)
        # Vectors of structs: their count as 32 bits, then two numbers of 64 bits each.
        nodes_at, buffers_at = (_target(self._batch_message, header, field) for field in (_NODES, _BUFFERS))
        self._nodes_at, self._buffers_at = nodes_at + 4, buffers_at + 4
        self._nodes = struct.Struct(f"<{2 * _number(self._batch_message, nodes_at)}q")
        self._buffers = struct.Struct(f"<{2 * _number(self._batch_message, buffers_at)}q")

    def fill(self, rows: int, columns: Sequence[Filled]) -> bytes:
        """The stream of so many rows.

        Args:
            rows: how many, at least one.
            columns: in the schema's order.
        """
        nodes: list[int] = []
        places: list[int] = []
        body: list[Buffer] = []
        at = 0
        for column in _flattened(columns):
            nodes += (rows if column.rows is None else column.rows, column.null_count)
            for buffer in column.buffers:
                size_bytes = len(buffer) if isinstance(buffer, bytes) else len(buffer) * buffer.itemsize
                padding = _PADDINGS[-size_bytes % _ALIGN_BYTES]
                places += (at, size_bytes)
                body += (buffer, padding)
                at += size_bytes + len(padding)
        head = bytearray(self._batch_message)
        struct.pack_into("<q", head, self._body_length_at, at)
        struct.pack_into("<q", head, self._length_at, rows)
        self._nodes.pack_into(head, self._nodes_at, *nodes)
        self._buffers.pack_into(head, self._buffers_at, *places)
        return b"".join((self._schema_message, head, *body, _END_OF_STREAM))


def _flattened(columns: Sequence[Filled]) -> Iterator[Filled]:
    """Each column before its children: the order in which Arrow writes them."""
    for column in columns:
        yield column
        yield from _flattened(column.children)


def _one(schema: object) -> object:
    """A column of one row: zero, false or empty; null where the type has no values."""
    view = c_schema_view(na.c_schema(schema))
    children = [_one(child) for child in na.c_schema(schema).children]
    buffers = (None, bytes(8), b"")[: view.layout.n_buffers]
    return na.c_array_from_buffers(schema, 1, buffers, null_count=0 if buffers else 1, children=children, validation_level="none")


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _field(data: bytes, table: int, number: int) -> int:
    """Find the place of a table's field."""
    entries = table - struct.unpack_from("<i", data, table)[0]
    offset: int = struct.unpack_from("<H", data, entries + 4 + 2 * number)[0]
    if offset == 0:
        raise ValueError(f"field {number} of the form is left out")
    return table + offset


def _target(data: bytes, table: int, number: int) -> int:
    """Find the place that a table's field points at."""
    at = _field(data, table, number)
    return at + _number(data, at)
