"""Real pictures, telemetry, flows and slides through the real programs, with kills in the middle: each is in the lake once."""

import csv
import gzip
import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.plant.programs import Plant

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.timeout(400)]

DEVICES = ("edge-a", "edge-b")
STREAMS = ("camera_frame", "vehicle_telemetry", "network_flow", "slide")


def split(files: list[Path], folder: Path) -> tuple[Path, Path]:
    """Copies of the files, every other one into one of two folders."""
    folders = (folder / "a", folder / "b")
    for one in folders:
        one.mkdir(parents=True)
    for index, file in enumerate(sorted(files)):
        shutil.copy(file, folders[index % 2] / file.name)
    return folders


def split_table(table: Path, folder: Path, more: list[str]) -> tuple[Path, Path]:
    """A CSV in two halves, `more` lines at the end of the second."""
    header, *lines = table.read_text().splitlines()
    halves = (lines[: len(lines) // 2], [*lines[len(lines) // 2 :], *more])
    paths = (folder / "telemetry-a.csv", folder / "telemetry-b.csv")
    for path, half in zip(paths, halves, strict=True):
        path.write_text("\n".join([header, *half]) + "\n")
    return paths


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def zeek_uids(log: Path) -> list[str]:
    with gzip.open(log, "rt") as file:
        return [line.split("\t")[1] for line in file if not line.startswith("#")]


@pytest.fixture
def real(shared_data: Path, tmp_path: Path) -> dict[str, Any]:
    """The inputs, split between two devices, and what must come out."""
    factory, dashcam = shared_data / "factory/bsdata", shared_data / "vehicle/dashcam/frames"
    pictures = [*(factory / "images").glob("*.jpg"), *dashcam.glob("*.jpg")]
    telemetry = shared_data / "vehicle/comma2k19/telemetry.csv"
    with telemetry.open() as file:
        frames = [int(row["frame"]) for row in csv.DictReader(file)]
    header = telemetry.read_text().splitlines()[0].split(",")
    # Three rows that no vehicle can have measured: 900 m/s.
    impossible = [
        ",".join("900" if name == "can_speed_mps" else str(90_000 + i) if name == "frame" else "0.5" for name in header)
        for i in range(3)
    ]
    logs = sorted(shared_data.glob("network/ctu_zeek/*/conn.log.labeled.gz"))
    slides = [shared_data / "slides/CMU-1-Small-Region.svs", shared_data / "slides/cog_hirise_mars.tif"]
    return {
        "factory": split(list((factory / "images").glob("*.jpg")), tmp_path / "factory"),
        "labels": factory / "labels",
        "index": factory / "index.csv",
        "dashcam": split(list(dashcam.glob("*.jpg")), tmp_path / "dashcam"),
        "telemetry": split_table(telemetry, tmp_path, impossible),
        "logs": logs,
        "slides": split(slides, tmp_path / "slides"),
        "pictures": Counter((path.name, sha(path)) for path in pictures),
        "frames": Counter(frames),
        "uids": Counter(uid for log in logs for uid in zeek_uids(log)),
        "slide_digests": Counter((path.name, sha(path)) for path in slides),
        "annotated": sum(1 for _ in (factory / "labels").glob("*.json")),
    }


def sources(real: dict[str, Any], half: int) -> list[dict[str, Any]]:
    def folder(path: Path, **more: Any) -> dict[str, Any]:
        return {"path": path, "settle_ms": 100, "end_when_idle": True, **more}

    return [
        {"kind": "directory", "stream": "camera_frame", "options": folder(
            real["factory"][half], sidecars=real["labels"], attributes=real["index"], columns={"camera": "spindle"})},
        {"kind": "directory", "stream": "camera_frame", "options": folder(
            real["dashcam"][half], done="delete", columns={"camera": "dashcam"})},
        {"kind": "directory", "stream": "slide", "options": folder(real["slides"][half])},
        {"kind": "replay", "stream": "vehicle_telemetry", "options": {
            "path": real["telemetry"][half], "rate_hz": 200.0, "time_column": "t_s", "time_start": "2024-05-01T00:00:00Z",
            "rename": {"can_speed_mps": "speed_mps", "can_steering_deg": "steering_deg"}}},
        {"kind": "replay", "stream": "network_flow", "options": {"path": real["logs"][half], "rate_hz": 2000.0}},
    ]  # fmt: skip


def test_every_real_sample_is_in_the_lake_exactly_once_whatever_is_killed(plant: Plant, real: dict[str, Any]) -> None:
    for half, device in enumerate(DEVICES):
        plant.write_agent(device, sources(real, half))
    plant.start_core()
    for device in DEVICES:
        plant.start_agent(device)
    plant.eventually(lambda: plant.count("streams/camera_frame") > 10 and plant.count("streams/network_flow") > 500, "first rows")
    plant.kill("edge-a")
    plant.kill("core")
    plant.start_agent("edge-a")
    plant.start_core()
    for device in DEVICES:
        plant.ended_well(device)

    pictures = plant.rows("streams/camera_frame")
    assert Counter(zip(pictures["file_name"], pictures["payload_sha256"], strict=True)) == real["pictures"]
    telemetry = plant.rows("streams/vehicle_telemetry")
    assert Counter(telemetry["frame"].to_list()) == real["frames"]
    assert Counter(plant.rows("streams/network_flow")["uid"].to_list()) == real["uids"]
    slides = plant.rows("streams/slide")
    assert Counter(zip(slides["file_name"], slides["payload_sha256"], strict=True)) == real["slide_digests"]

    for rows in (pictures, slides):
        for row in rows.select("payload_shard", "payload_offset", "payload_length", "payload_sha256").iter_rows(named=True):
            assert hashlib.sha256(plant.payload(row)).hexdigest() == row["payload_sha256"]
    for stream in STREAMS:
        keys = plant.rows(f"streams/{stream}").select("device", "epoch", "seq")
        assert keys.n_unique() == len(keys), stream

    assert pictures.filter(pl.col("annotation").str.contains("Pitting"))["file_name"].n_unique() >= real["annotated"] * 0.9
    refused = plant.rows("quarantine").filter(pl.col("stream") == "vehicle_telemetry")
    assert refused["count"].sum() == 3
    assert all("speed_mps" in reason for reason in refused["reason"])
    assert all(body for body in refused["body"])
    check_books(plant, real)


def check_books(plant: Plant, real: dict[str, Any]) -> None:
    captured: Counter[str] = Counter()
    for device in DEVICES:
        for book in plant.agent_books(device)["books"]:
            assert book["captured"] == book["settled"] + book["spooled"] + sum(book["dropped"].values()), (device, book)
            assert book["spooled"] == 0
            assert not book["dropped"]
            captured[book["stream"]] += book["captured"]
    wanted = {
        "camera_frame": real["pictures"].total(), "vehicle_telemetry": real["frames"].total() + 3,
        "network_flow": real["uids"].total(), "slide": real["slide_digests"].total(),
    }  # fmt: skip
    assert captured == wanted
    for book in plant.core_books():
        assert book["received"] == book["committed"] + book["quarantined"] + book["duplicate"], book
        assert book["committed"] + book["quarantined"] == wanted[book["stream"]], book


def test_a_set_built_from_real_pictures_reads_with_plain_tools(plant: Plant, real: dict[str, Any]) -> None:
    plant.write_agent("edge-a", sources(real, 0))
    plant.start_core()
    plant.start_agent("edge-a")
    plant.ended_well("edge-a")
    output = plant.core("set", "build", "pictures", "--from", "camera_frame", "--group", "file_name", "--json")
    assert "pictures" in output
    (manifest,) = (plant.lake / "sets/pictures").glob("*/manifest.json")
    shards = [str(manifest.parent / shard["path"]) for shard in json.loads(manifest.read_bytes())["shards"]]
    table = pq.ParquetFile(shards[0]).read()
    assert all(
        hashlib.sha256(body.as_py()).hexdigest() == digest.as_py()
        for body, digest in zip(table["payload"], table["payload_sha256"], strict=True)
    )
    ((rows, distinct),) = duckdb.execute(
        f"SELECT count(*), count(DISTINCT (device, epoch, seq)) FROM read_parquet({shards})"
    ).fetchall()
    assert rows == distinct == plant.count("streams/camera_frame")
