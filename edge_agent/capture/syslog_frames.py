"""A byte stream cut into syslog messages (RFC 6587): octet counting and line feeds, told apart message by message. Pure."""

from edge_agent.capture.rejects import Rejects

_MAX_DIGITS = 7
_DIGITS = b"0123456789"


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

    def add(self, piece: bytes) -> list[bytes]:
        """More bytes; the messages that are whole now."""
        self._bytes += piece
        found: list[bytes] = []
        while (message := self._next()) is not None:
            if message:
                found.append(message)
        return found

    def end(self) -> list[bytes]:
        """The connection is over: a last line without its line feed is a message, half of a counted one is none."""
        rest, self._bytes = bytes(self._bytes), bytearray()
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
            del self._bytes[:gone]
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
            del self._bytes[: space + 1]
            self._skip = length
            return b""
        if len(self._bytes) < space + 1 + length:
            return None
        message = bytes(self._bytes[space + 1 : space + 1 + length])
        del self._bytes[: space + 1 + length]
        return message

    def _line(self) -> bytes | None:
        end = self._bytes.find(b"\n")
        if end < 0:
            if len(self._bytes) <= self._max and not self._skip_line:
                return None
            if not self._skip_line:
                self._refuse()
            self._skip_line = True
            self._bytes.clear()
            return None
        line = bytes(self._bytes[:end])
        del self._bytes[: end + 1]
        if self._skip_line:
            self._skip_line = False
            return b""
        if end > self._max:
            self._refuse()
            return b""
        return line

    def _refuse(self) -> None:
        self._rejects.count(f"row: message above {self._max} bytes")
