"""Two sets compared, leaks found, versions kept and given up: `set diff | check | card | pin | rm | gc`."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from typer.testing import CliRunner

from pipelines.commands.training_set_care import set_app
from pipelines.errors import RefusedError
from pipelines.lake.lake import lake_at
from pipelines.training.build import BuildOptions, build_set
from pipelines.training.catalogue import list_sets

RUN = CliRunner()
START = datetime(2026, 1, 1, tzinfo=UTC)
HALVES = {"train": 0.5, "test": 0.5}


def write_stream(root: Path, kinds: list[str], mode: str = "overwrite", *, hashes: list[str] | None = None) -> None:
    count = len(kinds)
    times = [START + timedelta(seconds=at) for at in range(count)]
    words = np.random.default_rng(3).integers(0, 2**63, count, dtype=np.uint64)
    rows = {
        "device": ["cam"] * count,
        "epoch": pa.array([1] * count, pa.int64()),
        "seq": pa.array(range(count), pa.int64()),
        "event_time": pa.array(times, pa.timestamp("us", "UTC")),
        "part": [f"part-{at // 4}" for at in range(count)],
        "label": kinds,
        "image_phash": hashes or [f"{int(word):016x}" for word in words],
        "payload_sha256": [hashlib.sha256(str(at).encode()).hexdigest() for at in range(count)],
    }
    write_deltalake(root / "streams/frames", pa.table(rows), mode=mode, schema_mode="overwrite")  # type: ignore[call-overload]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    root = tmp_path / "shop"
    write_stream(root, ["ok", "scratch"] * 20)
    return root


def built(root: Path, **options: object) -> int:
    more: dict[str, object] = {"split": HALVES, "group": ("part",), **options}
    return build_set(lake_at(root), "parts", ("frames",), options=BuildOptions(**more)).version  # type: ignore[arg-type]


def test_a_difference_counts_samples_in_out_moved_and_relabelled(shop: Path) -> None:
    built(shop)
    write_stream(shop, ["ok", "dent"] * 21)
    build_set(lake_at(shop), "parts", ("frames",), "seq >= 2", seed=9, options=BuildOptions(HALVES, ("part",), reassign=True))
    found = json.loads(
        RUN.invoke(set_app, ["diff", "parts/1", "parts/2", "--label", "label", "--json", "--lake", str(shop)]).stdout
    )
    assert (found["added"], found["removed"]) == (2, 2)
    assert found["relabelled"] == [{"before": "scratch", "after": "dent", "rows": 19}]
    assert sum(each["rows"] for each in found["moved"]) > 0
    assert found["examples"]["removed"] == ["cam/1/0", "cam/1/1"]
    shown = RUN.invoke(set_app, ["diff", "parts/1", "parts/2", "--label", "label", "--lake", str(shop)]).stdout
    assert "changed label" in shown


def test_a_set_does_not_differ_from_itself(shop: Path) -> None:
    built(shop)
    found = json.loads(RUN.invoke(set_app, ["diff", "parts/1", "parts", "--json", "--lake", str(shop)]).stdout)
    assert (found["same"], found["added"], found["removed"], found["moved"], found["relabelled"]) == (40, 0, 0, [], [])


def leaks(root: Path, *words: str) -> tuple[int, dict[tuple[str, str], int]]:
    done = RUN.invoke(set_app, ["check", "parts", "--json", "--lake", str(root), *words])
    report = json.loads(done.stdout)
    assert report["unchecked"] == []
    return done.exit_code, {(leak["kind"], leak["split"]): leak["rows"] for leak in report["leaks"]}


def test_neighbours_in_another_split_are_found_until_a_gap_parts_them(shop: Path) -> None:
    built(shop)
    code, found = leaks(shop, "--near", "1s")
    assert code == 1
    assert found["neighbour within 1 s", "test"] > 0
    assert found["group in two splits", "train"] == found["group in two splits", "test"] == 0
    built(shop, gap_s=1.0)
    code, found = leaks(shop, "--near", "1s")
    assert (code, sum(found.values())) == (0, 0)


def test_near_duplicates_across_splits_are_found_anywhere_or_within_a_time(shop: Path) -> None:
    write_stream(shop, ["ok"] * 40, hashes=[f"{(at % 20) * 0x9E3779B97F4A7C15 % 2**64:016x}" for at in range(40)])
    built(shop, gap_s=1.0)
    _, found = leaks(shop, "--near", "1s")
    assert found["near-duplicate within 6 bits", "test"] > 0
    code, found = leaks(shop, "--near", "1s", "--within", "5s")
    assert (code, found["near-duplicate within 6 bits", "test"]) == (0, 0)


def test_payloads_are_decoded_where_there_are_no_hashes(lake: Path) -> None:
    build_set(lake_at(lake), "views", ("camera_frame",), options=BuildOptions(HALVES))
    words = ["check", "views", "--near", "1ms", "--json", "--lake", str(lake)]
    without = json.loads(RUN.invoke(set_app, words).stdout)
    assert any("no image_phash" in reason for reason in without["unchecked"])
    found = json.loads(RUN.invoke(set_app, [*words, "--pictures"]).stdout)
    assert {leak["kind"] for leak in found["leaks"]} >= {"near-duplicate within 6 bits", "equal payload"}
    assert found["unchecked"] == []


def test_a_card_shows_classes_by_split_and_notes(shop: Path, tmp_path: Path) -> None:
    built(shop, stratify=("label",), reassign=True)
    page = tmp_path / "page.html"
    done = RUN.invoke(set_app, ["card", "parts", "-o", str(page), "--lake", str(shop)])
    assert done.exit_code == 0, done.output
    assert "label=scratch" in page.read_text()
    assert "a new line begins" in page.read_text()


def test_a_pinned_version_is_not_removed_until_it_is_released(shop: Path) -> None:
    built(shop)
    where = ["--lake", str(shop)]
    assert isinstance(RUN.invoke(set_app, ["pin", "parts/1", *where]).exception, RefusedError)
    assert "pinned" in RUN.invoke(set_app, ["pin", "parts/1", "-m", "paper of May", *where]).stdout
    refused = RUN.invoke(set_app, ["rm", "parts/1", *where])
    assert "paper of May" in str(refused.exception)
    assert "pinned already" in str(RUN.invoke(set_app, ["pin", "parts/1", "-m", "again", *where]).exception)
    assert "released" in RUN.invoke(set_app, ["pin", "parts/1", "--release", *where]).stdout
    assert "removed" in RUN.invoke(set_app, ["rm", "parts/1", *where]).stdout
    assert list_sets(lake_at(shop)) == []


def test_a_removed_number_is_not_given_out_again(shop: Path) -> None:
    assert [built(shop), built(shop)] == [1, 2]
    RUN.invoke(set_app, ["rm", "parts/2", "--lake", str(shop)])
    assert built(shop) == 3
    assert sorted(path.name for path in (shop / "sets/parts").iterdir() if path.name.isdecimal()) == ["1", "3"]


def test_only_a_version_that_is_named_is_removed(shop: Path) -> None:
    built(shop)
    assert "name the version too" in str(RUN.invoke(set_app, ["rm", "parts", "--lake", str(shop)]).exception)


def test_old_versions_go_but_the_newest_and_pinned_ones_stay(shop: Path) -> None:
    for _ in range(4):
        built(shop)
    where = ["--lake", str(shop)]
    RUN.invoke(set_app, ["pin", "parts/2", "-m", "kept", *where])
    assert "would go" in RUN.invoke(set_app, ["gc", "--keep", "1", *where]).stdout
    assert len(list_sets(lake_at(shop))) == 4
    gone = json.loads(RUN.invoke(set_app, ["gc", "--keep", "1", "--yes", "--json", *where]).stdout)
    assert [each["version"] for each in gone] == [1, 3]
    assert [each.version for each in list_sets(lake_at(shop))] == [2, 4]
    assert isinstance(RUN.invoke(set_app, ["gc", "--keep", "0", *where]).exception, RefusedError)
