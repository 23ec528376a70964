"""The landing file: written batch by batch, sealed by rename, read memory-mapped.

`<n>.arrows` is a finished Arrow IPC stream, `<n>.arrows.open` the one being written. Each record batch is one Arrow IPC message
whose custom metadata hold `catchment = "crc32:xxxxxxxx"`: the CRC-32 of the whole message, taken with zeros in place of the eight
digits. Any Arrow tool reads past it. It is there because a disk that lost power may hold a batch whose head is whole and whose
pages are zero, and a rotten byte in a payload is valid Arrow.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipelines.bridge.rows import SEGMENT_SCHEMA
from pipelines.errors import CorruptLakeError

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
SEALED_SUFFIX = ".arrows"
OPEN_SUFFIX = ".arrows.open"


HEADER = SEGMENT_SCHEMA.serialize().to_pybytes()
"""What an Arrow IPC stream of landing rows begins with."""

_MARK = b"crc32:"
_ZEROS = b"00000000"
_METADATA = {"catchment": (_MARK + _ZEROS).decode()}
_MAX_METADATA_BYTES = 16 * 1024


def sealed_path(folder: Path, number: int) -> Path:
    """Return the path of segment `number` once it is sealed."""
    return folder / f"{number:012d}{SEALED_SUFFIX}"


def open_path(folder: Path, number: int) -> Path:
    """Return the path of segment `number` while it is being written."""
    return folder / f"{number:012d}{OPEN_SUFFIX}"


def segment_number(path: Path) -> int | None:
    """The number a landing file carries in its name; None for a file that is no segment."""
    stem = path.name.removesuffix(OPEN_SUFFIX).removesuffix(SEALED_SUFFIX)
    return int(stem) if len(stem) == 12 and stem.isascii() and stem.isdigit() else None


class OpenSegment:
    """The segment being written. Whatever fails here leaves it to `abandon`: the bytes up to `durable_bytes` are good.

    Args:
        folder: the bridge's landing folder.
        number: the number it will be sealed under.

    Raises:
        OSError: the disk refused.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.durable_bytes = 0
        self.messages = 0
        self._path = open_path(folder, number)
        self._framer = Framer()
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self.written_bytes = 0
        self._write(memoryview(HEADER))

    def append(self, batch: pa.RecordBatch) -> None:
        """Write a batch; it is durable only after `sync`.

        Raises:
            OSError: the disk refused; abandon this segment.
        """
        self._write(self._framer.frame(batch))
        self.messages += batch.num_rows

    def sync(self) -> None:
        """Make everything written durable.

        Raises:
            OSError: the disk refused; nothing after `durable_bytes` may be trusted.
        """
        os.fdatasync(self._descriptor)
        self.durable_bytes = self.written_bytes

    def seal(self) -> Path:
        """End the stream and give the file its name. The caller syncs the folder.

        Raises:
            OSError: the disk refused; abandon this segment.
        """
        self._write(memoryview(END_OF_STREAM))
        os.fsync(self._descriptor)
        sealed = sealed_path(self._path.parent, self.number)
        self._path.rename(sealed)
        os.close(self._descriptor)
        return sealed

    def abandon(self) -> None:
        """Cut the file back to what is durable and close it; `recover_segment` then seals it.

        After a failed fsync the kernel may call pages clean that never reached the disk, so a second fsync proves nothing.

        Raises:
            OSError: not even that worked; the file is left for the next start.
        """
        try:
            os.ftruncate(self._descriptor, self.durable_bytes)
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _write(self, content: memoryview) -> None:
        self.written_bytes += len(content)
        while content:
            content = content[os.write(self._descriptor, content) :]


def read_segment(path: Path, *, checked: bool = False) -> Iterator[pa.RecordBatch]:
    """The batches of a sealed segment, zero-copy over a memory map, each fully validated and checked against its CRC.

    Args:
        path: the segment.
        checked: its CRCs were checked a moment ago, by the caller; they are not computed again.

    Raises:
        CorruptLakeError: the file is missing, cut short, of another schema, or a byte of it is not what was written.
    """
    try:
        content = map_file(path)
        if content.size < len(END_OF_STREAM) or content[-len(END_OF_STREAM) :].to_pybytes() != END_OF_STREAM:
            raise CorruptLakeError(f"{path}: no end-of-stream mark where a sealed segment has one; restore it")
        if checked:
            yield from _validated(pa.ipc.open_stream(pa.BufferReader(content)))
            return
        for _, batch in walk(content):
            yield batch
    except (OSError, pa.ArrowException) as error:
        raise CorruptLakeError(f"{path}: not a readable segment ({error}); restore it, or move it out of the folder") from error


def _validated(batches: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    if not batches.schema.equals(SEGMENT_SCHEMA):
        raise pa.ArrowInvalid("the schema is not the landing schema")
    for batch in batches:
        batch.validate(full=True)
        yield batch


def map_file(path: Path) -> pa.Buffer:
    """A file's bytes, mapped, not read.

    Raises:
        OSError: no such file, or it cannot be mapped.
    """
    if path.stat().st_size == 0:
        return pa.py_buffer(b"")
    with pa.memory_map(str(path)) as source:
        return source.read_buffer()


def walk(content: pa.Buffer) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each whole batch of a segment's bytes, with the offset behind it; fully validated and checked against its CRC.

    Raises:
        pa.ArrowException: what follows the last batch given is not a batch of this schema, or is torn.
        OSError: likewise (Arrow's choice, by where the bytes end).
    """
    batches = pa.ipc.open_stream(pa.BufferReader(content))
    if not batches.schema.equals(SEGMENT_SCHEMA):
        raise pa.ArrowInvalid("the schema is not the landing schema")
    # The same bytes walked message by message: only so is a batch to be had as it lies on disk.
    position = pa.BufferReader(content)
    messages = pa.ipc.MessageReader.open_stream(position)
    messages.read_next_message()
    while True:
        start = position.tell()
        try:
            messages.read_next_message()
        except StopIteration:
            return
        if not is_true_frame(content[start : position.tell()]):
            raise pa.ArrowInvalid("a batch is not what was written (its CRC-32 differs)")
        batch = batches.read_next_batch()
        batch.validate(full=True)
        yield position.tell(), batch


class Framer:
    """Makes frames in one piece of memory that is used again: fresh pages for each would cost as much as writing them."""

    def __init__(self) -> None:
        self._scratch = pa.allocate_buffer(1024 * 1024)

    def frame(self, batch: pa.RecordBatch) -> memoryview:
        """The message's bytes, good until the next call."""
        needed = len(HEADER) + pa.ipc.get_record_batch_size(batch) + _MAX_METADATA_BYTES
        if needed > self._scratch.size:
            self._scratch = pa.allocate_buffer(needed + needed // 4)
        sink = pa.FixedSizeBufferWriter(self._scratch)
        writer = pa.ipc.new_stream(sink, SEGMENT_SCHEMA)
        writer.write_batch(batch, custom_metadata=_METADATA)
        frame = memoryview(self._scratch).cast("B")[len(HEADER) : sink.tell()]
        digits = _digits_at(frame)
        assert digits is not None, "the mark was written above"
        frame[digits : digits + len(_ZEROS)] = _crc(frame, digits)
        return frame


def is_true_frame(frame: pa.Buffer) -> bool:
    """Whether a message's bytes are those that were written."""
    content = memoryview(frame).cast("B")
    digits = _digits_at(content)
    return digits is not None and bytes(content[digits : digits + len(_ZEROS)]) == _crc(content, digits)


def _digits_at(frame: memoryview) -> int | None:
    place = bytes(frame[:_MAX_METADATA_BYTES]).find(_MARK)
    return None if place < 0 or place + len(_MARK) + len(_ZEROS) > len(frame) else place + len(_MARK)


def _crc(frame: memoryview, digits: int) -> bytes:
    crc = zlib.crc32(_ZEROS, zlib.crc32(frame[:digits]))
    return b"%08x" % zlib.crc32(frame[digits + len(_ZEROS) :], crc)
