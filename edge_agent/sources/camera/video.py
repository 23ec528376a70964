"""Video in, JPEG out, by PyAV (the `camera` extra). The only module that knows it."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
from av.container import InputContainer
from av.error import FFmpegError, InvalidDataError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange

from edge_agent.errors import SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.camera.source import CameraOptions

_MAX_BROKEN = 100
# No protocol is called so: a file may open none.
_ALONE = {"protocol_whitelist": "none"}
_COARSEST, _FINEST = 31, 2
_ENCODER_TIME = Fraction(1, 1000)
# Where a seek lands behind the frame that was asked for (transport streams do), it is tried from further back.
_BACK_S = (0.0, 2.0, 10.0, 60.0)
# PyAV before 19 fails on a title that is no UTF-8, unless told not to; 19, which Python 3.12 and newer get, has no such word.
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
