"""Cameras by PyAV: a video file, which goes on at the frame where it was left, and a device that does not wait.

A device's frames are taken by a thread as they come; those that find no place are counted.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import SourceEndedError, SourceError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.camera.source import MAX_BATCH_BYTES, CameraFrame, CameraOptions, FrameBatches
from edge_agent.sources.camera.video import JpegEncoder, Video
from edge_agent.sources.files.watched import open_named, what_to_do
from edge_agent.sources.options import is_same_path
from edge_agent.sources.rows.cells import start_time_us
from schemas.contract import Contract

_MARGIN_S = 1e-6

DROPPED = "row: frame dropped: the spool was slower than the camera"
_WAIT_S = 0.1
_STOP_S = 5.0


class VideoPosition(msgspec.Struct, frozen=True):
    """The position in a file: after the frame at `at_s`, which was frame `number`. `start_us`: when it began."""

    source: str
    size: int
    at_s: float
    number: int
    start_us: int


class FileCamera:
    """Plays one file.

    Attributes:
        rejected: reason -> frames refused.
    """

    def __init__(self, options: CameraOptions, contract: Contract, clock: Clock, position: bytes | None) -> None:
        self._options = options
        self._clock = clock
        self._rejects = Rejects(f"camera {Path(options.source).name}")
        self._batches = FrameBatches(options, contract)
        self._encoder = JpegEncoder(options.quality, options.max_width)
        with self._opened() as file:
            self._size = os.fstat(file.fileno()).st_size
        self._number = 0
        self._at_s: float | None = None
        self._start_us = self._first_start_us()
        self._resume(position)
        self._open()

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many frames were refused since the source was built."""
        return dict(self._rejects.counts)

    def _first_start_us(self) -> int:
        start = self._options.time_start
        return self._clock.now_ms() * 1000 if start == "now" else start_time_us(start)

    def _resume(self, position: bytes | None) -> None:
        if position is None:
            return
        try:
            at = msgspec.json.decode(position, type=VideoPosition)
        except msgspec.MsgspecError:
            self._rejects.count("file: the stored position is unreadable; played from the start")
            return
        if is_same_path(at.source, self._options.source) and at.size == self._size:
            self._at_s, self._number, self._start_us = at.at_s, at.number + 1, at.start_us

    def _opened(self) -> BinaryIO:
        source = self._options.source
        try:
            return open_named(Path(source))
        except OSError as error:
            raise SourceError(f"{source} cannot be read ({error.strerror}); {what_to_do(error, 'correct `source`')}") from error

    def _open(self) -> None:
        options = self._options
        self._video = Video(options, self._rejects, self._opened)
        self._frames = self._thinned(self._video.frames(self._at_s))
        self._next = next(self._frames, None)
        self._began_s = self._clock.monotonic_s() - (self._next[0] if self._next is not None else 0.0)

    def _thinned(self, frames: Iterator[tuple[float, object]]) -> Iterator[tuple[float, object]]:
        """At most `rate_hz` frames a second, counted from the last one given out."""
        step_s = 1 / self._options.rate_hz if self._options.rate_hz > 0 else 0.0
        last_s = self._at_s if self._at_s is not None else float("-inf")
        for at_s, frame in frames:
            if at_s - last_s >= step_s - _MARGIN_S:
                last_s = at_s if at_s - last_s > 2 * step_s else last_s + step_s
                yield at_s, frame

    def read(self, max_samples: int) -> SampleBatch | None:
        """The frames that are due; None while the next is not.

        Raises:
            SourceEndedError: the file is played to its end.
            SourceError: it cannot be read.
        """
        if self._next is None:
            self._end()
        taken: list[CameraFrame] = []
        size = 0
        while self._next is not None and len(taken) < max_samples and size < MAX_BATCH_BYTES and self._is_due(self._next[0]):
            self._at_s = self._next[0]
            taken.append(self._frame(*self._next))
            size += len(taken[-1].jpeg)
            self._next = next(self._frames, None)
        if not taken:
            return None
        at = VideoPosition(self._options.source, self._size, self._at_s or 0.0, self._number - 1, self._start_us)
        is_ours = self._options.time_start == "now"
        return self._batches.batch(taken, msgspec.json.encode(at), agent_clock=is_ours)

    def _frame(self, at_s: float, frame: object) -> CameraFrame:
        jpeg, width, height = self._encoder.encode(frame)  # type: ignore[arg-type]
        self._number += 1
        return CameraFrame(self._number - 1, self._start_us + round(at_s * 1e6), jpeg, width, height)

    def _is_due(self, at_s: float) -> bool:
        return self._options.as_fast_as_it_goes or self._clock.monotonic_s() - self._began_s >= at_s

    def _end(self) -> None:
        if not self._number:
            self._rejects.count("file: holds no frame that can be decoded", self._options.source)
        if not self._options.loop:
            raise SourceEndedError(f"{self._options.source} is played to its end: {self._number} frames")
        self._video.close()
        self._start_us = self._clock.now_ms() * 1000 if self._options.time_start == "now" else self._after_end_us()
        self._at_s = None
        self._open()
        if self._next is None:
            raise SourceError(f"{self._options.source} holds no frame")

    def _after_end_us(self) -> int:
        return self._start_us + round(((self._at_s or 0.0) + self._video.frame_s) * 1e6)

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: the file stays as it is."""

    def close(self) -> None:
        """Close the file."""
        self._video.close()


class LiveCamera:
    """Reads one camera.

    Attributes:
        rejected: reason -> frames refused.
    """

    def __init__(self, options: CameraOptions, contract: Contract, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._rejects = Rejects(f"camera {options.shown}")
        self._batches = FrameBatches(options, contract)
        self._video = Video(options, self._rejects)
        self._waiting: deque[CameraFrame] = deque()
        self._ready = threading.Condition()
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many frames were refused since the source was built."""
        return dict(self._rejects.counts)

    def read(self, max_samples: int) -> SampleBatch | None:
        """The frames that have come; None when none comes at once.

        Raises:
            SourceError: the camera is gone.
        """
        taken: list[CameraFrame] = []
        size = 0
        with self._ready:
            if not self._waiting and self._failure is None:
                self._ready.wait(_WAIT_S)
            while self._waiting and len(taken) < max_samples and size < MAX_BATCH_BYTES:
                taken.append(self._waiting.popleft())
                size += len(taken[-1].jpeg)
            if not taken and self._failure is not None:
                raise SourceError(str(self._failure)) from self._failure
        return self._batches.batch(taken, None, agent_clock=True) if taken else None

    def _run(self) -> None:
        try:
            self._take_frames()
            failure: Exception = SourceError("the camera's stream ended; it is opened again after a while")
        except Exception as error:  # noqa: BLE001 # told by the next read, which fails the source
            failure = error
        with self._ready:
            self._failure = failure
            self._ready.notify()

    def _take_frames(self) -> None:
        encoder = JpegEncoder(self._options.quality, self._options.max_width)
        step_s = 1 / self._options.rate_hz if self._options.rate_hz > 0 else 0.0
        next_s = float("-inf")
        for number, (_, frame) in enumerate(self._video.frames(None)):
            if self._stop.is_set():
                return
            now_s = self._clock.monotonic_s()
            if now_s < next_s:
                continue
            next_s = (now_s if now_s - next_s > step_s else next_s) + step_s
            time_us = self._clock.now_ms() * 1000
            if len(self._waiting) < self._options.max_waiting:
                self._put(CameraFrame(number, time_us, *encoder.encode(frame)))
            else:
                self._rejects.count(DROPPED)

    def _put(self, frame: CameraFrame) -> None:
        with self._ready:
            self._waiting.append(frame)
            self._ready.notify()

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: a camera does not repeat itself."""

    def close(self) -> None:
        """Stop reading; a camera that hangs is left to its time-out."""
        self._stop.set()
        self._thread.join(_STOP_S)
        if not self._thread.is_alive():
            self._video.close()
