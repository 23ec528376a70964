"""From slide to training set: chips are rows like any other, and a slide stays on one side of the split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from deltalake import write_deltalake

from pipelines.imaging.graph import cut_chips
from pipelines.imaging.store import SlideRef, chip_schema, chip_table
from pipelines.lake.lake import lake_at
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.open import open_set
from schemas.chip_contract import chip_contract
from schemas.contract import RESERVED_COLUMNS, builtin_contract
from tests.plant.present import present


def test_a_set_of_chips_is_built_by_background_and_keeps_each_slide_whole(tmp_path: Path, refer: Callable[..., SlideRef]) -> None:
    slides = []
    for seed in range(6):
        pixels = np.random.default_rng(seed).integers(0, 255, (100, 100, 3), np.uint8)
        pixels[:50] = 255
        tifffile.imwrite(tmp_path / f"{seed}.tif", pixels, tile=(32, 32), photometric="rgb")
        slides.append(refer(tmp_path / f"{seed}.tif", 50, seq=seed))
    files = cut_chips(lake_at(tmp_path), 1, tuple(slides), 10**9)
    rows = pa.concat_tables([pq.read_table(tmp_path / file.path) for file in files])
    write_deltalake(tmp_path / "streams" / chip_table("slide"), rows)
    options = BuildOptions(split={"train": 0.5, "test": 0.5}, group=("source_sha256",))
    manifest = build_set(lake_at(tmp_path), "tissue", ("slide_chips",), "background < 0.5", seed=3, options=options)
    folder = tmp_path / "sets/tissue" / str(manifest.version)
    sides = [open_set(folder, split) for split in ("train", "test")]
    assert sum(len(side) for side in sides) == 12
    slides_of = [{sample["source_sha256"] for sample in side} for side in sides]
    assert not slides_of[0] & slides_of[1]
    assert all(present(sample.payload).startswith(b"\x89PNG") and sample["y"] == 50 for side in sides for sample in side)


def test_rules_can_read_every_column_that_a_chip_row_has_besides_its_key_tags_and_payload() -> None:
    contract = chip_contract(builtin_contract("slide"))
    own = [name for name in chip_schema().names if name not in RESERVED_COLUMNS]
    assert own == [column.name for column in contract.columns if not column.name.startswith("slide_")]
