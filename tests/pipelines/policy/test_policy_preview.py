"""Looking before applying: counts, overlaps, changes, conflicts, contact sheets; and why a sample has its tags."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import pyvips
from deltalake import DeltaTable, write_deltalake
from typer.testing import CliRunner

from pipelines.commands.policy import made_preview, policy_app
from pipelines.commands.policy_lake import LakeSite
from pipelines.contracts.arrow import table_schema
from pipelines.contracts.registry import ContractSet
from pipelines.errors import NotFoundError, RefusedError
from pipelines.expressions.expression import compile_expression, rule_columns
from pipelines.expressions.render import render
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import write_payload_shard
from pipelines.policy import guard
from pipelines.policy.documents import apply_policy, to_yaml
from pipelines.policy.engine import Tagger
from pipelines.policy.explain import RuleResult, explain
from pipelines.policy.preview import Preview, blocks, sample_row
from pipelines.policy.trial import try_policy
from schemas.contract import builtin_contract
from schemas.policy import Example, Policy, Rule

CONTRACT = builtin_contract("vehicle_telemetry")
CAMERA = builtin_contract("camera_frame")
STREAM = "vehicle_telemetry"
OLD = Policy("drive", (STREAM,), (Rule("fast", "speed_mps > 20"), Rule("gone", "speed_mps < 1")))
NEW = Policy(
    "drive",
    (STREAM,),
    (Rule("fast", "speed_mps > 30"), Rule("speed:high", "speed_mps > 25"), Rule("speed:mid", "speed_mps > 20")),
)
Commit = Callable[..., Path]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(policy_app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.output


def test_every_count_is_what_the_rows_say(commit_rows: Commit) -> None:
    for run_number in (1, 2):
        root = commit_rows(run_number)
    apply_policy(lake_at(root), OLD, "ada", 1)
    found = made_preview(LakeSite.open(None, root), NEW, STREAM, None)
    speed = np.array(
        DeltaTable(root / "streams" / STREAM).to_pyarrow_table(columns=["speed_mps"])["speed_mps"].to_pylist(), float
    )
    counts = {tag: (each.rows, each.before, each.gained, each.lost) for tag, each in found.counts.items()}
    fast, was = int((speed > 30).sum()), int((speed > 20).sum())
    assert counts["fast"] == (fast, was, 0, was - fast)
    assert counts["gone"] == (0, int((speed < 1).sum()), 0, int((speed < 1).sum()))
    assert found.overlap.tolist()[0] == [fast, fast, fast]
    assert (found.rows, found.tagged) == (2_000, was)
    conflict = found.conflicts[f"speed:high of {NEW.label}", f"speed:mid of {NEW.label}"]
    assert conflict.rows == int((speed > 25).sum())
    assert conflict.example["speed_mps"] > 25
    assert len(found.examples()) == 20


def test_two_policies_that_set_one_value_tag_differently_are_found_too(commit_rows: Commit) -> None:
    root = commit_rows(1)
    apply_policy(lake_at(root), Policy("other", (STREAM,), (Rule("speed:unknown", "speed_mps > 35"),)), "ada", 1)
    found = made_preview(LakeSite.open(None, root), NEW, STREAM, None)
    assert any("speed:unknown of other@" in first + second for first, second in found.conflicts)


def test_a_sample_of_the_rows_is_drawn_from_all_files(commit_rows: Commit) -> None:
    for run_number in range(1, 6):
        root = commit_rows(run_number)
    drawn = pa.concat_tables(blocks(lake_at(root), STREAM, {"run", "seq"}, 500))
    assert 400 <= drawn.num_rows <= 500
    assert len(set(drawn.column("run").to_pylist())) == 5
    assert sum(block.num_rows for block in blocks(lake_at(root), STREAM, {"seq"}, None)) == 5_000


def test_previewing_in_blocks_gives_the_same_as_previewing_at_once(commit_rows: Commit) -> None:
    root = commit_rows(1)
    (whole,) = blocks(lake_at(root), STREAM, {"speed_mps", "device", "epoch", "seq"}, None)
    tagger = Tagger.compile([NEW], CONTRACT)
    once, pieces = Preview(NEW, tagger), Preview(NEW, tagger)
    once.take(whole)
    for start in range(0, 1_000, 137):
        pieces.take(whole.slice(start, 137))
    assert once.counts == pieces.counts
    assert (once.overlap == pieces.overlap).all()
    assert once.conflicts == pieces.conflicts


def test_an_explanation_tells_what_is_true_what_nearly_is_and_every_value() -> None:
    rules = (
        Rule("fast", "speed_mps > 20 AND abs(yaw_rate_dps) > 8"),
        Rule("near", "speed_mps > 25.5"),
        Rule("far", "speed_mps > 100"),
        Rule("half", "speed_mps > 1 AND altitude_m > 100"),
        Rule("none", "altitude_m > 5"),
    )
    row = pa.table({"speed_mps": [25.0], "yaw_rate_dps": [-9.0], "seq": pa.array([4], pa.int64())})
    found = {each.tag: each for each in explain(Tagger.compile([Policy("p", (STREAM,), rules)], CONTRACT), row)}
    assert [each.verdict for each in found.values()] == [
        RuleResult.TRUE, RuleResult.NEARLY, RuleResult.NEARLY, RuleResult.FALSE, RuleResult.NULL,
    ]  # fmt: skip
    values = {part.text: part.value for part in found["fast"].parts}
    assert values["abs(yaw_rate_dps)"] == 9.0
    assert values["abs(yaw_rate_dps) > 8"] is True
    assert found["near"].missing == "speed_mps > 25.5, where speed_mps is 25"
    assert found["half"].missing == "altitude_m > 100, where altitude_m is NULL"


@pytest.mark.parametrize(
    "text",
    [
        "speed_mps BETWEEN 1 AND 2 OR NOT (seq = 3 AND device LIKE 'a%')",
        "CASE WHEN speed_mps > 1.5 THEN -seq ELSE 2 END >= 1e18",
        "device IN ('it''s', 'b') AND event_time > '2026-01-01 00:00:00+00:00'",
        "coalesce(speed_mps, 0) IS NOT NULL AND altitude_m IS NULL AND lower(device) <> 'x'",
    ],
)
def test_a_rendered_expression_compiles_to_the_same_tree(text: str) -> None:
    columns = rule_columns(CONTRACT)
    node = compile_expression(text, columns).node
    assert compile_expression(render(node), columns).node == node


def test_alternatives_that_no_example_makes_true_are_named() -> None:
    rules = (Rule("odd", "speed_mps > 30 OR speed_mps < 0 OR CASE WHEN seq = 1 THEN TRUE ELSE FALSE END"),)
    policy = Policy("p", (STREAM,), rules, examples=(Example({"speed_mps": 31.0}, ("odd",)),))
    trial = try_policy(policy, ContractSet.load(""))
    assert trial.is_passed
    assert "odd: speed_mps < 0" in trial.untrue
    assert "odd: seq = 1" in trial.untrue
    assert "odd: speed_mps > 30" not in trial.untrue


def test_the_commands_show_a_preview_and_explain_a_sample(commit_rows: Commit, tmp_path: Path) -> None:
    root = commit_rows(1, policies=(OLD,))
    apply_policy(lake_at(root), OLD, "ada", 1)
    path = tmp_path / "new.yaml"
    path.write_text(to_yaml(NEW))
    shown = run("preview", str(path), "--lake", str(root))
    assert "conflict" in shown
    assert "rows with both" in shown
    document = json.loads(run("preview", str(path), "--lake", str(root), "--json"))
    assert document["rows"] == 1_000
    row = next(each["row"] for each in document["examples"] if "fast" in each["tags"])
    sample = f"{row['device']}/{row['epoch']}/{row['seq']}"
    assert f"carries fast of {OLD.label}" in run("explain", sample, "--stream", STREAM, "--lake", str(root))
    why = json.loads(run("explain", sample, "--stream", STREAM, "--lake", str(root), "--file", str(path), "--json"))
    assert why["rules"][0]["verdict"] == "true"
    assert why["rules"][0]["parts"]["speed_mps"] == pytest.approx(row["speed_mps"])


def test_a_sample_that_is_not_there_or_badly_named_is_reported(commit_rows: Commit) -> None:
    root = commit_rows(1, 10)
    with pytest.raises(NotFoundError, match="no sample"):
        sample_row(lake_at(root), STREAM, "car-1/7/99")
    with pytest.raises(RefusedError, match="device/epoch/seq"):
        sample_row(lake_at(root), STREAM, "car-1")


@pytest.fixture
def camera_lake(tmp_path: Path) -> Path:
    root = tmp_path / "lake"
    keys = {"device": ["cam-1"] * 3, "epoch": pa.array([7] * 3, pa.int64()), "seq": pa.array(range(3), pa.int64())}
    grey = (pyvips.Image.black(64, 48) + 90).cast("uchar")
    bodies = [grey.jpegsave_buffer(), b"no picture", grey.pngsave_buffer()]
    shard = "payload/camera_frame/000000000001-0.parquet"
    table = pa.table({**keys, "payload_sha256": ["a", "b", "c"], "payload": pa.array(bodies, pa.binary())})
    written = write_payload_shard(root / shard, table)
    known = {
        **keys, "label": ["defect", "defect", "good"], "payload_shard": [shard] * 3,
        "payload_row": pa.array(range(3), pa.int32()), "payload_offset": written.offsets, "payload_length": written.lengths,
        "tags": pa.array([[]] * 3, pa.list_(pa.string())), "tag_rules": pa.array([[]] * 3, pa.list_(pa.string())),
    }  # fmt: skip
    schema = table_schema(CAMERA)
    rows = pa.table([known.get(field.name, pa.nulls(3, field.type)) for field in schema], schema=schema)
    write_deltalake(root / "streams" / "camera_frame", rows)
    return root


@pytest.mark.parametrize("suffix", [".html", ".png"])
def test_pictures_become_a_contact_sheet(camera_lake: Path, tmp_path: Path, suffix: str) -> None:
    path, sheet = tmp_path / "p.yaml", tmp_path / f"sheet{suffix}"
    path.write_text(to_yaml(Policy("look", ("camera_frame",), (Rule("any", "label IS NOT NULL"),))))
    run("preview", str(path), "--lake", str(camera_lake), "--sheet", str(sheet))
    if suffix == ".png":
        assert pyvips.Image.new_from_file(str(sheet)).width > 400
    else:
        text = sheet.read_text()
        assert text.count("<img") == 2
        assert text.count("<figure") == 3


def test_a_preview_refuses_a_policy_that_takes_more_than_its_budget(commit_rows: Commit, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: object) -> None:
        raise guard.WorkerDiedError("the policy took more than its budget", is_late=True)

    monkeypatch.setattr(guard, "RuleWorker", late)
    slow = Policy("slow", (STREAM,), (Rule("car", "matches(device, 'car')"),))
    with pytest.raises(RefusedError, match=r"policy slow@.*took more than its budget; correct or withdraw it"):
        made_preview(LakeSite.open(None, commit_rows(1, 10)), slow, STREAM, None)
