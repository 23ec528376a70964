"""Reads a file, plain or packed (gzip, zstd, bzip2, xz), and gives every byte that stands before a break.

The kind of packing is recognised by the first bytes, never by the name. A packed file that is cut short or damaged ends where
it can no longer be unpacked, and `broken` says why: the readers of the standard library lose what they had unpacked until then.
"""

import bz2
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

from edge_agent.sources.files.watched import open_named

_PIECE_BYTES = 64 * 1024
# A zstd decoder cannot be given a limit for what comes out: 512 bytes are at most 128 blocks of 128 KiB.
_ZSTD_PIECE_BYTES = 512
_OUT_BYTES = 256 * 1024
_SALVAGED_BYTES = 16 * 1024 * 1024
_NO_LIMIT = -1
_LONGEST_LINE_BYTES = 4 * 1024 * 1024
_ZSTD_WINDOW_BYTES = 128 * 1024 * 1024
_XZ_MEMORY_BYTES = 128 * 1024 * 1024
# Frames without content, as writers in parts (pzstd, seekable zstd) put before and between others.
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class _Decoder(Protocol):
    """One packed stream; another of the same kind may follow it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _GzipDecoder:
    """A gzip member, with the interface of `bz2.BZ2Decompressor`."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(31)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max(0, max_length))  # 0: no limit, in zlib alone


class _ZstdDecoder:
    """A zstd frame, with the interface of `bz2.BZ2Decompressor`; gives more than `max_length` where one piece holds more."""

    needs_input = True

    def __init__(self) -> None:
        self._inner = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        del max_length
        return self._inner.decompress(data)


_PACKINGS: tuple[tuple[str, bytes, Callable[[], _Decoder]], ...] = (
    ("gzip", b"\x1f\x8b", _GzipDecoder),
    ("zstd", b"\x28\xb5\x2f\xfd", _ZstdDecoder),
    ("bzip2", b"BZh", bz2.BZ2Decompressor),
    ("xz", b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY_BYTES)),
)


def packing_of(head: bytes) -> str:
    """The kind of packing of a file that begins so; empty: none."""
    if _ZSTD_SKIPPABLE.match(head):
        return "zstd"
    return next((name for name, magic, _ in _PACKINGS if head.startswith(magic)), "")


def descriptor_of(file: BinaryIO) -> int:
    """A descriptor of its own of an open file, which is closed."""
    with file:
        return os.dup(file.fileno())


def open_unpacked(path: Path, *, whole_lines: bool = False) -> "UnpackedFile":
    """Open a file that the configuration names for reading, unpacked where it is packed.

    Args:
        path: of the file.
        whole_lines: of a packed file that breaks within a line, leave out the beginning of that line.

    Raises:
        RefusedFileError: a link, or no plain file.
        OSError: it cannot be opened.
    """
    fd = descriptor_of(open_named(path))
    try:
        return UnpackedFile(fd, whole_lines=whole_lines)
    except BaseException:
        os.close(fd)
        raise


class UnpackedFile(io.BufferedReader):
    """The unpacked bytes of an open file.

    Args:
        fd: of the file; it is read at positions of its own, so that several readers can share it.
        is_owner: whether closing this closes the file.
        whole_lines: see `open_unpacked`.
    """

    def __init__(self, fd: int, *, is_owner: bool = True, whole_lines: bool = False) -> None:
        self._unpacking = _Unpacking(fd, is_owner=is_owner, whole_lines=whole_lines)
        super().__init__(self._unpacking, _PIECE_BYTES)

    @property
    def broken(self) -> str:
        """The reason why it could not be unpacked any further; empty as long as it could."""
        return self._unpacking.broken

    @property
    def packing(self) -> str:
        """The kind of packing; empty: none."""
        return self._unpacking.packing


class _Unpacking(io.RawIOBase):
    """Unpacks as it is read. Seeking forward unpacks, seeking back begins from the start."""

    def __init__(self, fd: int, *, is_owner: bool, whole_lines: bool) -> None:
        self._fd = fd
        self._is_owner = is_owner
        self._whole_lines = whole_lines
        self.packing = packing_of(os.pread(fd, 8, 0))
        self._make: Callable[[], _Decoder] | None = next((make for name, _, make in _PACKINGS if name == self.packing), None)
        self._piece_bytes = _ZSTD_PIECE_BYTES if self.packing == "zstd" else _PIECE_BYTES
        self._rewind()

    def _rewind(self) -> None:
        self._decoder = self._make() if self._make is not None else None
        # Where the member in hand begins, how much of it was unpacked, what was read of the file, and what was given out.
        self._member_at = self._member_out = self._read_at = self._at = 0
        self._out = self._ahead = self._line = b""
        self._has_ended = False
        self.broken = ""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        if not self.closed and self._is_owner:
            os.close(self._fd)
        super().close()

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # a buffer, as io hands it in
        if self._decoder is None:
            piece = os.pread(self._fd, len(view), self._at)
        else:
            if not self._out:
                self._out = self._unpack_lines() if self._whole_lines else self._unpack()
            piece, self._out = self._out[: len(view)], self._out[len(view) :]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._at
        elif whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the start of the file")
        if self._decoder is None:
            self._at = offset
            return offset
        if offset < self._at:
            self._rewind()
        scratch = bytearray(_OUT_BYTES)
        while self._at < offset and self.readinto(memoryview(scratch)[: offset - self._at]):
            continue
        return self._at

    def _unpack_lines(self) -> bytes:
        """As `_unpack`, up to the end of a line: the rest waits for its own."""
        while out := self._unpack():
            whole, newline, rest = out.rpartition(b"\n")
            if newline or len(self._line) > _LONGEST_LINE_BYTES:
                out, self._line = self._line + whole + newline, rest
                return out
            self._line += out
        out, self._line = b"" if self.broken else self._line, b""
        return out

    def _unpack(self) -> bytes:
        """The next unpacked bytes; none at the end, or where it breaks."""
        while not self._has_ended:
            try:
                out = self._step()
            except _ERRORS as error:
                return self._salvage(str(error))
            if out:
                self._member_out += len(out)
                return out
        return b""

    def _end(self, reason: str) -> None:
        self._has_ended, self.broken = True, reason

    def _step(self) -> bytes:
        assert self._decoder is not None
        if self._decoder.eof:
            self._next_member()
            return b""
        data = b""
        if self._decoder.needs_input:
            data, self._ahead = (self._ahead, b"") if self._ahead else (self._read_packed(), b"")
            if not data:
                self._end("it is cut short")
                return b""
        return self._decoder.decompress(data, _OUT_BYTES)

    def _read_packed(self) -> bytes:
        data = os.pread(self._fd, self._piece_bytes, self._read_at)
        self._read_at += len(data)
        return data

    def _next_member(self) -> None:
        """Begin with what follows the end of a member: another one, padding, or nothing."""
        assert self._decoder is not None
        assert self._make is not None
        rest = self._decoder.unused_data
        while not (rest := rest.lstrip(b"\0")):
            rest = self._read_packed()
            if not rest:
                self._has_ended = True
                return
        while len(rest) < 8 and (more := self._read_packed()):
            rest += more
        if packing_of(rest) != self.packing:
            known = next(magic for name, magic, _ in _PACKINGS if name == self.packing)
            self._end("it is cut short" if known.startswith(rest) else f"what follows its end is no {self.packing}")
            return
        self._member_at, self._member_out, self._ahead = self._read_at - len(rest), 0, rest
        self._decoder = self._make()

    def _salvage(self, reason: str) -> bytes:
        """Unpack the bytes before damage one by one: decoders give nothing of the piece in which they meet it."""
        assert self._make is not None
        decoder = self._make()
        out = bytearray()
        known_bytes, at = self._member_out, self._member_at
        self._end(reason)
        try:
            while at < self._read_at and len(out) < _SALVAGED_BYTES:
                is_near = at >= self._read_at - 2 * self._piece_bytes
                data = os.pread(self._fd, min(1 if is_near else _ZSTD_PIECE_BYTES, self._read_at - at), at)
                at += len(data)
                out += decoder.decompress(data, _NO_LIMIT)
                spare = min(len(out), known_bytes)
                known_bytes -= spare
                del out[:spare]
        except _ERRORS:
            return bytes(out)
        return bytes(out)
