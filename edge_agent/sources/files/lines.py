"""Cut bytes into lines: of a file, plain or packed, with the byte offset after each, and of a pipe or connection."""

import codecs
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from edge_agent.errors import SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.files.unpacking import UnpackedFile, open_unpacked
from edge_agent.sources.files.watched import what_to_do

ResultT = TypeVar("ResultT")
_HEAD_BYTES = 1024


def open_lines(path: Path) -> UnpackedFile:
    """Open a file for reading; how it is packed is recognised by its first bytes, whatever the name.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return open_unpacked(path)
    except OSError as error:
        act = what_to_do(error, "put the file there or correct `path`")
        raise SourceError(f"{path} cannot be read ({error.strerror or error}); {act}") from error


def check_encoding(path: Path, head: bytes) -> None:
    """Refuse a file that begins as text in UTF-16 or UTF-32: its lines would be noise.

    Raises:
        SourceError: it does.
    """
    is_wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    if is_wide or (len(head) > 1 and head[:2].count(0) == 1 and head[:32].count(0) >= len(head[:32]) // 3):
        raise SourceError(f"{path} is text in UTF-16 or UTF-32; write it in UTF-8: iconv -f UTF-16 -t UTF-8")


def head_mark(path: Path) -> int:
    """A number made of the file's first kilobyte: tells a file that was replaced under the same name.

    Raises:
        SourceError: it cannot be read.
    """
    with open_lines(path) as file:
        try:
            line = file.readline(_HEAD_BYTES)
        except OSError as error:
            raise SourceError(f"{path} cannot be read ({error.strerror or error}); it is tried again") from error
        if file.broken and not line:
            raise SourceError(f"{path}: {file.broken}, and nothing of it can be unpacked; it is tried again")
        return zlib.crc32(line)


class Lines:
    """Reads line after line and knows where it stands.

    Attributes:
        offset: bytes (unpacked) read so far; every line before it was given out or counted as refused.
        is_final: the file does not grow any more.

    Raises:
        SourceError: the file ends before `offset`, or cannot be read or unpacked.
    """

    is_final = True

    def __init__(self, path: Path, offset: int, max_line_bytes: int, rejects: Rejects) -> None:
        self._path = path
        self._file = open_lines(path)
        self._max = max_line_bytes
        self._rejects = rejects
        self.offset = offset
        if offset and not self._seek(offset):
            self._file.close()
            raise SourceError(
                f"{path} ends before byte {offset}, where it was left; it was cut since: follow a growing log by kind tail"
            )

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next line as text, without limit on how many; StopIteration at the end."""
        line = self.next_line()
        if line is None:
            raise StopIteration
        return line

    def next_line(self) -> str | None:
        """The next line with its end, or None at the end of the file. A line above the limit is skipped and counted.

        Raises:
            SourceError: the file cannot be read or unpacked any further; `offset` is after the last whole line.
        """
        while True:
            raw = self._guarded(lambda: self._file.readline(self._max + 1))
            if not raw.endswith(b"\n") and self._file.broken:
                raise SourceError(
                    f"{self._path}: {self._file.broken}; every whole row before unpacked byte {self.offset + len(raw)} was read;"
                    " put the whole file in its place"
                )
            self.offset += len(raw)
            if not raw:
                return None
            if len(raw) <= self._max or raw.endswith(b"\n"):
                return self._decode(raw)
            self._skip_rest()
            self._rejects.count(f"row: line above {self._max} bytes", raw[:80])

    def close(self) -> None:
        """Close the file."""
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

    def _seek(self, offset: int) -> bool:
        """Whether the file reaches so far: a plain file can be sought in beyond its end."""
        reached = self._guarded(lambda: self._file.seek(offset - 1))
        return reached == offset - 1 and len(self._guarded(lambda: self._file.read(1))) == 1

    def _guarded(self, action: Callable[[], ResultT]) -> ResultT:
        try:
            return action()
        except OSError as error:
            raise SourceError(f"{self._path}: cannot be read at byte {self.offset}: {error}") from error


class LineBuffer:
    """Bytes made into lines, none longer than the limit: a longer one is dropped as it comes, and counted."""

    def __init__(self, max_line_bytes: int, rejects: Rejects) -> None:
        self._max = max_line_bytes
        self._rejects = rejects
        self._bytes = bytearray()
        self._dropping = False

    @property
    def has_line(self) -> bool:
        """Whether a whole line is there."""
        return self._bytes.find(b"\n") >= 0

    @property
    def is_full(self) -> bool:
        """Whether enough is buffered to work on first."""
        return len(self._bytes) > self._max

    def add(self, piece: bytes) -> None:
        """More bytes."""
        if self._dropping:
            end = piece.find(b"\n")
            if end < 0:
                return
            piece, self._dropping = piece[end + 1 :], False
        self._bytes += piece
        if len(self._bytes) > self._max and self._bytes.find(b"\n") < 0:
            self._rejects.count(f"row: line above {self._max} bytes", bytes(self._bytes[:80]))
            self._bytes.clear()
            self._dropping = True

    def take(self, max_lines: int, *, ended: bool) -> list[str]:
        """At most so many whole lines; when the program has ended, an unfinished last one as well."""
        lines: list[str] = []
        start = 0
        while len(lines) < max_lines:
            end = self._bytes.find(b"\n", start)
            if end < 0:
                if ended and start < len(self._bytes):
                    lines.append(self._bytes[start:].decode("utf-8", errors="replace"))
                    start = len(self._bytes)
                break
            if end - start <= self._max:
                lines.append(self._bytes[start:end].decode("utf-8", errors="replace"))
            else:
                self._rejects.count(f"row: line above {self._max} bytes", bytes(self._bytes[start : start + 80]))
            start = end + 1
        del self._bytes[:start]
        return lines
