"""Read CAN frames by python-can: from a log, at the frame where it was left, or from a bus."""

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from datetime import tzinfo
from pathlib import Path
from typing import Any

import can
import msgspec

from catchment.runtime.beneath import EXCHANGED, RefusedFileError
from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.can.candump import CandumpReader, ViewReader, is_view, tells_differences
from edge_agent.sources.can.decoder import FrameSampler
from edge_agent.sources.can.source import CanOptions
from edge_agent.sources.files.unpacking import UnpackedFile, packing_of
from edge_agent.sources.files.watched import open_named, what_to_do
from edge_agent.sources.options import is_same_path
from edge_agent.sources.rows.cells import start_time_us
from schemas.contract import Contract
from schemas.written_values import read_zone

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
