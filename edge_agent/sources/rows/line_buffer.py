"""Bytes of a pipe or connection, cut into lines. Pure."""

from edge_agent.sources.rejects import Rejects


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
