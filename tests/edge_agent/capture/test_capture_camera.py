"""Cameras: real video files, a real RTSP stream, and frames that come faster than they can be stored."""

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from catchment.runtime.clock import Clock, SystemClock
from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from edge_agent.sources.api import SampleBatch, Source
from edge_agent.sources.camera.cameras import DROPPED
from edge_agent.sources.registry import GuardedSource, build_source, check_source
from schemas.contract import builtin_contract
from tests.plant.broker import free_port
from tests.plant.present import present

FRAMES = builtin_contract("camera_frame")
_BUILT: list[GuardedSource] = []


class HandClock:
    def __init__(self) -> None:
        self.s = 0.0

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(self.s * 1000)

    def monotonic_s(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        self.s += seconds


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while _BUILT:
        _BUILT.pop().close()


def camera(source: object, position: bytes | None = None, clock: Clock | None = None, **options: Any) -> GuardedSource:
    _BUILT.append(build_source("camera", {"source": str(source), **options}, FRAMES, clock or HandClock(), position))
    return _BUILT[-1]


def drain(source: Source, most: int = 10_000, max_samples: int = 16) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []
    while len(found) < most:
        try:
            batch = source.read(max_samples)
        except SourceEndedError:
            return found
        if batch is not None:
            found += rows(batch)
    return found


def rows(batch: SampleBatch) -> list[tuple[int, int, bytes]]:
    frames, payloads = cast("Sequence[int]", batch.columns["frame"]), cast("Sequence[bytes]", batch.payloads)
    return list(zip(frames, batch.event_time_us, payloads, strict=True))


def write_clip(path: str, frames: int, *, form: str | None = None, pace_s: float = 0.0, codec: str = "mpeg4") -> None:
    """A clip whose n-th frame shows a bar as wide as n."""
    with av.open(path, "w", format=form) as out:
        stream = cast("av.VideoStream", out.add_stream(codec, rate=25))
        stream.width, stream.height, stream.pix_fmt = 320, 96, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for n in range(frames):
            image = Image.new("RGB", (320, 96))
            ImageDraw.Draw(image).rectangle((0, 0, n * 4, 96), fill=(255, 255, 255))
            frame = av.VideoFrame.from_image(image)
            frame.pts = n
            out.mux(stream.encode(frame))
            time.sleep(pace_s)
        out.mux(stream.encode())


def bar(jpeg: bytes) -> int:
    image = Image.open(io.BytesIO(jpeg)).convert("L")
    return int(sum(value > 128 for value in np.asarray(image)[48]) * 320 / image.width / 4)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "bars.mp4"
    write_clip(str(path), 60)
    return path


def test_a_file_is_played_at_its_own_rate_each_frame_once(clip: Path) -> None:
    clock = HandClock()
    source = camera(clip, clock=clock)
    seen = []
    for _ in range(50):
        batch = source.read(100)
        seen.append(0 if batch is None else len(batch))
        clock.s += 0.04
    assert set(seen) <= {1, 2, 0}
    assert abs(sum(seen) - 50) <= 1


def test_every_frame_comes_in_order_with_its_time_and_picture(clip: Path) -> None:
    found = drain(camera(clip, as_fast_as_it_goes=True, time_start="2024-05-01T00:00:00Z"))
    assert [number for number, _, _ in found] == list(range(60))
    assert {later[1] - first[1] for first, later in pairwise(found)} == {40_000}
    assert all(abs(bar(jpeg) - number) <= 1 for number, _, jpeg in found)
    assert all(jpeg.startswith(b"\xff\xd8") and jpeg.endswith(b"\xff\xd9") for _, _, jpeg in found)


def write_times(path: Path, times_ms: list[int], rate: int = 10) -> None:
    """A clip whose frames stand at these times."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for n, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (n * 10, 0, 0)))
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.mark.parametrize("name", ["even.ts", "bare.h264", "bursts.mkv", "late.mkv"])
def test_every_form_of_video_begins_at_its_configured_time_and_resumes_at_every_frame(tmp_path: Path, name: str) -> None:
    times_ms = {
        "bursts.mkv": [0, 5, 10, 5_000, 5_005, 5_010, 20_000, 20_001, 20_002, 60_000],
        "late.mkv": [3_600_000 + n * 100 for n in range(12)],
    }.get(name, [n * 40 for n in range(12)])
    write_times(tmp_path / name, times_ms, rate=25)
    options: dict[str, Any] = {"as_fast_as_it_goes": True, "time_start": "2024-05-01T00:00:00Z"}
    expected = [1_714_521_600_000_000 + (time_ms - times_ms[0]) * 1_000 for time_ms in times_ms]
    found: list[tuple[int, int, bytes]] = []
    position = None
    while True:
        source = camera(tmp_path / name, position, **options)
        batch = None
        with contextlib.suppress(SourceEndedError):
            batch = source.read(1)
        if batch is None:
            break
        found += rows(batch)
        position = batch.position
    assert [number for number, _, _ in found] == list(range(len(times_ms)))
    assert [time_us for _, time_us, _ in found] == expected


def test_a_video_without_a_frame_is_counted(tmp_path: Path) -> None:
    write_times(tmp_path / "whole.mkv", [0, 100, 200])
    torn = (tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "torn.mkv").write_bytes(torn[: torn.index(b"\x1f\x43\xb6\x75") + 40])
    source = camera(tmp_path / "torn.mkv", as_fast_as_it_goes=True)
    assert drain(source) == []
    assert source.rejected == {"file: holds no frame that can be decoded": 1}


@pytest.mark.parametrize("step", [1, 7, 23])
def test_a_restart_anywhere_neither_skips_nor_repeats_a_frame(clip: Path, step: int) -> None:
    seen: list[tuple[int, int, bytes]] = []
    position = None
    while True:
        source = camera(clip, position, as_fast_as_it_goes=True)
        try:
            batch = present(source.read(step))
        except SourceEndedError:
            break
        seen += rows(batch)
        position = batch.position
        source.close()
    assert [number for number, _, _ in seen] == list(range(60))
    assert all(abs(bar(jpeg) - number) <= 1 for number, _, jpeg in seen)
    assert {later[1] - first[1] for first, later in pairwise(seen)} == {40_000}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "frames", "size"),
    [("dashcam/solidWhiteRight.mp4", 221, (960, 540)), ("gopro_max-heromode/max-heromode.mp4", 315, (848, 480))],
)
def test_real_videos_give_all_their_frames(shared_data: Path, name: str, frames: int, size: tuple[int, int]) -> None:
    source = camera(shared_data / "vehicle" / name, as_fast_as_it_goes=True, quality=50)
    found = drain(source)
    assert [number for number, _, _ in found] == list(range(frames))
    assert {Image.open(io.BytesIO(jpeg)).size for _, _, jpeg in found[::40]} == {size}
    assert source.rejected == {}


def test_a_real_video_resumes_between_key_frames(shared_data: Path) -> None:
    path = shared_data / "vehicle/dashcam/solidWhiteRight.mp4"
    options: dict[str, Any] = {"as_fast_as_it_goes": True, "quality": 40, "max_width": 160}
    whole = [jpeg for _, _, jpeg in drain(camera(path, **options), most=80)]
    batch = present(camera(path, **options).read(37))
    again = drain(camera(path, batch.position, **options), most=43)
    assert [*present(batch.payloads), *[jpeg for _, _, jpeg in again]][:80] == whole[:80]


def test_fewer_and_smaller_frames_are_given_where_configured(clip: Path) -> None:
    found = drain(camera(clip, as_fast_as_it_goes=True, rate_hz=5.0, max_width=160))
    assert len(found) == 12
    assert Image.open(io.BytesIO(found[0][2])).size == (160, 48)
    assert all(later[1] - first[1] == 200_000 for first, later in pairwise(found))


def test_better_quality_takes_more_bytes(clip: Path) -> None:
    sizes = [sum(len(jpeg) for _, _, jpeg in drain(camera(clip, as_fast_as_it_goes=True, quality=q))) for q in (10, 60, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_a_looped_file_goes_on_counting(clip: Path) -> None:
    found = drain(camera(clip, as_fast_as_it_goes=True, loop=True, time_start="2024-05-01T00:00:00Z"), most=130)
    assert [number for number, _, _ in found][:130] == list(range(130))
    assert [later[1] - first[1] for first, later in pairwise(found)] == [40_000] * (len(found) - 1)


def test_a_torn_file_gives_what_can_be_decoded(clip: Path, tmp_path: Path) -> None:
    content = bytearray(clip.read_bytes())
    start = content.find(b"mdat") + 600
    content[start : start + 400] = bytes(400)
    (tmp_path / "torn.mp4").write_bytes(content)
    found = drain(camera(tmp_path / "torn.mp4", as_fast_as_it_goes=True))
    assert 20 < len(found) <= 60


def test_what_is_no_video_fails_with_a_hint_and_without_the_password(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match="cannot be opened"):
        camera(tmp_path / "x.mp4")
    with pytest.raises(SourceError, match="cannot be read"):
        camera(tmp_path / "none.mp4")
    with pytest.raises(SourceError) as caught:
        camera("rtsp://anna:secret@127.0.0.1:1/x", timeout_s=1.0)
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


def test_wrong_options_are_reported_before_anything_starts() -> None:
    for options, word in (
        ({"source": "x", "quality": 0}, "quality"),
        ({"source": "x", "time_start": "then"}, "time_start"),
        ({}, "source"),
    ):
        with pytest.raises(ConfigError, match=word):
            check_source("camera", options, FRAMES)
    with pytest.raises(ConfigError, match="payload"):
        check_source("camera", {"source": "x"}, builtin_contract("vehicle_telemetry"))


def until_it_fails(source: Source) -> tuple[list[tuple[int, int, bytes]], str]:
    found: list[tuple[int, int, bytes]] = []
    while True:
        try:
            batch = source.read(100)
        except SourceError as error:
            return found, str(error)
        found += rows(batch) if batch is not None else []


# In a process of its own: an FFmpeg that waits to be answered must not hold up the one that answers.
PUSH = """
import sys, time
from tests.edge_agent.capture.test_capture_camera import write_clip
for _ in range(200):
    try:
        write_clip(sys.argv[1], 75, form="rtsp", pace_s=0.01)
        break
    except OSError:
        time.sleep(0.05)
"""


def test_an_rtsp_stream_is_read_frame_by_frame_and_its_end_fails_the_source() -> None:
    url = f"rtsp://127.0.0.1:{free_port()}/live"
    listen = {"rtsp_flags": "listen", "listen_timeout": "20"}
    with subprocess.Popen([sys.executable, "-c", PUSH, url]):
        source = camera(url, clock=SystemClock(), ffmpeg=listen, timeout_s=20.0)
        found, failure = until_it_fails(source)
    assert "ended" in failure
    bars = [bar(jpeg) for _, _, jpeg in found]
    assert len(found) + source.rejected.get(DROPPED, 0) >= 70
    assert bars == sorted(bars)
    assert all(first[1] <= later[1] for first, later in pairwise(found))


def test_frames_that_find_no_place_are_dropped_and_counted() -> None:
    source = camera("testsrc=size=64x48:rate=25", clock=SystemClock(), format="lavfi", max_waiting=4)
    until = time.monotonic() + 20
    while DROPPED not in source.rejected and time.monotonic() < until:
        time.sleep(0.01)
    assert source.rejected[DROPPED] > 0
    assert [number for number, _, _ in drain(source, most=4)][:4] == [0, 1, 2, 3]
