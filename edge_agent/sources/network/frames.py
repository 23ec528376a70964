"""Cut a byte stream into syslog messages (RFC 6587), whose framing may change with each. Pure."""

import re

from edge_agent.sources.api import Rejects

_MAX_DIGITS = 7
_DIGITS = b"0123456789"
_NUL = b"\0"
_TRAILER = re.compile(rb"[\n\0]")
# A message's first bytes: its priority, after its count where it is counted.
_BEGIN = re.compile(rb"(?:[1-9]\d{0,6} )?<\d{1,3}>")
_BEGIN_CUT = re.compile(rb"(?:[1-9]\d{0,6}(?: (?:<\d{0,3})?)?|<\d{0,3})?")
_COUNTED = re.compile(rb"[1-9]\d{0,6} <")
_AHEAD_BYTES = 13


class FrameBuffer:
    """Bytes of one connection.

    Args:
        max_message_bytes: a longer message is dropped as it comes, counted, and never held whole.
        rejects: where.
    """

    def __init__(self, max_message_bytes: int, rejects: Rejects) -> None:
        self._max = max_message_bytes
        self._rejects = rejects
        self._bytes = bytearray()
        self._skip = 0  # bytes of an overlong counted message still to come
        self._skip_line = False  # the rest of an overlong line is still to come
        self._scanned = 0  # so many bytes hold no end of a message
        self._ends_by_nul = False  # this connection's messages end by NUL

    def add(self, piece: bytes) -> list[bytes]:
        """More bytes; the messages that are whole now."""
        self._bytes += piece
        found: list[bytes] = []
        while (message := self._next()) is not None:
            if message:
                found.append(message)
        return found

    @property
    def held_bytes(self) -> int:
        """Bytes that wait for the rest of their message."""
        return len(self._bytes)

    @property
    def is_held(self) -> bool:
        """Whether a message may be whole and only what follows could tell: by a NUL, or in a stream of NULs by a line feed."""
        return self._is_at_a_stop(bytes(self._bytes[-1:])) and not self._skip and not self._skip_line

    def idle(self) -> list[bytes]:
        """Nothing followed for a while: what `is_held` speaks of is a message."""
        if not self.is_held or _COUNTED.match(self._bytes):
            return []
        self._ends_by_nul |= self._bytes.endswith(_NUL)
        message = bytes(self._bytes[:-1])
        self._drop(len(self._bytes))
        if len(message) > self._max:
            self._refuse()
            return []
        return [message] if message else []

    def end(self) -> list[bytes]:
        """The connection is over: a last line without its end is a message, half of a counted one is none."""
        if held := self.idle():
            return held
        rest = bytes(self._bytes)
        self._drop(len(rest))
        if not rest or self._skip or self._skip_line:
            return []
        if rest[0] in _DIGITS:
            self._rejects.count("row: the connection broke within a message")
            return []
        return [rest]

    def _next(self) -> bytes | None:
        """The next message, empty for one that is none, or None where more bytes are needed."""
        if self._skip:
            gone = min(self._skip, len(self._bytes))
            self._drop(gone)
            self._skip -= gone
        if not self._bytes or self._skip:
            return None
        if not self._skip_line and self._bytes[0] in _DIGITS[1:]:
            return self._counted()
        return self._line()

    def _counted(self) -> bytes | None:
        space = self._bytes.find(b" ", 0, _MAX_DIGITS + 1)
        digits = bytes(self._bytes[: space if space >= 0 else _MAX_DIGITS])
        if not digits.isdigit() or (space < 0 and len(self._bytes) > _MAX_DIGITS):
            return self._line()  # a line that begins with a digit and was never counted
        if space < 0 or len(self._bytes) == space + 1:
            return None
        if self._bytes[space + 1 : space + 2] != b"<":
            return self._line()  # "12 files gone": a message that is counted begins with its priority
        length = int(digits)
        if length > self._max:
            self._refuse()
            self._drop(space + 1)
            self._skip = length
            return b""
        if len(self._bytes) < space + 1 + length:
            return None
        message = bytes(self._bytes[space + 1 : space + 1 + length])
        self._drop(space + 1 + length)
        return message

    def _line(self) -> bytes | None:
        end = self._end_of_line()
        if end is None:
            if len(self._bytes) <= self._max + 1 and not self._skip_line:
                return None
            if not self._skip_line:
                self._refuse()
            self._skip_line = True
            # What may be the end stays until what follows tells.
            self._drop(len(self._bytes) - self._held_bytes())
            return None
        line = bytes(self._bytes[:end])
        self._drop(end + 1)
        if self._skip_line:
            self._skip_line = False
            return b""
        if end > self._max:
            self._refuse()
            return b""
        return line

    def _end_of_line(self) -> int | None:
        """Find the trailer of the first message: a line feed, or a NUL before a new message (RFC 6587, 3.4.2).

        A NUL may also stand within a line, so only what follows tells. Once a connection has ended a message by NUL, every NUL
        does, and a line feed is part of a message unless a new one follows.
        """
        at = self._scanned
        while found := _TRAILER.search(self._bytes, at):
            at = found.end()
            is_nul = found[0] == _NUL
            if is_nul == self._ends_by_nul:
                return found.start()
            begins = self._begins_message(at)
            if begins is None:
                self._scanned = found.start()
                return None
            if begins:
                self._ends_by_nul |= is_nul
                return found.start()
        self._scanned = len(self._bytes)
        return None

    def _drop(self, count: int) -> None:
        """Take so many bytes from the front."""
        del self._bytes[:count]
        self._scanned = 0

    def _begins_message(self, at: int) -> bool | None:
        """Whether a message with a priority, counted or not, begins here; None: more bytes tell."""
        ahead = bytes(self._bytes[at : at + _AHEAD_BYTES])
        if _BEGIN.match(ahead):
            return True
        return None if _BEGIN_CUT.fullmatch(ahead) else False

    def _held_bytes(self) -> int:
        """Count the bytes at the end that may be a trailer and the beginning of the next message."""
        last = max(self._bytes.rfind(_NUL), self._bytes.rfind(b"\n"))
        return len(self._bytes) - last if last >= 0 and len(self._bytes) - last <= _AHEAD_BYTES else 0

    def _is_at_a_stop(self, last: bytes) -> bool:
        return last == _NUL or (self._ends_by_nul and last == b"\n")

    def _refuse(self) -> None:
        self._rejects.count(f"row: message above {self._max} bytes")
