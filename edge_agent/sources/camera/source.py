"""A source of pictures: a V4L2 device, a network camera or a video file; each frame is a sample, JPEG its payload.

    kind = "camera"
    source = "/dev/video0"        # or rtsp://user:password@10.0.0.7/stream, http://..., or a file
    rate_hz = 5.0                 # at most so many frames a second; 0: all
    quality = 85                  # of the JPEG, 1 to 100
    max_width = 1280              # wider frames are scaled down; 0: none
    as_fast_as_it_goes = false    # a file: not at its frame rate
    loop = false                  # a file: again from its start
    time_start = "now"            # a file: when its first frame was taken
    ffmpeg = { video_size = "1920x1080", framerate = "30", input_format = "mjpeg" }   # FFmpeg's own options
    format = ""                   # FFmpeg's format, where it cannot tell by itself
    timeout_s = 10.0              # to open, and without a frame
    max_waiting = 32              # frames held for the spool; what comes then is dropped and counted
    columns = { camera = "line-3" }

Needs the `camera` extra (PyAV, which brings FFmpeg along). A file resumes at the frame where it was left.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError
from edge_agent.sources.api import SampleBatch, Scalar, Source
from edge_agent.sources.options import read_options
from edge_agent.sources.rows.cells import CellError, start_time_us
from schemas.contract import Contract
from schemas.source_names import match_columns

LIVE_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "tcp://", "udp://", "srt://", "rtp://")
_DEVICES = "/dev/video"
MAX_BATCH_BYTES = 16 * 1024 * 1024

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("source", "format")


class CameraOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a camera; the source's docstring shows each."""

    source: str
    rate_hz: float = 0.0
    quality: int = 85
    max_width: int = 0
    as_fast_as_it_goes: bool = False
    loop: bool = False
    time_start: str = "now"
    format: str = ""
    ffmpeg: dict[str, str] = {}
    timeout_s: float = 10.0
    max_waiting: int = 32
    columns: dict[str, str | int | float | bool] = {}

    @property
    def is_live(self) -> bool:
        """Whether what is not read now is gone."""
        return self.source.startswith((*LIVE_SCHEMES, _DEVICES)) or self.format in ("v4l2", "lavfi")

    @property
    def shown(self) -> str:
        """The source as it may stand in a log: without user and password."""
        return re.sub(r"//[^/@]*@", "//", self.source)

    @property
    def input_format(self) -> str:
        """FFmpeg's format."""
        return self.format or ("v4l2" if self.source.startswith(_DEVICES) else "")

    @property
    def input_options(self) -> dict[str, str]:
        """FFmpeg's options: over UDP, RTSP frames come torn wherever a packet is lost."""
        return {"rtsp_transport": "tcp", **self.ffmpeg} if self.source.startswith("rtsp") else dict(self.ffmpeg)


@dataclass(frozen=True, slots=True)
class CameraFrame:
    """One frame as JPEG."""

    number: int
    time_us: int
    jpeg: bytes
    width: int
    height: int


FRAME_NAMES = ("frame", "media_type", "width", "height")


class FrameBatches:
    """Makes batches of frames.

    Args:
        options: with the columns that are the same for every frame.
        contract: columns it does not have are left out.
    """

    def __init__(self, options: CameraOptions, contract: Contract) -> None:
        self._fixed = options.columns
        self._columns = match_columns((*FRAME_NAMES, *options.columns), contract.columns, {})

    def batch(self, frames: Sequence[CameraFrame], position: bytes | None, *, agent_clock: bool) -> SampleBatch:
        """One batch of these frames."""
        columns: dict[str, Sequence[Scalar]] = {
            "frame": [frame.number for frame in frames],
            "media_type": ["image/jpeg"] * len(frames),
            "width": [frame.width for frame in frames],
            "height": [frame.height for frame in frames],
            **{name: [value] * len(frames) for name, value in self._fixed.items()},
        }
        known = {column.name: columns[name] for name, column in self._columns.items()}
        return SampleBatch([f.time_us for f in frames], known, [f.jpeg for f in frames], position, agent_clock)


def names_given(options: Mapping[str, object], contract: Contract) -> tuple[str, ...]:
    """The names that a frame gives."""
    return (*FRAME_NAMES, *check(options, contract).columns)


def check(options: Mapping[str, object], contract: Contract) -> CameraOptions:
    """The options of a camera.

    Raises:
        ConfigError: an option is unknown, missing or wrong, the contract has no payload, or PyAV is not installed.
    """
    chosen = read_options("camera", options, CameraOptions, contract)
    if contract.payload is None:
        raise ConfigError(f"source 'camera': contract {contract.name} has no payload; pictures need one that has")
    if not 1 <= chosen.quality <= 100:
        raise ConfigError(f"source 'camera': quality {chosen.quality} must be within 1 and 100")
    if chosen.rate_hz < 0 or chosen.max_width < 0 or chosen.timeout_s <= 0 or chosen.max_waiting < 1:
        raise ConfigError("source 'camera': rate_hz and max_width are 0 or more, timeout_s and max_waiting above 0")
    if chosen.time_start != "now":
        try:
            start_time_us(chosen.time_start)
        except CellError as error:
            raise ConfigError(f"source 'camera': time_start = {chosen.time_start!r} is {error}") from error
    if find_spec("av") is None:
        raise ConfigError("source 'camera' needs PyAV: install catchment[camera]")
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> Source:
    """Open a camera.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: it cannot be opened.
    """
    chosen = check(options, contract)
    # Loaded only here: they bring a video library along.
    if chosen.is_live:
        from edge_agent.sources.camera.cameras import LiveCamera  # noqa: PLC0415

        return LiveCamera(chosen, contract, clock)
    from edge_agent.sources.camera.cameras import FileCamera  # noqa: PLC0415

    return FileCamera(chosen, contract, clock, position)
