"""Lines of a file that still grows: a line counts once its end is written."""

import zlib
from typing import BinaryIO

from edge_agent.capture.rejects import Rejects
from edge_agent.errors import SourceError

_CHUNK_BYTES = 256 * 1024


class GrowingLines:
    """Reads whole lines of an open file. The file stays open when this is closed: it is another's.

    Args:
        file: open for reading; unpacked bytes.
        offset: where to begin.
        max_line_bytes: a longer line is skipped and counted.
        rejects: where.

    Attributes:
        offset: the byte after the last line given out.
        is_final: whether the file will not grow any more, so that a last line without end is one.
    """

    def __init__(self, file: BinaryIO, offset: int, max_line_bytes: int, rejects: Rejects) -> None:
        self._file = file
        self._max = max_line_bytes
        self._rejects = rejects
        self._bytes = b""
        self._at = 0
        self._skipping = False
        self.offset = offset
        self.is_final = False
        self._seek(offset)

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
            if self._skipping:
                self._skipping = False
            elif len(raw) > self._max + 1:
                self._refuse()
            else:
                return raw.decode("utf-8", errors="replace")

    def close(self) -> None:
        """Nothing: the file is another's."""

    def _more(self) -> bool:
        """Whether there were more bytes to be read."""
        try:
            piece = self._file.read(_CHUNK_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{self._file.name}: cannot be read near byte {self.offset}: {error}") from error
        rest = self._bytes[self._at :]
        if len(rest) > self._max:
            if not self._skipping:
                self._refuse()
            self._skipping = True
            self.offset += len(rest)
            rest = b""
        self._bytes, self._at = rest + piece, 0
        return bool(piece)

    def _last(self) -> str | None:
        raw, self._bytes, self._at = self._bytes[self._at :], b"", 0
        self.offset += len(raw)
        return raw.decode("utf-8", errors="replace") if raw and not self._skipping else None

    def _seek(self, offset: int) -> None:
        try:
            reached = self._file.seek(offset)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{self._file.name}: cannot be read to byte {offset}: {error}") from error
        if reached != offset:
            raise SourceError(f"{self._file.name} ends before byte {offset}, where it was left; it was cut since")

    def _refuse(self) -> None:
        self._rejects.count(f"row: line above {self._max} bytes")
