"""Sets of windows: what is in each, on which side of a split it lies, that others open it, that damage is found."""

import hashlib
import io
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from subprocess import DEVNULL, run
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from deltalake import write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.training import set_files
from pipelines.training.array_reader import ArraySample
from pipelines.training.array_rules import LabelRule, Resample, WindowRule
from pipelines.training.build import BuildOptions, build_set, draft_set
from pipelines.training.device_rows import DeviceFiles
from pipelines.training.manifest import Manifest
from pipelines.training.open import TrainingSet, open_set
from pipelines.training.sample import Sample
from pipelines.training.windows import plan_windows, resample_blocks
from tests.pipelines.training.conftest import START, drive
from tests.plant.present import present

HALVES = {"train": 0.5, "test": 0.5}
RULE = WindowRule(window_s=2.0, stride_s=1.0, rate_hz=10.0, columns=("speed", "yaw"))


def grid(rows: pa.Table, rule: WindowRule) -> tuple[np.ndarray, np.ndarray]:
    """Values and gaps of the only stretch."""
    blocks = list(resample_blocks(plan_windows(rows, rule), 7))
    return np.concatenate([values for _, values, _ in blocks]), np.concatenate([mask for _, _, mask in blocks])


def built(lake: Path, rule: WindowRule = RULE, name: str = "drives", **options: Any) -> Path:
    chosen = BuildOptions(**{"split": HALVES, "arrays": rule, **options})
    manifest = build_set(lake_at(lake), name, ("telemetry",), seed=4, options=chosen)
    return lake / "sets" / name / str(manifest.version)


def window(sample: Sample) -> ArraySample:
    """The sample as one of a set of windows."""
    assert isinstance(sample, ArraySample)
    return sample


def test_every_window_holds_the_values_of_its_device_at_its_times(driven: Path) -> None:
    folder = built(driven)
    sides = [open_set(folder, split) for split in HALVES]
    assert sum(len(side) for side in sides) == 6 * 29
    for sample in (window(sample) for side in sides for sample in side):
        car, start_s = int(sample["device"][-1]), (sample["event_time"] - START).total_seconds()
        wanted = start_s + np.arange(20) / 10
        assert sample.array.shape == present(sample.mask).shape == (20, 2)
        assert np.allclose(sample.array[:, 0], car * 100 + wanted)
        assert sample["seq"] == round(start_s * 20)
        there = present(sample.mask)[:, 1]
        assert np.allclose(sample.array[there, 1], np.minimum(wanted[there], np.where(wanted[there] < 13, 9.95, 1e9)))
        assert np.isnan(sample.array[~there, 1]).all()


def test_no_value_lies_further_away_than_a_hole(driven: Path) -> None:
    samples = [window(sample) for split in HALVES for sample in open_set(built(driven), split)]
    gaps = {
        round((sample["event_time"] - START).total_seconds() + step / 10, 1)
        for sample in samples
        for step in np.flatnonzero(~present(sample.mask)[:, 1])
    }
    assert gaps == {round(11 + step / 10, 1) for step in range(20)}


@pytest.mark.parametrize(
    ("resample", "expected"),
    [
        (Resample.PREVIOUS, [0.0, 0.0, 0.0, 3.0]),
        (Resample.NEAREST, [0.0, 0.0, 3.0, 3.0]),
        (Resample.LINEAR, [0.0, 1.0, 2.0, 3.0]),
        (Resample.MEAN, [0.0, np.nan, np.nan, 4.0]),
    ],
)
def test_each_rule_of_resampling_gives_its_own_values(resample: Resample, expected: list[float]) -> None:
    rows = drive("car", [0.0, 3.0, 3.5, 4.0], speed=[0.0, 3.0, 5.0, 6.0])
    rule = WindowRule(4.0, 4.0, 1.0, ("speed",), resample, hole_s=3.0)
    values, mask = grid(rows, rule)
    assert np.array_equal(values[:, 0], np.array(expected, np.float32), equal_nan=True)
    assert np.array_equal(mask[:, 0], ~np.isnan(expected))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=60, unique=True).map(sorted),
    st.sampled_from([Resample.PREVIOUS, Resample.NEAREST, Resample.LINEAR, Resample.MEAN]),
    st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    st.sampled_from([1.0, 3.0, 10.0, 7.5]),
)
def test_resampling_is_what_a_plain_loop_gives(ticks: list[int], resample: Resample, hole_s: float, rate: float) -> None:
    times = np.array(ticks) / 20
    numbers = np.array([(tick * 7919) % 101 for tick in ticks], float)
    rule = WindowRule(4 / rate, 2 / rate, rate, ("speed",), resample, hole_s)
    plan = plan_windows(drive("car", list(times), speed=list(numbers)), rule)
    values, mask = grid(drive("car", list(times), speed=list(numbers)), rule) if len(plan.first) else (np.zeros((0, 1)),) * 2
    starts = [(at - START).total_seconds() for at in plan.keys["event_time"].to_pylist()]
    for start, first in zip(starts, plan.first.tolist(), strict=True):
        for step in range(rule.steps):
            at = start + step / rate
            expected = plain_value(times, numbers, at, 1 / rate, rule)
            assert mask[first + step, 0] == (expected is not None)
            if expected is not None:
                assert values[first + step, 0] == pytest.approx(expected, abs=1e-3)


def plain_value(times: np.ndarray, numbers: np.ndarray, at: float, step: float, rule: WindowRule) -> float | None:
    slack, hole = 2e-6, rule.hole_s + 2e-6
    before = [i for i in range(len(times)) if times[i] <= at + slack]
    after = [i for i in range(len(times)) if times[i] > at + slack]
    back = at - times[before[-1]] if before else 1e9
    ahead = times[after[0]] - at if after else 1e9
    if rule.resample is Resample.MEAN:
        inside = [numbers[i] for i in range(len(times)) if at - slack <= times[i] < at + step - slack]
        return float(np.mean(inside)) if inside else None
    if rule.resample is Resample.PREVIOUS:
        return float(numbers[before[-1]]) if back <= hole else None
    if rule.resample is Resample.NEAREST:
        near = before[-1] if back <= ahead + slack and before else after[0]
        return numbers[near] if min(back, ahead) <= hole else None
    if abs(back) <= slack:
        return float(numbers[before[-1]])
    if not before or not after or back + ahead > hole:
        return None
    return float(np.interp(at, times, numbers))


def test_no_window_crosses_devices_epochs_or_long_silence() -> None:
    rows = pa.concat_tables(
        [
            drive("a", [0.0, 1.0, 2.0, 3.0], speed=[1.0] * 4),
            drive("a", [4.0, 5.0, 6.0], epoch=2, speed=[2.0] * 3),
            drive("a", [20.0, 21.0, 22.0], epoch=2, first_seq=3, speed=[3.0] * 3),
            drive("b", [4.0, 5.0, 6.0, 7.0], speed=[4.0] * 4),
        ]
    )
    plan = plan_windows(rows, WindowRule(3.0, 1.0, 1.0, ("speed",)))
    keys = [tuple(row[name] for name in ("device", "epoch", "seq", "window_rows")) for row in plan.keys.to_pylist()]
    assert keys == [("a", 1, 0, 3), ("a", 1, 1, 3), ("a", 2, 0, 3), ("a", 2, 3, 3), ("b", 1, 0, 3), ("b", 1, 1, 3)]


def test_rows_that_enter_no_window_are_counted() -> None:
    rows = pa.concat_tables([drive("a", [0.0, 1.0, 2.0], speed=[1.0] * 3), drive("b", [0.0], speed=[1.0])])
    late = rows.slice(0, 1).set_column(3, "event_time", pa.array([None], pa.timestamp("us", "UTC")))
    plan = plan_windows(pa.concat_tables([rows, late]), WindowRule(2.0, 2.0, 1.0, ("speed",)))
    assert {part.reason: part.rows for part in plan.left_out} == {"no event time": 1, "in no whole window": 2}


def test_signals_that_come_as_rows_become_channels() -> None:
    rows = drive("a", [0.0, 0.0, 1.0, 1.0, 2.0], name=["rpm", "gear", "rpm", "gear", "rpm"], value=[10.0, 1.0, 11.0, 2.0, 12.0])
    values, mask = grid(rows, WindowRule(2.0, 1.0, 1.0, ("gear", "rpm"), signal_column="name", value_column="value"))
    assert values[:2].tolist() == [[1.0, 10.0], [2.0, 11.0]]
    assert mask.all()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [(LabelRule.ANY, ["x", "y"]), (LabelRule.MAJORITY, ["x", "y"]), (LabelRule.LAST, ["y", "y"])],
)
def test_a_window_takes_its_label_from_its_rows(rule: LabelRule, expected: list[str]) -> None:
    times = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    rows = drive("a", times, speed=[0.0] * 8, event=["x", "x", None, "y", None, "y", "y", "x"])
    rows = rows.set_column(rows.schema.get_field_index("event"), "event", pa.array(["x", "x", None, "y", None, "y", "y", None]))
    plan = plan_windows(rows, WindowRule(2.0, 2.0, 2.0, ("speed",), label="event", label_rule=rule))
    assert plan.keys["event"].to_pylist() == expected


def test_a_boolean_label_is_true_if_any_row_is() -> None:
    rows = drive("a", [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], speed=[0.0] * 6, crash=[False, True, False, False, None, None])
    plan = plan_windows(rows, WindowRule(2.0, 2.0, 1.0, ("speed",), label="crash", label_rule=LabelRule.ANY))
    assert plan.keys["crash"].to_pylist() == [True, False, None]


def test_a_window_has_the_tags_of_all_its_rows(driven: Path) -> None:
    for sample in open_set(built(driven)):
        assert sample["tags"] == (["fast"] if sample["event_time"] > START + timedelta(seconds=3) else [])


def test_overlapping_windows_never_lie_on_two_sides(driven: Path) -> None:
    folder = built(driven, block_s=5.0)
    starts = [open_set(folder, split).to_arrow(["device", "event_time"]).to_pylist() for split in HALVES]
    assert all(starts)
    for one in starts[0]:
        for other in starts[1]:
            apart = abs((one["event_time"] - other["event_time"]).total_seconds())
            assert one["device"] != other["device"] or apart > RULE.window_s


def test_the_same_rows_and_options_give_the_same_bytes(driven: Path) -> None:
    folders = [built(driven, name=name) for name in ("one", "two")]
    digests = [
        {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in folders
    ]
    for each in digests:
        each.pop("manifest.json"), each.pop("card.html")
    assert digests[0] == digests[1]
    assert len(digests[0]) > 8


def test_zarr_and_dask_open_the_arrays_without_our_code(driven: Path) -> None:
    folder = built(driven)
    split = open_set(folder)
    group = zarr.open_group(str(folder / "train.zarr"), mode="r")
    assert group.attrs["channels"] == ["speed", "yaw"]
    windows: Any = group["windows"]
    mask: Any = group["mask"]
    assert (windows.metadata.zarr_format, windows.metadata.dimension_names) == (3, ("window", "step", "channel"))
    mine = np.stack([window(sample).array for sample in split])
    assert np.array_equal(windows[:], mine, equal_nan=True)
    assert np.array_equal(mask[:], np.stack([present(window(sample).mask) for sample in split]))
    lazy = da.from_zarr(str(folder / "train.zarr/windows"))
    assert np.array_equal(lazy.compute(scheduler="synchronous"), mine, equal_nan=True)
    keys = pq.read_table(folder / "train-00000.parquet", columns=["device"])["device"].to_pylist()
    assert keys == [sample["device"] for sample in split]


def test_a_split_gives_dask_arrays_and_an_xarray_dataset(driven: Path) -> None:
    split = open_set(built(driven, RULE))
    assert np.nanmax(split.to_dask()[:, :, 0].max().compute(scheduler="synchronous")) > 100
    assert split.to_dask("mask").dtype == bool
    with pytest.raises(RefusedError, match="there are windows, mask"):
        split.to_dask("labels")
    pytest.importorskip("xarray", reason="make test-peers fetches it; make setup does not")
    whole = split.to_xarray()
    assert dict(whole.sizes) == {"window": len(split), "step": 20, "channel": 2}
    first = whole.isel(window=0)
    assert str(first.device.values) == split[0]["device"]
    assert np.array_equal(first.windows.sel(channel="speed").values, split[0].array[:, 0])


def test_an_epoch_of_windows_stops_and_goes_on_like_any_other(driven: Path) -> None:
    split = pickle.loads(pickle.dumps(open_set(built(driven))))
    epoch = split.shuffled(3)
    first = [sample.index for sample in islice(epoch, 10)]
    rest = [sample.index for sample in split.resume(epoch.state())]
    assert sorted(first + rest) == list(range(len(split)))
    batch = split.arrays(first)
    assert np.array_equal(batch["windows"], np.stack([split[index].array for index in first]), equal_nan=True)
    sample = pickle.loads(pickle.dumps(split[5]))
    assert np.array_equal(sample.array, split[5].array, equal_nan=True)
    assert sample["device"] == split[5]["device"]


def test_batches_and_filters_serve_windows_as_they_serve_payloads(driven: Path) -> None:
    split = open_set(built(driven)).filter("has('fast')")
    assert 0 < len(split) < split.manifest.split_rows()["train"]
    batch = split.numpy(8, columns=("device", "seq"))[0]
    assert batch["windows"].shape == batch["mask"].shape == (8, 20, 2)
    of_key = {(sample["device"], sample["seq"]): sample for sample in split}
    for at, key in enumerate(zip(batch["device"], batch["seq"].tolist(), strict=True)):
        assert np.array_equal(batch["windows"][at], window(of_key[key]).array, equal_nan=True)


def damaged(folder: Path, name: str) -> TrainingSet:
    path = folder / name
    path.chmod(0o644)
    body = bytearray(path.read_bytes())
    body[100] ^= 1
    path.write_bytes(body)
    return open_set(folder)


def test_a_changed_byte_is_found_by_verify_and_by_the_read_that_meets_it(driven: Path) -> None:
    folder = built(driven)
    assert open_set(folder).verify() > 0
    split = damaged(folder, "train.zarr/windows/c/0/0/0")
    with pytest.raises(CorruptLakeError, match="manifest"):
        split.verify()
    with pytest.raises(CorruptLakeError, match="CRC32C"):
        list(split)


def test_a_missing_shard_is_named(driven: Path) -> None:
    folder = built(driven)
    (folder / "train.zarr/mask/c/0/0/0").unlink()
    with pytest.raises(CorruptLakeError, match="mask"):
        list(open_set(folder))


def test_a_split_without_windows_is_empty_arrays(driven: Path) -> None:
    folder = built(driven, split={"train": 0.9, "test": 0.1}, group=("stream",), stratify=())
    sizes = {split: len(open_set(folder, split)) for split in ("train", "test")}
    assert sorted(sizes.values()) == [0, 174]
    assert all(open_set(folder, split).to_dask().shape == (size, 20, 2) for split, size in sizes.items())


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"window_s": 0.0}, "window must be above 0"),
        ({"window_s": 0.05}, "whole number"),
        ({"columns": ()}, "name 1 to"),
        ({"columns": ("speed", "speed")}, "different"),
        ({"rate_hz": float("nan")}, "rate"),
        ({"signal_column": "name"}, "both"),
        ({"window_s": 1e6, "stride_s": 1.0, "rate_hz": 1000.0}, "whole number"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(RefusedError, match=match):
        WindowRule(**{"window_s": 2.0, "stride_s": 1.0, "rate_hz": 10.0, "columns": ("speed",), **wrong})


@pytest.mark.parametrize(("columns", "match"), [(("nothing",), "no column nothing"), (("event",), "event holds string")])
def test_a_channel_must_be_a_column_of_numbers(driven: Path, columns: tuple[str, ...], match: str) -> None:
    with pytest.raises(RefusedError, match=match):
        built(driven, WindowRule(2.0, 1.0, 10.0, columns))


class Unread(io.FileIO):
    """A file that nobody reads through Python."""

    def readinto(self, *_: object) -> Any:
        raise AssertionError("read through Python: a thread of Arrow that drops it as the interpreter ends aborts the process")

    read = readall = readinto


def test_rows_are_read_without_an_object_of_python_behind_them(driven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built(driven)
    monkeypatch.setattr(set_files, "open_set_file", lambda folder, name: Unread(folder / name))
    assert open_set(folder)[0]["device"].startswith("car-")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_script_that_reads_a_sample_and_ends_at_once_exits_0(driven: Path) -> None:
    read = f"import catchment; print(catchment.open_set({str(built(driven))!r})[0].columns)"
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda _: run([sys.executable, "-c", read], stdout=DEVNULL, check=False).returncode, range(12)))
    assert codes == [0] * 12


def test_windows_of_a_few_devices_at_a_time_are_those_of_all_at_once(driven: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two streams, one of which lacks a column, and rows of several devices in each file."""
    late = drive("car-9", [number / 10 for number in range(300)], speed=[1.0] * 300)
    write_deltalake(
        driven / "streams/more",
        pa.concat_tables([late, drive("car-2", [100.0, 110.0], epoch=1, first_seq=900, speed=[1.0, 2.0])]),
    )
    held: list[int] = []
    tables = DeviceFiles.tables

    def counted(files: DeviceFiles) -> Iterator[pa.Table]:
        for rows in tables(files):
            held.append(len(rows))
            yield rows

    monkeypatch.setattr(DeviceFiles, "tables", counted)

    def built_of(name: str, held_rows: int) -> Manifest:
        options = BuildOptions(split=HALVES, arrays=RULE, held_rows=held_rows)
        return build_set(lake_at(driven), name, ("telemetry", "more"), "speed >= 0", seed=4, options=options)

    whole = built_of("whole", 1_000_000)
    assert held == [3_902]
    parts = built_of("parts", 700)
    assert held[1:] == [600, 600, 602, 600, 600, 600, 300]
    files = ([(each.path, each.sha256) for each in found.files if each.rows] for found in (whole, parts))
    assert next(files) == next(files)
    assert [source.rows for source in parts.sources] == [3_600, 302]
    assert (whole.left_out, whole.coverage, whole.notes) == (parts.left_out, parts.coverage, parts.notes)


def test_a_plan_of_windows_leaves_nothing_and_a_build_only_the_set(driven: Path) -> None:
    options = BuildOptions(split=HALVES, arrays=RULE)
    draft = draft_set(lake_at(driven), "drives", ("telemetry",), options=options, with_values=False)
    assert sum(draft.split_rows.values()) == 6 * 29
    assert not (driven / "sets").exists()
    with pytest.raises(RefusedError, match="no row of telemetry"):
        build_set(lake_at(driven), "drives", ("telemetry",), "speed > 1000000", options=options)
    with pytest.raises(RefusedError, match=r"lacks|class"):
        build_set(lake_at(driven), "drives", ("telemetry",), options=replace(options, group=("device",), stratify=("device",)))
    assert not list((driven / "sets").glob("*"))
    assert [path.name for path in built(driven).parent.iterdir()] == ["1"]
