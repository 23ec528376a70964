"""Lines of a file, plain or gzip, with the byte offset after each: what a resume position is made of."""

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

from edge_agent.capture.rejects import Rejects
from edge_agent.errors import SourceError
from edge_agent.watched import open_named, what_to_do

ResultT = TypeVar("ResultT")
_HEAD_BYTES = 1024


def open_lines(path: Path) -> BinaryIO:
    """Open a file for reading; gzip is recognised by its first bytes, whatever the name.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return unpacked(open_named(path))
    except OSError as error:
        act = what_to_do(error, "put the file there or correct `path`")
        raise SourceError(f"{path} cannot be read ({error.strerror or error}); {act}") from error


def unpacked(file: BinaryIO) -> BinaryIO:
    """The same open file, unpacked where it is gzip; closing it closes the file.

    Raises:
        OSError: it cannot be read; it is closed.
    """
    try:
        is_packed = os.pread(file.fileno(), 2, 0) == b"\x1f\x8b"
    except BaseException:
        file.close()
        raise
    if not is_packed:
        return file
    packed = gzip.GzipFile(fileobj=file, mode="rb")
    packed.myfileobj = file  # type: ignore[assignment]  # what GzipFile closes with itself
    return cast("BinaryIO", packed)


def head_mark(path: Path) -> int:
    """A number made of the file's first kilobyte: tells a file that was replaced under the same name.

    Raises:
        SourceError: it cannot be read.
    """
    with open_lines(path) as file:
        try:
            return zlib.crc32(file.readline(_HEAD_BYTES))
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{path} cannot be unpacked: {error}") from error


class Lines:
    """Reads line after line and knows where it stands.

    Attributes:
        offset: bytes (unpacked) read so far; every line before it was given out or counted as refused.

    Raises:
        SourceError: the file ends before `offset`, or cannot be read or unpacked.
    """

    def __init__(self, path: Path, offset: int, max_line_bytes: int, rejects: Rejects) -> None:
        self._path = path
        self._file = open_lines(path)
        self._max = max_line_bytes
        self._rejects = rejects
        self.offset = offset
        if offset and self._guarded(lambda: self._file.seek(offset)) != offset:
            raise SourceError(f"{path} ends before byte {offset}, where it was left; it was cut since")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next line as text, without limit on how many; StopIteration at the end."""
        line = self.next_line()
        if line is None:
            raise StopIteration
        return line

    def next_line(self) -> str | None:
        """The next line with its end, or None at the end of the file. A line above the limit is skipped and counted."""
        while True:
            raw = self._guarded(lambda: self._file.readline(self._max + 1))
            self.offset += len(raw)
            if not raw:
                return None
            if len(raw) <= self._max or raw.endswith(b"\n"):
                return self._decode(raw)
            self._skip_rest()
            self._rejects.count(f"row: line above {self._max} bytes", raw[:80])

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _skip_rest(self) -> None:
        while True:
            raw = self._guarded(lambda: self._file.readline(self._max + 1))
            self.offset += len(raw)
            if not raw or raw.endswith(b"\n"):
                return

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8-sig" if self.offset == len(raw) else "utf-8")
        except UnicodeDecodeError:
            self._rejects.count("cell: not UTF-8, replaced by U+FFFD", raw[:80])
            return raw.decode("utf-8", errors="replace")

    def _guarded(self, action: Callable[[], ResultT]) -> ResultT:
        try:
            return action()
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{self._path}: cannot be read at byte {self.offset}: {error}") from error
