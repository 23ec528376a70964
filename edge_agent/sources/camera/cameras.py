"""Cameras by PyAV (the `camera` extra): a video file, which resumes where it was left, and a device that does not wait.

A device's frames are taken by a thread as they come; those for which there is no room are counted. Frames become JPEG here.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
import msgspec
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

from catchment.runtime.clock import Clock
from edge_agent.errors import SourceEndedError, SourceError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.camera.source import MAX_BATCH_BYTES, CameraFrame, CameraOptions, FrameBatches
from edge_agent.sources.files.watched import open_named, what_to_do
from edge_agent.sources.options import is_same_path
from edge_agent.sources.rows.cells import start_time_us
from schemas.contract import Contract

_MAX_BROKEN = 100
# No protocol is called so: a file may open none.
_ALONE = {"protocol_whitelist": "none"}
_COARSEST, _FINEST = 31, 2
_ENCODER_TIME = Fraction(1, 1000)
# Where a seek lands behind the frame that was asked for (transport streams do), it is tried from further back.
_BACK_S = (0.0, 2.0, 10.0, 60.0)
# PyAV before 19 fails on a title that is no UTF-8, by default; 19, which Python 3.12 and newer get, has no such word.
_LENIENT: dict[str, Any] = {} if int(av.__version__.partition(".")[0]) >= 19 else {"metadata_errors": "replace"}


class Video:
    """An opened video: a device, an address or a file.

    Args:
        options: what is opened, and how.
        rejects: where frames are counted that cannot be decoded.
        open_file: opens the video where it is a file. FFmpeg then opens nothing by itself: what a file names (a playlist does)
            is not read.

    Raises:
        SourceError: it cannot be opened, or has no picture.
    """

    def __init__(self, options: CameraOptions, rejects: Rejects, open_file: Callable[[], BinaryIO] | None = None) -> None:
        self._options = options
        self._open_file = open_file
        self._file: BinaryIO | None = None
        self._name = options.shown
        self._rejects = rejects
        self._open()

    def _open(self) -> None:
        options = self._options
        self._file = self._open_file() if self._open_file is not None else None
        try:
            self._container: InputContainer = av.open(
                options.source if self._file is None else self._file,
                format=options.input_format or None,
                options=options.input_options if self._file is None else {**options.input_options, **_ALONE},
                timeout=(options.timeout_s, options.timeout_s),
                **_LENIENT,
            )
        except (FFmpegError, OSError, ValueError) as error:
            self._close_file()
            # The error's own text quotes the address with its password.
            raise SourceError(f"{self._name} cannot be opened: {_reason(error)}; is it there, may the agent read it?") from None
        if not self._container.streams.video:
            self.close()
            raise SourceError(f"{self._name} has no picture")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        # Asked for once: PyAV 19 tells nothing of a video that is closed.
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._frame_s = float(1 / rate) if rate else 0.04
        # Transport streams and cut-out pieces do not count from 0; the frames' times here do.
        begins, base = self._stream.start_time, self._stream.time_base
        self._begins_s = 0.0 if begins is None or base is None else float(begins * base)

    @property
    def frame_s(self) -> float:
        """Seconds from frame to frame, as the video says; 1/25 where it does not."""
        return self._frame_s

    def frames(self, after_s: float | None) -> Iterator[tuple[float, VideoFrame]]:
        """Time since the video's beginning and frame, in order; those after `after_s` alone.

        Raises:
            SourceError: it cannot be read any more.
        """
        for back_s in () if after_s is None else _BACK_S:
            frames = self._from(after_s - back_s)  # type: ignore[operator]  # there is none without after_s
            first = next(frames, None)
            # What begins at or before the frame that was left holds all that follows it.
            if first is not None and first[0] <= after_s:  # type: ignore[operator]
                yield from _after(frames, after_s)
                return
        if after_s is not None:
            # It cannot be sought in, or has no times: counted from its start once more.
            self.close()
            self._open()
        yield from _after(self._decoded(), after_s)

    def _from(self, start_s: float) -> Iterator[tuple[float, VideoFrame]]:
        """Frames from the key frame before a time on, as far as they tell their times."""
        try:
            base = self._stream.time_base or Fraction(1, 1000)
            self._container.seek(int((self._begins_s + start_s) / base), stream=self._stream, backward=True)
        except (FFmpegError, OSError, OverflowError):
            return
        for at_s, frame in self._decoded():
            if frame.pts is None:
                return
            yield at_s, frame

    def _decoded(self) -> Iterator[tuple[float, VideoFrame]]:
        broken, last_s = 0, -self.frame_s
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
                found = packet.decode()
            except StopIteration:
                return
            except InvalidDataError as error:
                broken += 1
                self._rejects.count("row: frame cannot be decoded")
                if broken > _MAX_BROKEN:
                    raise SourceError(f"{self._name}: {broken} frames in a row cannot be decoded: {error}") from error
                continue
            except (FFmpegError, OSError) as error:
                raise SourceError(f"{self._name} cannot be read any more: {_reason(error)}") from None
            for frame in found:
                broken = 0
                last_s = frame.time - self._begins_s if frame.pts is not None else last_s + self.frame_s
                yield last_s, frame

    def close(self) -> None:
        """Close it."""
        self._container.close()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()


def _after(frames: Iterator[tuple[float, VideoFrame]], after_s: float | None) -> Iterator[tuple[float, VideoFrame]]:
    return frames if after_s is None else ((at_s, frame) for at_s, frame in frames if at_s > after_s)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or type(error).__name__)


class JpegEncoder:
    """Frames as JPEG.

    Args:
        quality: 1 to 100.
        max_width: wider frames are scaled down; 0: none is.
    """

    def __init__(self, quality: int, max_width: int) -> None:
        self._step = round(_COARSEST - (quality - 1) / 99 * (_COARSEST - _FINEST))
        self._max_width = max_width
        self._codec: VideoCodecContext | None = None

    def encode(self, frame: VideoFrame) -> tuple[bytes, int, int]:
        """JPEG, width and height.

        Raises:
            SourceError: it cannot be encoded.
        """
        width, height = self._size(frame)
        try:
            picture = frame.reformat(width, height, "yuvj420p", dst_color_range=ColorRange.JPEG)
            picture.pts, picture.time_base = None, _ENCODER_TIME
            codec = self._codec_for(width, height)
            packets = codec.encode(picture)
        except (FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"a frame of {width} x {height} cannot be encoded: {error}") from error
        return b"".join(bytes(packet) for packet in packets), width, height

    def _size(self, frame: VideoFrame) -> tuple[int, int]:
        width, height = frame.width, frame.height
        if self._max_width and width > self._max_width:
            height = max(2, round(height * self._max_width / width / 2) * 2)
            width = self._max_width
        return width, height

    def _codec_for(self, width: int, height: int) -> VideoCodecContext:
        codec = self._codec
        if codec is None or (codec.width, codec.height) != (width, height):
            codec = VideoCodecContext.create("mjpeg", "w")
            codec.width, codec.height, codec.pix_fmt = width, height, "yuvj420p"
            codec.time_base = _ENCODER_TIME
            codec.qmin = codec.qmax = self._step
            codec.thread_count = 1  # with more, a frame comes out one later than it went in
            self._codec = codec
        return codec


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
        except Exception as error:  # noqa: BLE001 # raised by the next read, which fails the source
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
