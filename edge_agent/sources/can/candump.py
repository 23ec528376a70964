"""Reads candump's log format (`candump -l` or `-L`), one frame a line.

(1700000000.010000) can0 18FEF1FE#FF00500000000000
(1700000000.020000) can0 123#R8            a remote frame
(1700000000.030000) can0 123##3112233      CAN FD: flags, then data
(1700000000.040000) can0 20000004#0000000000000000   an error frame

python-can's own reader takes most error frames for data, and half a byte at a torn line's end for a whole one.
"""

import re
from collections.abc import Iterator
from typing import TextIO

import can

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
