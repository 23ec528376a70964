"""Sets of arrays, as a person types them: windows and pixels, and the options that do not fit."""

import json
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from deltalake import DeltaTable, write_deltalake
from typer.testing import CliRunner

from pipelines.commands.training_set import set_app
from pipelines.errors import RefusedError
from pipelines.lake.lake import lake_at
from pipelines.training.array_rules import PictureRule
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.open import open_set
from tests.fakes.run_core import RunCore
from tests.plant.present import present

RUN = CliRunner()
WINDOWS = ["--format", "zarr", "--window", "2s", "--stride", "1s", "--rate", "10", "--columns", "speed,yaw"]


def pictures(lake: Path, rule: PictureRule, where: str = "brightness > 0", **options: Any) -> Path:
    # The first payload of every fifty is empty, which is no picture.
    chosen = BuildOptions(**{"split": {"train": 0.5, "test": 0.5}, "arrays": rule, **options})
    manifest = build_set(lake_at(lake), "pixels", ("camera_frame",), where, seed=4, options=chosen)
    return lake / "sets/pixels" / str(manifest.version)


@pytest.fixture
def sound(lake: Path) -> Path:
    """The lake without its empty payloads."""
    table = DeltaTable(lake / "streams/camera_frame").to_pyarrow_table()
    write_deltalake(lake / "streams/camera_frame", table.filter([row % 50 != 0 for row in range(len(table))]), mode="overwrite")
    return lake


def test_a_set_of_windows_is_planned_built_shown_and_verified(driven: Path) -> None:
    where = ["--lake", str(driven)]
    head = ["drives", "--from", "telemetry", "--split", "train=0.5,test=0.5", "--label", "event", "--stratify", "event"]
    planned = RUN.invoke(set_app, ["plan", *head, *WINDOWS, "--json", *where])
    assert sum(json.loads(planned.stdout)["splits"].values()) == 174
    assert not (driven / "sets").exists()
    made = RUN.invoke(set_app, ["build", *head, *WINDOWS, "--json", *where])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["arrays"]["windows"]["rate_hz"] == 10.0
    assert "array train.zarr/windows" in RUN.invoke(set_app, ["show", "drives", *where]).stdout
    assert RUN.invoke(set_app, ["verify", "drives", *where]).exit_code == 0
    (driven / "sets/drives/1/test.zarr/mask/zarr.json").unlink()
    with pytest.raises(Exception, match=r"mask/zarr\.json"):
        RUN.invoke(set_app, ["verify", "drives", *where], catch_exceptions=False)


def test_the_old_name_of_the_largest_gap_works_for_one_release_and_names_the_new_one(driven: Path) -> None:
    typed = ["build", "drives", "--from", "telemetry", *WINDOWS, "--json", "--lake", str(driven)]
    old, new = (RUN.invoke(set_app, [*typed, option, "3s"]) for option in ("--hole", "--max-gap"))
    assert [json.loads(made.stdout)["arrays"]["windows"]["hole_s"] for made in (old, new)] == [3.0, 3.0]
    assert ["--hole is now --max-gap" in made.stderr for made in (old, new)] == [True, False]


def test_pictures_become_pixels_that_are_those_of_the_payload(sound: Path) -> None:
    folder = pictures(sound, PictureRule(24, 32))
    split = open_set(folder)
    assert (split[0].array.shape, split[0].array.dtype, split[0].mask) == ((24, 32, 3), np.uint8, None)
    assert "payload_shard" not in split[0].columns
    as_payload = build_set(
        lake_at(sound), "payloads", ("camera_frame",), "brightness > 0", seed=4, options=BuildOptions(split={"train": 1.0})
    )
    payloads = {
        (sample["device"], sample["seq"]): sample.payload
        for sample in open_set(sound / "sets/payloads" / str(as_payload.version))
    }
    for sample in split[:20]:
        assert np.abs(sample.array.astype(int) - decoded(present(payloads[sample["device"], sample["seq"]]))).mean() < 2
    lazy = da.from_zarr(str(folder / "train.zarr/pixels"))
    assert np.array_equal(lazy[3].compute(scheduler="synchronous"), split[3].array)


def decoded(body: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)


def test_pictures_of_another_size_are_refused_or_stretched(sound: Path) -> None:
    with pytest.raises(RefusedError, match="the picture is 32 x 24 px, not 16 x 16"):
        pictures(sound, PictureRule(16, 16))
    assert open_set(pictures(sound, PictureRule(16, 16, 1, "resize")))[0].array.shape == (16, 16, 1)


def test_a_payload_that_is_no_picture_is_named(lake: Path) -> None:
    with pytest.raises(RefusedError, match=r"of camera_frame: not a picture"):
        pictures(lake, PictureRule(24, 32), "")
    assert list((lake / "sets/pixels").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "csv"], "give parquet or zarr"),
        (["--window", "2s"], "add --format zarr"),
        (["--format", "zarr"], "one of the two"),
        (["--format", "zarr", "--window", "2s", "--columns", "speed"], "needs --rate"),
        (["--format", "zarr", "--size", "224"], "like 224x224"),
        (["--format", "zarr", "--size", "8x8"], "no payload"),
    ],
)
def test_options_that_do_not_fit_are_one_line_and_exit_code_3(
    driven: Path, run_core: RunCore, options: list[str], message: str
) -> None:
    done = run_core("set", "build", "x", "--from", "telemetry", *options, "--lake", str(driven))
    assert (done.code, done.out) == (3, "")
    assert message in done.err
