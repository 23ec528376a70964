"""Reads what `candump` prints for people, when its output was saved instead of its log format (`candump -l` or `-L`).

(1700000000.010000)  can0  18FEF1FE   [8]  FF 00 50 00 00 00 00 00
(1700000000.020000)  can0  RX - -  123   [2]  01 02   '..'
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TextIO

import can

_LINE = re.compile(
    r"\s*(?:\((?P<time>[0-9.:\- ]+)\)\s+)?(?P<channel>\S+)\s+(?:[RT]X\s+\S\s+\S\s+)?"
    r"(?P<id>[0-9A-Fa-f]{3}|[0-9A-Fa-f]{8})\s+\[(?P<length>\d{1,2})\]\s*(?P<data>.*)"
)
_BYTES = re.compile(r"(?:[0-9A-Fa-f]{2}(?: |$))*")
_STANDARD_DIGITS = 3
_ERROR_FLAG = 0x2000_0000
_ID_BITS = 0x1FFF_FFFF
_PEEKED_LINES = 20
_MAX_LINE_CHARS = 4_096


class ViewLineError(ValueError):
    """A line that is none of `candump`; those after it are read on."""


def is_view(text: TextIO) -> bool:
    """Whether a text begins as what `candump` prints for people.

    Raises:
        OSError: it cannot be read.
    """
    lines = [line for _ in range(_PEEKED_LINES) if (line := text.readline(_MAX_LINE_CHARS)).strip()]
    return any(_LINE.fullmatch(line.strip("\r\n")) is not None for line in lines)


class ViewReader:
    """Iterates over the frames of such a file, like python-can's readers; a line that cannot be read raises and is left behind.

    Args:
        text: of the file; it is closed with the reader.
    """

    def __init__(self, text: TextIO) -> None:
        self._file = text

    def __iter__(self) -> Iterator[can.Message]:
        while line := self._file.readline(_MAX_LINE_CHARS):
            if line.strip():
                yield read_view_line(line.strip("\r\n"))

    def stop(self) -> None:
        """Close the file."""
        self._file.close()


def read_view_line(line: str) -> can.Message:
    """The frame of one line; one without a time has the time NaN.

    Raises:
        ViewLineError: it is no such line.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise ViewLineError("no line of candump")
    id_ = int(match["id"], 16)
    is_extended = len(match["id"]) > _STANDARD_DIGITS
    length, rest = int(match["length"]), match["data"]
    is_remote = rest.startswith("remote request")
    data = b""
    if not is_remote:
        found = _BYTES.match(rest)
        data = bytes.fromhex(found[0]) if found else b""
        if len(data) > length:
            data = data[:length]  # the text that -a adds may begin like a byte
        if len(data) < length:
            raise ViewLineError(f"{length} bytes are announced, {len(data)} are there")
    return can.Message(
        timestamp=_time_s(match["time"]), arbitration_id=id_ & _ID_BITS, is_extended_id=is_extended, is_remote_frame=is_remote,
        is_error_frame=is_extended and bool(id_ & _ERROR_FLAG), is_fd=len(match["length"]) > 1, dlc=length, data=data,
        channel=match["channel"],
    )  # fmt: skip


def _time_s(text: str | None) -> float:
    if text is None:
        return float("nan")
    try:
        return float(text)
    except ValueError:
        pass  # not seconds: a date, as -t A prints it
    try:
        return datetime.fromisoformat(text.strip()).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise ViewLineError("a time that cannot be") from error
