"""Read what candump writes: its log format (`candump -l` or `-L`), and what it prints for people.

(1700000000.010000) can0 18FEF1FE#FF00500000000000
(1700000000.020000) can0 123#R8            a remote frame
(1700000000.030000) can0 123##3112233      CAN FD: flags, then data
(1700000000.040000) can0 20000004#0000000000000000   an error frame

python-can's own reader takes most error frames for data, and half a byte at a torn line's end for a whole one.

(1700000000.010000)  can0  18FEF1FE   [8]  FF 00 50 00 00 00 00 00
(1700000000.020000)  can0  RX - -  123   [2]  01 02   '..'
"""

import math
import re
from collections.abc import Iterator, Sequence
from datetime import tzinfo
from itertools import pairwise
from typing import TextIO

import can

from edge_agent.errors import ConfigError
from schemas.written_values import TimeForm, WrittenValueError, read_time

_LINE = re.compile(
    r"\((?P<time>\d+(?:\.\d+)?)\)\s+(?P<channel>\S+)\s+(?P<id>[0-9A-Fa-f]{3}|[0-9A-Fa-f]{8})#(?P<frame>\S*)(?:\s+[RT])?\s*"
)
# Flags of FD, data with or without points between the bytes, and the length code of a frame that says more than eight.
_FRAME = re.compile(r"(?:#(?P<flags>[0-9A-Fa-f]))?(?P<data>(?:\.?[0-9A-Fa-f]{2})*)(?:_[0-9A-Fa-f])?")
_REMOTE = re.compile(r"[Rr](?P<length>[0-8])?(?:_[0-9A-Fa-f])?")
_STANDARD_DIGITS, _STANDARD_BITS = 3, 0x7FF
ERROR_FLAG, ID_BITS = 0x2000_0000, 0x1FFF_FFFF
_FD_BYTES, _CLASSIC_BYTES = 64, 8
MAX_LINE_CHARS = 4_096
_VIEW_LINE = re.compile(
    r"\s*(?:\((?P<time>[0-9.:\- ]+)\)\s+)?(?P<channel>\S+)\s+(?:[RT]X\s+\S\s+\S\s+)?"
    r"(?P<id>[0-9A-Fa-f]{3}|[0-9A-Fa-f]{8})\s+\[(?P<length>\d{1,2})\]\s*(?P<data>.*)"
)
_BYTES = re.compile(r"(?:[0-9A-Fa-f]{2}(?: |$))*")
_SECONDS = re.compile(r"\d+(?:\.\d+)?")
# Seconds below this count from the start of a log, and not from 1970.
EARLIEST_S = 1e8
_PEEKED_LINES = 20


class LogLineError(ValueError):
    """A line that is none of `candump`; those after it are read on."""


class CandumpReader:
    """Iterates over the frames of such a file, like python-can's readers; a line that cannot be read raises and is left behind.

    Args:
        text: of the file; it is closed with the reader.
    """

    def __init__(self, text: TextIO) -> None:
        self._file = text

    def __iter__(self) -> Iterator[can.Message]:
        while line := self._file.readline(MAX_LINE_CHARS):
            if line.strip("\ufeff \t\r\n"):
                yield read_log_line(line)

    def stop(self) -> None:
        """Close the file."""
        self._file.close()


def read_log_line(line: str) -> can.Message:
    """The frame of one line.

    Raises:
        LogLineError: it is no such line.
    """
    match = _LINE.fullmatch(line.strip("\ufeff \t\r\n"))
    frame = None if match is None else _FRAME.fullmatch(match["frame"])
    remote = None if match is None else _REMOTE.fullmatch(match["frame"])
    if match is None or (frame is None and remote is None):
        raise LogLineError("no line of candump")
    id_, is_extended = int(match["id"], 16), len(match["id"]) > _STANDARD_DIGITS
    data = b"" if frame is None else bytes.fromhex(frame["data"].replace(".", ""))
    flags = 0 if frame is None or frame["flags"] is None else int(frame["flags"], 16)
    is_fd = frame is not None and frame["flags"] is not None
    if len(data) > (_FD_BYTES if is_fd else _CLASSIC_BYTES) or (not is_extended and id_ > _STANDARD_BITS):
        raise LogLineError("a frame that cannot be")
    return can.Message(
        timestamp=float(match["time"]), arbitration_id=id_ & ID_BITS, is_extended_id=is_extended,
        is_remote_frame=remote is not None, is_error_frame=is_extended and bool(id_ & ERROR_FLAG), is_fd=is_fd,
        bitrate_switch=bool(flags & 1), error_state_indicator=bool(flags & 2),
        dlc=int(remote["length"] or 0) if remote is not None else len(data), data=data, channel=match["channel"],
    )  # fmt: skip


def is_view(text: TextIO) -> bool:
    """Whether a text begins as what `candump` prints for people.

    Raises:
        OSError: it cannot be read.
    """
    return bool(_peek(text))


def tells_differences(text: TextIO) -> bool:
    """Whether the times of a text are distances from frame to frame (`-t d`): they go back and forth near zero.

    Raises:
        OSError: it cannot be read.
    """
    times = [float(match["time"]) for match in _peek(text) if _SECONDS.fullmatch(match["time"] or "")]
    return any(later < earlier < EARLIEST_S for earlier, later in pairwise(times))


def _peek(text: TextIO) -> Sequence[re.Match[str]]:
    lines = [line for _ in range(_PEEKED_LINES) if (line := text.readline(MAX_LINE_CHARS)).strip()]
    return [match for line in lines if (match := _VIEW_LINE.fullmatch(line.strip("\r\n"))) is not None]


class ViewReader:
    """Iterates over the frames of such a file, like python-can's readers; a line that cannot be read raises and is left behind.

    Args:
        text: of the file; it is closed with the reader.
        zone: of times as dates (`-t A`), which tell none.
        are_differences: each time is the distance from the frame before (`-t d`).
    """

    def __init__(self, text: TextIO, zone: tzinfo | None = None, *, are_differences: bool = False) -> None:
        self._file = text
        self._zone = zone
        self._are_differences = are_differences
        self._time_us = 0

    def __iter__(self) -> Iterator[can.Message]:
        while line := self._file.readline(MAX_LINE_CHARS):
            if line.strip():
                frame = read_view_line(line.strip("\r\n"), self._zone, self._time_us)
                if not math.isnan(frame.timestamp):
                    time_us = round(frame.timestamp * 1e6)
                    self._time_us = self._time_us + time_us if self._are_differences else time_us
                    frame.timestamp = self._time_us / 1e6
                yield frame

    def stop(self) -> None:
        """Close the file."""
        self._file.close()


def read_view_line(line: str, zone: tzinfo | None = None, after_us: int | None = None) -> can.Message:
    """The frame of one line; one without a time has the time NaN.

    Args:
        line: without its end.
        zone: of a date.
        after_us: when the frame before it was: tells apart local times that occur twice.

    Raises:
        LogLineError: it is no such line.
        ConfigError: its time is a date, and no zone is given.
    """
    match = _VIEW_LINE.fullmatch(line)
    if match is None:
        raise LogLineError("no line of candump")
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
            raise LogLineError(f"{length} bytes are announced, {len(data)} are there")
    return can.Message(
        timestamp=_time_s(match["time"], zone, after_us),
        arbitration_id=id_ & ID_BITS, is_extended_id=is_extended, is_remote_frame=is_remote,
        is_error_frame=is_extended and bool(id_ & ERROR_FLAG), is_fd=len(match["length"]) > 1, dlc=length, data=data,
        channel=match["channel"],
    )  # fmt: skip


def _time_s(text: str | None, zone: tzinfo | None, after_us: int | None) -> float:
    if text is None:
        return float("nan")
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        return read_time(text, TimeForm("rfc3339", zone=zone), after_us).micros / 1e6
    except WrittenValueError as error:
        if error.needs == "time_zone":
            raise ConfigError(f"source 'can': times such as {text.strip()!r} tell no zone; set time_zone") from error
        raise LogLineError("a time that cannot be") from error
