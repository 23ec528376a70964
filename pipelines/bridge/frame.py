"""A record batch as the bytes of one Arrow IPC message that vouches for itself.

The custom metadata of the message hold `catchment = "crc32:xxxxxxxx"`: the CRC-32 of the whole message, taken with
zeros in place of the eight digits. Any Arrow tool reads past it.
"""

import zlib

import pyarrow as pa

from pipelines.bridge.rows import SEGMENT_SCHEMA

HEADER = SEGMENT_SCHEMA.serialize().to_pybytes()
"""What an Arrow IPC stream of landing rows begins with."""

_MARK = b"crc32:"
_ZEROS = b"00000000"
_METADATA = {"catchment": (_MARK + _ZEROS).decode()}
_MAX_METADATA_BYTES = 16 * 1024


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
