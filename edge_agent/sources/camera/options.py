"""The options of a camera, and its frames made into batches; no video library."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edge_agent.sources.api import SampleBatch, Scalar
from schemas.contract import Contract
from schemas.source_names import match_columns

LIVE_SCHEMES = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "tcp://", "udp://", "srt://", "rtp://")
_DEVICES = "/dev/video"
MAX_BATCH_BYTES = 16 * 1024 * 1024


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
