"""Files and bytes that Arrow reads by itself, without an object of Python behind them.

Arrow reads Parquet on threads of its own, which drop what they read when they come to it. Where that was read through a file or
bytes of Python they need the interpreter to drop it, and one that needs it while the interpreter ends takes the whole process
down with SIGABRT: a short script that had printed its result would end with 134. So who has an open file or bytes makes one
of these of it first.
"""

from typing import BinaryIO

import pyarrow as pa


def arrow_file(file: BinaryIO) -> pa.NativeFile:
    """An open plain file, opened once more by Arrow: the same file whatever has become of its name.

    Raises:
        OSError: it cannot be read, or the system has no /dev/fd.
    """
    return pa.OSFile(f"/dev/fd/{file.fileno()}")


def arrow_bytes(body: bytes) -> pa.NativeFile:
    """Bytes, copied into memory of Arrow."""
    held = pa.allocate_buffer(len(body))
    memoryview(held).cast("B")[:] = body
    return pa.BufferReader(held)
