"""The demo's sets of a vehicle: frames with telemetry, and windows of both as Zarr arrays, however short the drive was."""

import importlib.util
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from typer.testing import CliRunner

from pipelines.commands.root import app
from pipelines.demo import drawn
from pipelines.demo.drawn import drive
from pipelines.demo.learn import build_vehicle_sets, torch_epoch
from pipelines.demo.site import DemoSite
from pipelines.demo.view import DemoCommands
from pipelines.lake.payload import write_payload_shard
from pipelines.training.open import open_set

START = datetime(2026, 1, 1, tzinfo=UTC)
SHARD = "payload/camera_frame/000000000001-0.parquet"


class OwnProcess(DemoCommands):
    """Runs commands in this process."""

    def __init__(self) -> None:
        pass

    def run(self, program: str, *arguments: str, is_shown: bool = True) -> str:
        assert (program, is_shown) == ("catchment", True)
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return str(done.stdout)


def keys(times_s: list[float]) -> dict[str, pa.Array]:
    return {
        "device": pa.array(["vehicle-7"] * len(times_s)),
        "epoch": pa.array([1] * len(times_s), pa.int64()),
        "seq": pa.array(range(len(times_s)), pa.int64()),
        "event_time": pa.array([START + timedelta(seconds=at) for at in times_s], pa.timestamp("us", "UTC")),
    }


def driven_site(folder: Path, seconds: float) -> DemoSite:
    """The lake of a demo after a drive of so many seconds: telemetry 20 times a second, frames twice."""
    site = DemoSite(folder)
    site.lake.mkdir(parents=True)
    site.core_config.write_text(f'lake = "{site.lake}"\n')
    moments = [number / 20 for number in range(round(seconds * 20))]
    states = [drive(7, at).columns() for at in moments]
    signals = {name: pa.array([state[name] for state in states]) for name in states[0]}
    write_deltalake(site.lake / "streams/vehicle_telemetry", pa.table({**keys(moments), **signals}))
    shots = moments[::10]
    bodies = [drawn.jpeg(drawn.road_frame(7, at, hour=12.0, steering_deg=0.0)) for at in range(len(shots))]
    base = keys(shots)
    shard = write_payload_shard(
        site.lake / SHARD,
        pa.table({
            **{name: base[name] for name in ("device", "epoch", "seq")},
            "payload_sha256": pa.nulls(len(shots), pa.string()), "payload": pa.array(bodies, pa.binary()),
        }),
    )  # fmt: skip
    frames = pa.table({
        **base, "camera": ["front"] * len(shots), "label": pa.nulls(len(shots), pa.string()),
        "width": pa.array([drawn.WIDTH] * len(shots), pa.int32()), "payload_shard": [SHARD] * len(shots),
        "payload_row": pa.array(range(len(shots)), pa.int32()), "payload_offset": shard.offsets, "payload_length": shard.lengths,
        "payload_sha256": pa.nulls(len(shots), pa.string()),
    })  # fmt: skip
    write_deltalake(site.lake / "streams/camera_frame", frames)
    return site


def test_frames_carry_the_telemetry_of_their_moment_and_windows_both_streams(tmp_path: Path) -> None:
    built = build_vehicle_sets(OwnProcess(), driven_site(tmp_path, 30))
    assert built.scene_samples == 60
    frame = open_set(built.scenes, "train")[0]
    assert frame["speed_mps"] == pytest.approx(drive(7, (frame["event_time"] - START).total_seconds()).speed_mps, abs=2.0)
    assert "came from <b>vehicle_telemetry</b>" in (built.scenes / "card.html").read_text()
    arrays = open_set(built.windows, "train").array_batch(np.array([0]))
    assert arrays["windows"].shape == (1, 40, 4)
    assert arrays["mask"].all()
    assert set(arrays["windows"][0, :, 3]) == {float(drawn.WIDTH)}
    assert built.window_samples == len(open_set(built.windows, "train")) + len(open_set(built.windows, "test"))


def test_a_drive_of_a_few_seconds_gives_sets_too(tmp_path: Path) -> None:
    built = build_vehicle_sets(OwnProcess(), driven_site(tmp_path, 6))
    assert (built.scene_samples, built.window_samples > 0) == (12, True)


def test_an_epoch_of_tensors_is_loaded_only_where_torch_is(tmp_path: Path) -> None:
    built = build_vehicle_sets(OwnProcess(), driven_site(tmp_path, 12))
    loaded = torch_epoch(built.windows)
    assert loaded == (None if importlib.util.find_spec("torch") is None else len(open_set(built.windows, "train")))
