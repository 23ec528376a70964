"""Read an open log, plain or packed: bytes at a place, its beginning and end, and its lines once they are complete.

It also notices when the log is cut while it is read.
"""

import os
import re
from pathlib import Path
from typing import Self

from edge_agent.errors import SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.files.unpacking import UnpackedFile, descriptor_of, packing_of
from edge_agent.sources.files.watched import open_watched
from edge_agent.sources.logs.marks import HEAD_BYTES, MARKED_BYTES, TAIL_BYTES, Mark, head_of, prints_of, sum_of

CHUNK_BYTES = 256 * 1024

TORN_BY_NUL = "row: torn by NUL bytes"
_NULS = re.compile(rb"\0+")


def place_of(log: Path, path: Path) -> tuple[Path, str]:
    """The folder below which no link is followed, and the name of a file in it.

    That is the log's folder, or the one above it that a pattern names by leading `..` parts.
    """
    parts = path.relative_to(log.parent).parts
    above = next((index for index, part in enumerate(parts) if part != ".."), len(parts) - 1)
    return log.parent.joinpath(*parts[:above]), "/".join(parts[above:])


class LogFile:
    """A log. Offsets count unpacked bytes. A log that was cut under a writer that keeps its own place begins with NUL bytes.

    Args:
        log: the log that is written now.
        path: of this file: the log itself, or one that it was rotated to.
        is_live: whether somebody writes to it, so that each read looks whether it still is what was read before.

    Attributes:
        is_cut: whether a read found that the log was emptied, and perhaps written to since.

    Raises:
        RefusedFileError: a link, or no plain file.
        OSError: it cannot be opened.
    """

    def __init__(self, log: Path, path: Path, *, is_live: bool = False) -> None:
        self.path = path
        self.is_live = is_live
        self.is_cut = False
        self._fd = descriptor_of(open_watched(*place_of(log, path)))
        self._stream: UnpackedFile | None = None
        self._start: int | None = None
        self._begun = b""
        self._empty_from = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._stream = -1, None

    @property
    def is_packed(self) -> bool:
        """Whether it is packed. An empty file is not, yet."""
        return bool(packing_of(os.pread(self._fd, 8, 0)))

    @property
    def broken(self) -> str:
        """The reason why it could not be unpacked any further; empty as long as it could."""
        return self._stream.broken if self._stream is not None else ""

    def stat(self) -> os.stat_result:
        """The file's, as it is now."""
        return os.fstat(self._fd)

    @property
    def start(self) -> int:
        """The offset of its content: its first byte that is not NUL."""
        if self._start is None:
            found = self.next_content(0)
            if found is None:
                return 0
            self._start = found
        return self._start

    def begins(self) -> bytes:
        """The first bytes of its content, as they were when it was read."""
        if len(self._begun) < MARKED_BYTES:
            now = self._read(self.start, MARKED_BYTES)
            if now.startswith(self._begun) and now[:1] != b"\0":
                self._begun = now
        return self._begun

    def size(self) -> int:
        """Its unpacked size; of a packed file that breaks: what can be unpacked."""
        if not self.is_packed:
            return self.stat().st_size
        size = 0
        with self._another_stream() as stream:
            while piece := stream.read(CHUNK_BYTES):
                size += len(piece)
        return size

    def before(self, offset: int) -> bytes:
        """At most a kilobyte of content just before a place."""
        first = max(self.start, offset - TAIL_BYTES)
        return self._read(first, offset - first) if offset > first else b""

    def read_on(self, offset: int, before: bytes) -> bytes:
        """The next bytes; none at the end, or where the log was cut.

        Args:
            offset: where.
            before: what was read just before it. It is compared after the read, so that what came after a cut is not taken for
                the continuation of what was cut.
        """
        piece = self._read(offset, CHUNK_BYTES)
        if self.is_live:
            begun = self.begins()
            now = os.pread(self._fd, len(begun), self.start)
            is_same = now == begun and os.pread(self._fd, len(before), offset - len(before)) == before
            self.is_cut = self.is_cut or not is_same or self.stat().st_size < offset
        return b"" if self.is_cut else piece

    def next_content(self, offset: int) -> int | None:
        """The place of the first byte from there on that is not NUL; None where there is none."""
        probed = (offset, self.stat().st_size)
        if not self.is_packed:
            if self._empty_from == probed and os.pread(self._fd, 1, offset) in (b"", b"\0"):
                return None  # nothing was written since the last look
            offset = self._next_data(offset)
        while piece := self._read(offset, CHUNK_BYTES):
            rest = piece.lstrip(b"\0")
            if rest:
                return offset + len(piece) - len(rest)
            offset += len(piece)
        self._empty_from = probed
        return None

    def holds(self, mark: Mark) -> bool:
        """Whether it begins as the marked file did, up to the marked place."""
        if not mark.fits(self.begins()):
            return False
        count = mark.tail[0]
        if not count:  # an earlier agent's mark
            return mark.size == 0 or len(self._read(mark.size - 1, 1)) == 1
        return sum_of(self._read(mark.size - count, count)) == mark.tail

    def mark(self, offset: int) -> Mark:
        """The mark of a place in it."""
        content = self.begins()[: max(0, offset - self.start)]
        return Mark(head_of(content[:HEAD_BYTES]), offset, sum_of(self.before(offset)), prints_of(content))

    def _read(self, offset: int, count: int) -> bytes:
        if not self.is_packed:
            return os.pread(self._fd, count, offset)
        if self._stream is None:
            self._stream = self._another_stream()
        if self._stream.tell() != offset and self._stream.seek(offset) != offset:
            return b""
        return self._stream.read(count)

    def _another_stream(self) -> UnpackedFile:
        return UnpackedFile(self._fd, is_owner=False)

    def _next_data(self, offset: int) -> int:
        """Skip a hole of the file system."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError:
            return offset  # the file ends in a hole, or its file system knows of none: the bytes are read


class GrowingLines:
    """Reads whole lines of an open file. The file stays open when this is closed: it is another's.

    Runs of NUL bytes are no content: a log that is cut under a writer with a place of its own begins with them, and a power cut
    may leave them within.

    Args:
        file: open for reading.
        offset: where to begin.
        max_line_bytes: a longer line is skipped and counted.
        rejects: where.

    Attributes:
        offset: the byte after the last line given out.
        is_final: whether the file will not grow any more, so that a last line without end is one.
    """

    def __init__(self, file: LogFile, offset: int, max_line_bytes: int, rejects: Rejects) -> None:
        self._file = file
        self._max = max_line_bytes
        self._rejects = rejects
        self._bytes = b""
        self._at = 0
        self._skipping = False
        self._lead = b""
        self.offset = max(offset, file.start)
        self.is_final = False
        try:
            self._before = file.before(self.offset)
        except OSError as error:
            raise self._failure(str(error.strerror or error)) from error
        if self.offset > file.start and not self._before:
            reason = file.broken or "it was cut since"
            raise SourceError(f"{file.path} ends before byte {offset}, where it was left: {reason}")

    @property
    def before(self) -> bytes:
        """At most a kilobyte that stands just before `offset`."""
        return _last(self._before, self._bytes[max(0, self._at - TAIL_BYTES) : self._at])

    @property
    def rest(self) -> bytes:
        """The bytes read of a line whose end is missing."""
        return self._bytes[self._at :]

    def join(self, lead: bytes) -> None:
        """The next line began with this, in another file."""
        self._lead = lead

    def peek(self) -> bytes | None:
        """The next whole line with its end, left in place; None where there is none yet. At the end of a final file: the rest."""
        while True:
            end = self._bytes.find(b"\n", self._at)
            if end >= 0:
                return self._bytes[self._at : end + 1]
            if not self._more():
                return self.rest if self.is_final else None

    def next_line(self) -> str | None:
        """The next whole line with its end; None where there is none yet."""
        while True:
            end = self._bytes.find(b"\n", self._at)
            if end < 0:
                if self._more():
                    continue
                return self._last() if self.is_final else None
            raw = self._bytes[self._at : end + 1]
            self._at = end + 1
            self.offset += len(raw)
            line = self._content(raw)
            if line is not None:
                return line.decode("utf-8", errors="replace")

    def close(self) -> None:
        """Nothing: the file is another's."""

    def _content(self, raw: bytes) -> bytes | None:
        """A line as it was meant; None where it was refused, or is none."""
        if self._skipping:
            self._skipping = False
            return None
        if b"\0" in raw:
            *torn, raw = _NULS.split(raw)
            self._refuse_torn(sum(bool(piece) for piece in torn))
            if not raw.strip():
                return None
        lead, self._lead = self._lead, b""
        if len(raw) + len(lead) > self._max + 1:
            self._refuse_long()
            return None
        return lead + raw

    def _more(self) -> bool:
        """Whether there were more bytes to be read."""
        rest = self._bytes[self._at :]
        read_to = self.offset + len(rest)
        try:
            piece = self._file.read_on(read_to, _last(self.before, rest))
            solid = piece.rstrip(b"\0")
            if piece and not solid:
                return self._skip_nuls(read_to, rest)
        except OSError as error:
            raise self._failure(str(error.strerror or error)) from error
        if not piece:
            if self._file.broken:
                raise self._failure(self._file.broken)
            return False
        self._before = self.before
        if len(rest) > self._max:
            if not self._skipping:
                self._refuse_long()
            self._skipping = True
            self._before = _last(self._before, rest)
            self.offset += len(rest)
            rest = b""
        self._bytes, self._at = rest + solid, 0
        return True

    def _skip_nuls(self, read_to: int, rest: bytes) -> bool:
        """Go on behind NUL bytes, if there is content: a writer may still fill in those at the end of a file."""
        to = self._file.next_content(read_to)
        if to is None:
            return False
        self._refuse_torn(int(bool(rest) and not self._skipping))
        self._skipping = False
        self.offset, self._bytes, self._at = to, b"", 0
        self._before = self._file.before(to)
        return True

    def _last(self) -> str | None:
        raw, before = self.rest, self.before
        self._bytes, self._at = b"", 0
        self.offset += len(raw)
        self._before = _last(before, raw)
        if not raw and not self._lead:
            return None
        line = self._content(raw)
        return None if line is None else line.decode("utf-8", errors="replace")

    def _refuse_long(self) -> None:
        self._rejects.count(f"row: line above {self._max} bytes")

    def _refuse_torn(self, count: int) -> None:
        if count:
            self._rejects.count(TORN_BY_NUL, times=count)

    def _failure(self, reason: str) -> SourceError:
        return SourceError(f"{self._file.path}: cannot be read near byte {self.offset}: {reason}")


def _last(before: bytes, more: bytes) -> bytes:
    return more[-TAIL_BYTES:] if len(more) >= TAIL_BYTES else (before + more)[-TAIL_BYTES:]
