"""Read CAN frames from a bus or a log: by python-can, and candump's two forms by hand.

A log resumes at the frame where it was left. What candump writes (`candump -l` or `-L`), and what it prints for people:

(1700000000.010000) can0 18FEF1FE#FF00500000000000
(1700000000.020000) can0 123#R8            a remote frame
(1700000000.030000) can0 123##3112233      CAN FD: flags, then data
(1700000000.040000) can0 20000004#0000000000000000   an error frame
(1700000000.010000)  can0  18FEF1FE   [8]  FF 00 50 00 00 00 00 00
(1700000000.020000)  can0  RX - -  123   [2]  01 02   '..'

python-can's own reader takes most error frames for data, and half a byte at a torn line's end for a whole one.
"""

import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from datetime import tzinfo
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import can
import msgspec

from catchment.runtime.beneath import EXCHANGED, RefusedFileError
from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.can.decoder import FrameSampler
from edge_agent.sources.can.source import CanOptions
from edge_agent.sources.files.unpacking import UnpackedFile, packing_of
from edge_agent.sources.files.watched import open_named, what_to_do
from edge_agent.sources.options import is_same_path
from edge_agent.sources.rows.cells import start_time_us
from schemas.contract import Contract
from schemas.written_values import TimeForm, WrittenValueError, read_time, read_zone

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


_HEAD_BYTES = 4_096
_MAX_FRAMES = 100_000
_Reader = can.io.generic.MessageReader | ViewReader | CandumpReader
_TEXT_LOGS = (".log", ".txt")


class CanLogPosition(msgspec.Struct, frozen=True):
    """The position in this log: frames read; `shift_us` was added to their times."""

    log: str
    head: int
    frames: int
    shift_us: int | None


class CanLog:
    """Reads one log.

    Attributes:
        rejected: reason -> frames refused.
    """

    def __init__(self, options: CanOptions, contract: Contract, position: bytes | None) -> None:
        self._options = options
        self._rejects = Rejects(f"can {Path(options.log).name}")
        self._sampler = FrameSampler(options, contract, self._rejects)
        self._reader, self._head, self._packed = _open(options.log, read_zone(options.time_zone))
        self._frames: Iterator[can.Message] = iter(self._reader)
        self._read_frames = 0
        self._resumed_at = 0
        self._shift_us: int | None = None
        self._resume(position)

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many frames were refused since the source was built."""
        return dict(self._rejects.counts)

    def _resume(self, position: bytes | None) -> None:
        if position is None:
            return
        try:
            at = msgspec.json.decode(position, type=CanLogPosition)
        except msgspec.MsgspecError:
            self._rejects.count("file: the stored position is unreadable; read from the start")
            return
        if is_same_path(at.log, self._options.log) and at.head == self._head:
            self._shift_us = at.shift_us
            for _ in range(at.frames):
                self._next()
            self._resumed_at = self._read_frames

    def read(self, max_samples: int) -> SampleBatch | None:
        """The signals of the next frames: about `max_samples` of them, no frame in two batches.

        Raises:
            SourceEndedError: the log is read to its end.
            SourceError: it is packed and cut short or damaged; all frames before that were given.
        """
        self._sampler.begin()
        rows = self._sampler.rows
        last = self._read_frames + _MAX_FRAMES
        while len(rows) < max_samples and self._read_frames < last:
            frame = self._next()
            if frame is None:
                if not rows:
                    self._end()
                    raise SourceEndedError(f"{self._options.log} is read to its end: {self._read_frames} frames")
                break
            if math.isnan(frame.timestamp):
                self._rejects.count("row: no time: record with candump -t a, or with -L")
                continue
            self._sampler.take(self._time_us(frame.timestamp), frame, self._channel_of(frame))
        at = CanLogPosition(self._options.log, self._head, self._read_frames, self._shift_us)
        return rows.batch(msgspec.json.encode(at), agent_clock=False)

    def _channel_of(self, frame: can.Message) -> str:
        """Return the bus that the log names for a frame; else the log's name."""
        return Path(self._options.log).name if frame.channel in (None, "") else str(frame.channel)

    def _end(self) -> None:
        if self._read_frames and not self._sampler.matched and self._resumed_at < self._read_frames:
            self._rejects.count("file: no frame matched: correct dbc, signals or j1939", f"{self._read_frames} frames")
        if self._packed is not None and self._packed.broken:
            raise SourceError(
                f"{self._options.log}: {self._packed.broken}; the {self._read_frames} whole frames before that were read;"
                " put the whole file in its place"
            )

    def _next(self) -> can.Message | None:
        while True:
            try:
                frame = next(self._frames, None)
            except ConfigError:
                raise  # the log waits for a setting
            except Exception as error:  # noqa: BLE001 # each reader raises its own; a broken log stays broken
                if isinstance(self._reader, (CandumpReader, ViewReader)):
                    # Lines of text, each by itself: a torn one, as a power cut leaves, says nothing of those behind it.
                    self._rejects.count("row: no line of candump", f"{self._read_frames}: {error}")
                    self._frames = iter(self._reader)
                    continue
                self._rejects.count("file: broken; frames after this place are not read", f"{self._read_frames}: {error}")
                self._frames = iter(())
                return None
            self._read_frames += frame is not None
            return frame

    def _time_us(self, timestamp: float) -> int:
        time_us = round(timestamp * 1e6)
        if not self._options.time_start:
            return time_us
        if self._shift_us is None:
            self._shift_us = start_time_us(self._options.time_start) - time_us
        return time_us + self._shift_us

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: the log stays as it is."""

    def close(self) -> None:
        """Close the log."""
        self._reader.stop()


def _check_same(reader: can.io.generic.MessageReader, descriptor: int, log: Path) -> None:
    """python-can opens by name: what it opened must be the file that was checked."""
    opened = getattr(getattr(reader, "file", None), "fileno", None)  # a database and MDF 4 have none
    now = os.fstat(opened()) if opened is not None else log.stat(follow_symlinks=False)
    if not os.path.samestat(now, os.fstat(descriptor)):
        reader.stop()
        raise RefusedFileError(EXCHANGED, log)


def _open(log: str, zone: tzinfo | None) -> tuple[_Reader, int, UnpackedFile | None]:
    """A reader of the log, the mark of its beginning, and the file that is unpacked for it, where it is packed."""
    path = Path(log)
    try:
        with open_named(path) as file:
            head = file.read(_HEAD_BYTES)
            reader, packed = _reader(path, file.fileno(), zone, is_packed=bool(packing_of(head)))
            return reader, zlib.crc32(head), packed
    except OSError as error:
        raise SourceError(f"{log} cannot be read ({error.strerror}); {what_to_do(error, 'correct `log`')}") from error
    except (ValueError, NotImplementedError, struct.error, can.CanError) as error:
        raise SourceError(f"{log} is no log that python-can reads: {error}") from error


def _reader(log: Path, descriptor: int, zone: tzinfo | None, *, is_packed: bool) -> tuple[_Reader, UnpackedFile | None]:
    """Packed logs are unpacked here and not by python-can, whose reader loses the frames before a break.

    Raises:
        ValueError: python-can has no reader for what is packed.
    """
    suffixes = [suffix.lower() for suffix in log.suffixes][-2 if is_packed else -1 :]
    known = can.io.player.MESSAGE_READERS
    if any(suffix in _TEXT_LOGS for suffix in suffixes):
        with _text(descriptor, "ascii") as beginning:
            shows_view = is_view(beginning)
        if shows_view:
            with _text(descriptor, "ascii") as beginning:
                are_differences = tells_differences(beginning)
            text = _text(descriptor, "ascii")
            return ViewReader(text, zone, are_differences=are_differences), text.buffer
    kind = next((found for suffix in reversed(suffixes) if (found := known.get(suffix)) is not None), None)
    if kind is can.CanutilsLogReader:
        text = _text(descriptor, "utf-8")
        return CandumpReader(text), text.buffer
    if not is_packed:
        reader = can.LogReader(log)
        _check_same(reader, descriptor, log)
        return reader, None
    if kind is not None and issubclass(kind, can.io.generic.TextIOMessageReader):
        text = _text(descriptor, "utf-8")
        return kind(text), text.buffer
    if kind is not None and issubclass(kind, can.io.generic.BinaryIOMessageReader):
        packed = UnpackedFile(os.dup(descriptor))
        return kind(packed), packed
    raise ValueError(f"no packed log of the kind {''.join(suffixes)!r} can be read")


def _text(descriptor: int, encoding: str) -> "io.TextIOWrapper[UnpackedFile]":
    return io.TextIOWrapper(UnpackedFile(os.dup(descriptor), whole_lines=True), encoding=encoding, errors="replace")


class CanLive:
    """Listens to one bus. The kernel passes on only the messages that are decoded.

    Attributes:
        rejected: reason -> frames refused.
    """

    def __init__(self, options: CanOptions, contract: Contract) -> None:
        self._options = options
        self._rejects = Rejects(f"can {options.channel}")
        self._sampler = FrameSampler(options, contract, self._rejects)
        own: dict[str, Any] = dict(options.bus)
        filters: list[can.typechecking.CanFilter] = [
            {"can_id": id_, "can_mask": mask, "extended": extended}
            for id_, mask, extended in self._sampler.filters(options.channel)
        ]
        try:
            self._bus = can.Bus(options.channel, options.interface, can_filters=filters or None, **own)
        except (can.CanError, OSError, ValueError, TypeError) as error:
            raise SourceError(f"can bus {options.channel} cannot be opened: {error}; is it up? ip link show") from error

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many frames were refused since the source was built."""
        return dict(self._rejects.counts)

    def read(self, max_samples: int) -> SampleBatch | None:
        """The signals of the frames that have come; None when none comes within `wait_ms`.

        Raises:
            SourceError: the bus went down.
        """
        self._sampler.begin()
        rows = self._sampler.rows
        wait_s = self._options.wait_ms / 1000
        try:
            while len(rows) < max_samples and (frame := self._bus.recv(wait_s)) is not None:
                self._sampler.take(round(frame.timestamp * 1e6), frame, self._options.channel)
                wait_s = 0.0
        except (can.CanError, OSError) as error:
            if not rows:  # else the next read tells
                raise SourceError(f"can bus {self._options.channel} went down: {error}") from error
        return rows.batch(None, agent_clock=True)

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: a bus does not repeat itself."""

    def close(self) -> None:
        """Close the bus."""
        self._bus.shutdown()
