"""Lines of a file that still grows: a line counts once its end is written."""

import re

from edge_agent.errors import SourceError
from edge_agent.sources.logs.file import LogFile
from edge_agent.sources.logs.marks import TAIL_BYTES
from edge_agent.sources.rejects import Rejects

TORN_BY_NUL = "row: torn by NUL bytes"
_NULS = re.compile(rb"\0+")


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
        """What was read of a line whose end is not there."""
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
