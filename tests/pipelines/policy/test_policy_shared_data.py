"""The shipped policies on real factory, vehicle and network data."""

import csv
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest

from pipelines.policy import Policy
from schemas.contract import builtin_contract

SHIPPED = Path(__file__).parents[3] / "deploy" / "policies"
RENAMED = {
    "id.orig_h": "src_ip", "id.orig_p": "src_port", "id.resp_h": "dst_ip", "id.resp_p": "dst_port", "duration": "duration_s",
    "detailedlabel": "detailed_label",
}  # fmt: skip


def zeek(path: Path) -> pa.Table:
    """A labelled conn.log as rows of network_flow."""
    types = {column.name: str(column.type) for column in builtin_contract("network_flow").columns}
    names: list[str] = []
    rows: list[list[str]] = []
    with gzip.open(path, "rt") as lines:
        for line in lines:
            if line.startswith("#fields"):
                names = [RENAMED.get(name, name) for name in line.rstrip("\n").split("\t")[1:]]
            elif not line.startswith("#"):
                rows.append(line.rstrip("\n").split("\t"))
    made: dict[str, Callable[[str], object]] = {
        "bool": lambda text: text == "T",
        "float64": float,
        "int64": int,
        "int32": int,
        "string": str,
    }
    return pa.table({
        name: [None if row[place] in ("-", "(empty)") else made[types[name]](row[place]) for row in rows]
        for place, name in enumerate(names)
        if name in types
    })  # fmt: skip


def tagged(policy: str, rows: pa.Table, stream: str = "") -> list[list[str]]:
    found: list[list[str]] = Policy.load(SHIPPED / f"{policy}.yaml").apply(rows, stream).column("tags").to_pylist()
    return found


def judged(tag: str, tags: Sequence[list[str]], truth: Sequence[bool]) -> tuple[float, float]:
    """Precision and recall of a tag."""
    both = sum(tag in found and is_true for found, is_true in zip(tags, truth, strict=True))
    return both / sum(tag in found for found in tags), both / sum(truth)


@pytest.mark.parametrize("capture", ["008", "010"], ids=["written-on", "never-seen"])
def test_the_network_policy_finds_attacks_with_the_precision_and_recall_it_states(shared_data: Path, capture: str) -> None:
    rows = zeek(shared_data / "network" / "ctu_zeek" / f"{capture}-zeek-mixed" / "conn.log.labeled.gz")
    truth = [label == "Malicious" for label in rows.column("label").to_pylist()]
    tags = tagged("network-suspicion", rows)
    precision, recall = judged("unanswered", tags, truth)
    assert precision >= 0.99
    assert recall >= 0.97
    precision, recall = judged("unsolicited", tags, truth)
    assert precision == 1
    assert recall >= 0.997


def test_the_statement_in_the_network_policy_is_what_was_measured(shared_data: Path) -> None:
    rows = zeek(shared_data / "network" / "ctu_zeek" / "010-zeek-mixed" / "conn.log.labeled.gz")
    truth = [label == "Malicious" for label in rows.column("label").to_pylist()]
    precision, recall = judged("unanswered", tagged("network-suspicion", rows), truth)
    (rule,) = [rule for rule in Policy.load(SHIPPED / "network-suspicion.yaml").document.rules if rule.tag == "unanswered"]
    assert f"precision {precision:.3f}, recall {recall:.3f} for label Malicious" in rule.description


def test_labels_of_a_capture_become_value_tags(shared_data: Path) -> None:
    rows = zeek(shared_data / "network" / "ctu_zeek" / "008-zeek-mixed" / "conn.log.labeled.gz")
    counted = Counter(tag for row in tagged("network-labels", rows) for tag in row)
    labels = Counter(rows.column("label").to_pylist())
    assert counted["class:benign"] == labels["Benign"]
    assert counted["class:malicious"] >= labels["Malicious"]


def test_a_real_drive_has_sound_orientations_and_the_manoeuvres_of_a_motorway(shared_data: Path) -> None:
    telemetry = pa_csv.read_csv(shared_data / "vehicle" / "comma2k19" / "telemetry.csv")
    rows = telemetry.rename_columns({"can_speed_mps": "speed_mps", "can_steering_deg": "steering_deg"})
    quality = tagged("driving-quality", rows)
    assert not any("bad_orientation" in row for row in quality)
    assert all("no_position" in row for row in quality)
    moving = [speed > 25 for speed in rows.column("speed_mps").to_pylist()]
    assert [("motorway" in row) for row in tagged("driving-manoeuvres", rows)] == moving


def frames(paths: Sequence[Path], device: str, labels: Sequence[str | None]) -> pa.Table:
    bodies = [path.read_bytes() for path in paths]
    return pa.table({
        "device": pa.array([device] * len(bodies)), "epoch": pa.array([1] * len(bodies)), "seq": pa.array(range(len(bodies))),
        "file_name": [path.name for path in paths], "label": pa.array(labels, pa.string()),
        "payload": pa.array(bodies, pa.binary()), "payload_sha256": [hashlib.sha256(body).hexdigest() for body in bodies],
    })  # fmt: skip


@pytest.mark.slow
def test_a_road_film_is_thinned_to_the_frames_that_differ(shared_data: Path) -> None:
    paths = sorted((shared_data / "vehicle" / "dashcam" / "frames").glob("*.jpg"))
    tags = tagged("camera-quality", frames(paths, "dashcam", [None] * len(paths)))
    kept = sum("near_duplicate" not in row for row in tags)
    assert len(paths) / 15 < kept < len(paths) / 5
    assert {tag for row in tags for tag in row} == {"near_duplicate"}


@pytest.mark.slow
def test_factory_pictures_are_neither_dark_nor_blurred_and_their_defects_are_classed(shared_data: Path) -> None:
    folder = shared_data / "factory" / "bsdata"
    with (folder / "index.csv").open() as file:
        labelled = {row["filename"]: row for row in csv.DictReader(file)}
    paths = sorted((folder / "images").glob("*.jpg"))
    labels = ["pitting" if int(labelled[path.name]["n_pitting_polygons"] or 0) else None for path in paths]
    rows = frames(paths, "line-1", labels)
    assert {tag for row in tagged("camera-quality", rows) for tag in row} <= {"near_duplicate"}
    found = tagged("camera-framing", rows)
    assert [("class:defect" in row) for row in found] == [label is not None for label in labels]


def test_secrets_and_addresses_in_real_device_logs_are_found(shared_data: Path) -> None:
    with gzip.open(shared_data / "network" / "wrccdc_zeek" / "syslog.log.gz", "rt") as lines:
        messages = [line.rstrip("\n").split("\t")[-1] for line in lines if not line.startswith("#")][:4_000]
    tags = tagged("log-privacy", pa.table({"message": messages}))
    counted = Counter(tag for row in tags for tag in row)
    found = [message for message, row in zip(messages, tags, strict=True) if "pii:contact" in row]
    assert all("@" in message or "+" in message or "00" in message for message in found), json.dumps(found[:3])
    assert counted["names_address"] > 0
