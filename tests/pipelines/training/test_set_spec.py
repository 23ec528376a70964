"""A set by its spec: the document, the rows it gives, and the set that is built of them."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
import yaml
from deltalake import write_deltalake
from typer.testing import CliRunner

from pipelines.commands.training_set import set_app
from pipelines.errors import ConfigError, ExpressionError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.runners.engine import Engine
from pipelines.training.build import wish_of_spec
from pipelines.training.building.part_files import GROUP
from pipelines.training.building.versions import Terms, build_version, planned
from pipelines.training.manifest import ClassCount, LeftOut, Source, SplitRule
from pipelines.training.open import open_set
from pipelines.training.spec_file import load_spec, parse_spec, schema_text, spec_schema
from pipelines.training.thin import row_numbers, sampled

RUN = CliRunner()
SHIPPED = Path(__file__).parents[3] / "deploy" / "sets"
START = datetime(2026, 1, 1, tzinfo=UTC)
FRAMES = 120


def keys(device: str, count: int, step_ms: int, offset_ms: int = 0) -> dict[str, Any]:
    times = [START + timedelta(milliseconds=offset_ms + at * step_ms) for at in range(count)]
    return {
        "device": [device] * count,
        "epoch": pa.array([1] * count, pa.int64()),
        "seq": pa.array(range(count), pa.int64()),
        "event_time": pa.array(times, pa.timestamp("us", "UTC")),
    }


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Two cars with a frame each second; the first has telemetry and CAN signals, the second has neither."""
    root = tmp_path / "drive"
    cars = [pa.table({
        **keys(car, FRAMES, 1_000),
        "kind": [("scratch", "dent", "ok", "ok")[at % 4] for at in range(FRAMES)],
        "image_phash": [f"{at // 10 * 0x9E3779B97F4A7C15 % 2**64:016x}" for at in range(FRAMES)],
        "tags": pa.array([["dark"] if at % 3 == 0 else [] for at in range(FRAMES)], pa.list_(pa.string())),
        "tag_rules": pa.array([["night@1"] if at % 3 == 0 else [] for at in range(FRAMES)], pa.list_(pa.string())),
    }) for car in ("car-1", "car-2")]  # fmt: skip
    write_deltalake(root / "streams/camera_frame", pa.concat_tables(cars))
    write_deltalake(
        root / "streams/vehicle_telemetry",
        pa.table({**keys("car-1", 1_200, 100, 30), "speed_mps": pa.array(np.arange(1_200) / 10.0)}),
    )
    count = 600
    signals = {"signal": [("Speed", "Brake")[at % 2] for at in range(count)], "value": pa.array(np.arange(count) * 1.0)}
    write_deltalake(root / "streams/can_signal", pa.table({**keys("car-1", count, 200, 40), **signals}))
    return root


@dataclass(frozen=True)
class Drafted:
    """The rows of a plan by key, those that no limit left out before the split, and the split of each; -1: left out after it."""

    rows: pa.Table
    splits: np.ndarray[tuple[int], np.dtype[np.int64]]
    groups: int
    rule: SplitRule
    coverage: tuple[ClassCount, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    sources: tuple[Source, ...]


def drafted(root: Path, text: str) -> Drafted:
    spec = parse_spec(f"id: drive\nsources: [{{stream: camera_frame}}]\n{text}")
    with planned(lake_at(root), wish_of_spec(spec), Terms(Engine())) as plan:
        parts = [part.rows().append_column("split", pa.array(part.splits()[part.numbers()[GROUP]])) for part in plan.parts]
        kept = pa.concat_tables([rows.filter(pa.array(part.kept())) for rows, part in zip(parts, plan.parts, strict=True)])
        rows = kept.sort_by([(name, "ascending") for name in ("device", "epoch", "seq")])
        return Drafted(
            rows.drop_columns(["split"]), rows["split"].to_numpy(), len(plan.groups), plan.rule, plan.coverage,
            plan.left_out, plan.notes, plan.sources,
        )  # fmt: skip


JOIN = "id: a\nsources: [{stream: x}]\njoins:\n - "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{JOIN}stream: y\n   tolerence: 3s\n", "s.yaml:5: unknown key 'tolerence'; did you mean 'tolerance'?"),
        ("id: a\nsources: [{stream: x}]\nzebra: 3\n", "s.yaml:3: unknown key 'zebra'; there are balance, caps"),
        (JOIN + "{stream: y, tolerance: 0s, columns: [a]}\n", "s.yaml:4: the join of y needs a tolerance"),
        ("id: a\nsources: [{stream: x}]\nsplit:\n  group: [device]\n  block: 3 weeks\n", r"s.yaml:5: .*block"),
        ("id: a\nsources: [{stream: x}]\nbalance: {splits: [trian]}\nlabel: {column: k}", "there are train, validation, test"),
        ("id: a\nsources: [{stream: x}]\nlabel:\n  name: c\n", "s.yaml:4: a label needs either a column or a task"),
        ("id: a\nsources: [{stream: x}, {stream: x}]", "named twice"),
        ("- a", "s.yaml:1: a set spec is a mapping"),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_refused_with_line_and_key(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec(text, "s.yaml")


def test_the_shipped_specs_fulfil_the_shipped_schema() -> None:
    assert (SHIPPED / "set.schema.json").read_text() == schema_text(), "catchment set schema > deploy/sets/set.schema.json"
    jsonschema.Draft202012Validator.check_schema(spec_schema())
    assert RUN.invoke(set_app, ["schema"]).output == schema_text()
    for path in SHIPPED.glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=set.schema.json\n")
        jsonschema.validate(yaml.safe_load(path.read_text()), spec_schema())
        assert load_spec(path).id == path.stem


def test_frames_get_telemetry_and_signals_as_columns_and_what_found_none_is_counted(drive: Path) -> None:
    draft = drafted(
        drive,
        """
joins:
  - {stream: vehicle_telemetry, columns: [speed_mps], tolerance: 50 ms, age: age_s}
  - {stream: can_signal, tolerance: 250 ms, prefix: can_, pivot: {keep: [Speed, Brake]}}
""",
    )
    first = draft.rows.slice(1, 1).to_pylist()[0]
    assert (first["device"], first["seq"], first["speed_mps"], first["age_s"]) == ("car-1", 1, 1.0, -0.03)
    assert (first["can_Speed"], first["can_Brake"]) == (4.0, 5.0)
    assert draft.rows.column("speed_mps").null_count == FRAMES
    assert "120 of 240 rows have no vehicle_telemetry within 50 ms; they hold null" in draft.notes
    assert [(source.stream, source.delta_version) for source in draft.sources] == [
        ("camera_frame", 0), ("vehicle_telemetry", 0), ("can_signal", 0),
    ]  # fmt: skip


def test_derived_columns_read_joined_ones_and_each_other(drive: Path) -> None:
    draft = drafted(
        drive,
        """
joins: [{stream: vehicle_telemetry, columns: [speed_mps], tolerance: 50 ms}]
derive:
  - {name: speed_kmh, value: speed_mps * 3.6}
  - {name: pace, value: "CASE WHEN speed_kmh >= 36 THEN 'fast' ELSE 'slow' END"}
  - {name: is_dark, value: has('dark')}
where: speed_kmh IS NOT NULL
""",
    )
    assert len(draft.rows) == FRAMES
    assert draft.rows.column("pace").to_pylist()[:12] == ["slow"] * 10 + ["fast"] * 2
    assert draft.rows.schema.field("is_dark").type == pa.bool_()
    assert LeftOut("where is not true", FRAMES) in draft.left_out


def test_a_column_that_is_there_already_is_refused(drive: Path) -> None:
    with pytest.raises(RefusedError, match="there is a column kind already"):
        drafted(drive, "derive: [{name: kind, value: \"'x'\"}]")
    with pytest.raises(ExpressionError, match="derive all: the expression gives list of text, but a column needs one of"):
        drafted(drive, "derive: [{name: all, value: tags}]")


def test_classes_are_mapped_and_merged_and_others_are_refused_kept_or_dropped(drive: Path) -> None:
    mapping = "label: {column: kind, name: verdict, classes: {scratch: bad, dent: bad}"
    with pytest.raises(RefusedError, match="not listed under label: ok"):
        drafted(drive, f"{mapping}}}")
    kept = drafted(drive, f"{mapping}, other: keep}}").rows.column("verdict").to_pylist()
    assert (kept.count("bad"), kept.count("ok")) == (120, 120)
    dropped = drafted(drive, f"{mapping}, other: drop}}")
    assert set(dropped.rows.column("verdict").to_pylist()) == {"bad"}
    assert dropped.left_out == (LeftOut("a class that is not listed", 120),)


def test_near_duplicates_are_dropped_but_for_the_first_of_each_class(drive: Path) -> None:
    near = "near_duplicates: {within: 20 s, action: drop}"
    assert len(drafted(drive, f"where: device = 'car-1'\n{near}").rows) == FRAMES // 10
    labelled = drafted(drive, f"where: device = 'car-1'\n{near}\nlabel: {{column: kind}}")
    assert len(labelled.rows) == 3 * FRAMES // 10


def test_near_duplicates_stay_in_one_split(drive: Path) -> None:
    draft = drafted(
        drive,
        """
near_duplicates: {within: 20 s}
split: {shares: {train: 0.5, test: 0.5}, group: [device], block: 3 s}
""",
    )
    sides: dict[tuple[str, str], set[int]] = {}
    pairs = zip(draft.rows["device"].to_pylist(), draft.rows["image_phash"].to_pylist(), draft.splits.tolist(), strict=True)
    for device, digest, split in pairs:
        sides.setdefault((device, digest), set()).add(split)
    assert {len(each) for each in sides.values()} == {1}
    assert any("share near-duplicates with another and are placed together" in note for note in draft.notes)


def test_caps_samples_and_balance_take_the_rows_they_say(drive: Path) -> None:
    capped = drafted(drive, "caps: [{per: [device, kind], rows: 7}]")
    assert len(capped.rows) == 2 * 3 * 7
    taken = drafted(drive, "sample: {rows: 50}")
    assert len(taken.rows) == 50
    even = drafted(
        drive,
        """
label: {column: kind}
split: {shares: {train: 0.5, test: 0.5}, group: [device], block: 1 s, stratify: [label]}
balance: {splits: [train], undersample: true, weights: weight}
""",
    )
    counts = {(count.split, count.name): count.rows for count in even.coverage}
    assert {counts["train", f"label={kind}"] for kind in ("dent", "scratch", "ok")} == {30}
    assert counts["test", "label=ok"] == 60
    assert even.left_out[-1] == LeftOut("balance of train by label", 30)


def test_weights_make_classes_even_and_average_to_one(drive: Path) -> None:
    spec = parse_spec("""
id: drive
sources: [{stream: camera_frame}]
label: {column: kind}
split: {shares: {train: 0.5, test: 0.5}, group: [device], block: 1 s, stratify: [label]}
balance: {splits: [train], weights: weight}
""")
    build_version(lake_at(drive), wish_of_spec(spec), Terms(Engine()))
    train = open_set(drive / "sets/drive/1", "train").to_arrow(["weight", "label"])
    weights, kinds = train["weight"].to_numpy(), np.array(train["label"].to_pylist())
    assert weights.mean() == pytest.approx(1.0)
    assert {round(float(weights[kinds == kind].sum()), 6) for kind in ("ok", "dent", "scratch")} == {40.0}
    assert set(open_set(drive / "sets/drive/1", "test").to_numpy(["weight"])["weight"].tolist()) == {1.0}


def test_a_row_that_a_sample_took_stays_taken_when_rows_join(drive: Path) -> None:
    rows = drafted(drive, "").rows
    fewer = rows.slice(0, 100)
    assert sampled(rows, 5, 0.3)[:100].tolist() == sampled(fewer, 5, 0.3).tolist()
    assert len(set(row_numbers(rows, 5, "sample").tolist())) == len(rows)
    assert sampled(rows, 5, 0.3).sum() == pytest.approx(72, abs=25)


def test_groups_may_be_given_by_an_expression(drive: Path) -> None:
    draft = drafted(
        drive,
        """
split: {shares: {train: 0.5, test: 0.5}, group: [device], expression: "floor(mod(seq, 6) / 2)"}
""",
    )
    assert draft.groups == 2 * 3
    assert draft.rule.group == ("device", "split_group")


def test_a_spec_is_planned_and_built_and_stands_in_the_manifest(drive: Path, tmp_path: Path) -> None:
    path = tmp_path / "drive.yaml"
    path.write_text("id: drive\nsources: [{stream: camera_frame, version: 0, where: seq < 50}]\norder: time\n"
                    "split: {shares: {train: 0.6, test: 0.4}, block: 5 s}\nlabel: {column: kind}\nseed: 3\n")  # fmt: skip
    where = ["--lake", str(drive)]
    planned = json.loads(RUN.invoke(set_app, ["plan", str(path), "--json", *where]).stdout)
    assert planned["splits"] == {"train": 60, "test": 40}
    assert planned["sources"] == [{"stream": "camera_frame", "delta_version": 0, "rows": 100}]
    assert planned["neighbours"]["test"] > 0
    assert "rows of test have a neighbour of another split within 2 s" in RUN.invoke(set_app, ["plan", str(path), *where]).stdout
    assert not (drive / "sets").exists()
    built = RUN.invoke(set_app, ["build", str(path), "--json", *where])
    assert built.exit_code == 0, built.output
    manifest = json.loads(built.stdout)
    assert (manifest["name"], manifest["spec"]["label"], manifest["where"]) == ("drive", {"column": "kind"}, "seq < 50")
    train = open_set(drive / "sets/drive/1", "train").to_arrow(["device", "event_time"])
    assert train.equals(train.sort_by([("device", "ascending"), ("event_time", "ascending")]))


def test_a_spec_and_the_same_snapshot_give_the_same_bytes(drive: Path) -> None:
    spec = parse_spec("id: drive\nsources: [{stream: camera_frame}]\nsample: {share: 0.5}\nsplit: {block: 4 s}")
    terms = Terms(Engine(), reassign=True)
    first, second = (build_version(lake_at(drive), wish_of_spec(spec), terms) for _ in range(2))
    assert [shard.sha256 for shard in first.shards] == [shard.sha256 for shard in second.shards]


def test_an_option_beside_a_spec_is_refused(drive: Path, tmp_path: Path) -> None:
    path = tmp_path / "drive.yaml"
    path.write_text("id: drive\nsources: [{stream: camera_frame}]\n")
    done = RUN.invoke(set_app, ["build", str(path), "--gap", "2s", "--lake", str(drive)])
    assert isinstance(done.exception, RefusedError)
    assert "--gap: a set spec decides this" in str(done.exception)


def test_lists_vectors_and_structs_are_columns_of_a_set_and_of_a_join(tmp_path: Path) -> None:
    root = tmp_path / "arrays"
    write_deltalake(root / "streams/camera_frame", pa.table({
        **keys("car-1", 8, 1_000),
        "embedding": pa.array([[float(at), 0.5] for at in range(8)], pa.list_(pa.float32(), 2)),
        "boxes": pa.array([[{"x": at, "name": "car"}] if at % 2 else None for at in range(8)]),
    }))  # fmt: skip
    ranges = pa.table(
        {**keys("car-1", 8, 1_000, 10), "ranges": pa.array([[at, at + 1] for at in range(8)], pa.list_(pa.int32()))}
    )
    write_deltalake(root / "streams/lidar", ranges)
    spec = parse_spec("""
id: arrays
sources: [{stream: camera_frame, samples: [camera_frame/car-1/1/3, camera_frame/car-1/1/4, camera_frame/car-1/1/99]}]
joins: [{stream: lidar, columns: [ranges], tolerance: 1 s}]
split: {shares: {train: 1.0}}
""")
    manifest = build_version(lake_at(root), wish_of_spec(spec), Terms(Engine(), part_rows=3))
    rows = open_set(root / "sets/arrays/1", "train").to_arrow(["seq", "embedding", "boxes", "ranges"]).sort_by("seq").to_pylist()
    assert [(row["seq"], row["embedding"], row["ranges"]) for row in rows] == [(3, [3.0, 0.5], [3, 4]), (4, [4.0, 0.5], [4, 5])]
    assert [row["boxes"] for row in rows] == [[{"x": 3, "name": "car"}], None]
    assert "1 of 3 listed samples are not in camera_frame" in manifest.notes
