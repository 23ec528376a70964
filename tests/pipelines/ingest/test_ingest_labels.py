"""Rules that read what people say: pinned in a run's rules, brought to old rows by a retag, refused for devices."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from catchment.runtime.clock import SystemClock
from pipelines.commands.root import app
from pipelines.config import CoreConfig
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ExpressionError
from pipelines.expressions.expression import compile_expression
from pipelines.expressions.render import render
from pipelines.ingest.backfill import backfill, segments_of
from pipelines.ingest.plan import Pins, encode_pins, read_pins, read_plan
from pipelines.labels.rule_columns import LabelColumns, LabelPin, pin_labels
from pipelines.labels.table import SCHEMA, append_labels, read_labels
from pipelines.lake.lake import lake_at
from pipelines.lake.rollup import roll_up_all
from pipelines.maintenance.log_trim import keep_log, trim_logs
from pipelines.maintenance.maintain import maintain
from pipelines.maintenance.vacuum import Keep
from pipelines.policy.engine import Tagger
from pipelines.policy.trial import try_policy
from pipelines.runners.engine import Engine
from schemas.contract import ColumnType, builtin_contract
from schemas.policy import Example, Policy, Rule
from tests.plant.core import Core, MakeEnvelope

STREAM = "vehicle_telemetry"
POLICY = """id: reviewed
streams: [vehicle_telemetry]
rules:
  - tag: bad
    when: label('defect') = 'dent' AND seq < 100
"""
Labelled = Callable[..., None]


def label_rows(*made: tuple[int, str, str]) -> pa.Table:
    """Rows by (seq, author, class)."""
    when = datetime(2026, 1, 1, tzinfo=UTC)
    return pa.Table.from_pylist(
        [
            {
                "label_id": f"{seq}-{author}-{value}", "stream": STREAM, "device": "car-1", "epoch": 7, "seq": seq,
                "kind": "class", "value": value, "author": author, "role": "annotator", "state": "submitted", "supersedes": [],
                "made_at": when, "imported_at": when, "geometry": [], "task": "defect",
            }
            for seq, author, value in made
        ],
        SCHEMA,
    )  # fmt: skip


@pytest.fixture
def reviewed(core: Core, tmp_path: Path) -> Core:
    """A core with a policy that reads labels."""
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "reviewed.yaml").write_text(POLICY)
    core.config = CoreConfig(lake=str(core.root), policies=str(policies))
    return core


def tagged(core: Core) -> list[int]:
    return sorted(row["seq"] for row in core.rows(f"streams/{STREAM}") if row["tags"])


def test_a_run_tags_by_the_labels_that_its_rules_pin(reviewed: Core, envelope: MakeEnvelope) -> None:
    lake = lake_at(reviewed.root)
    append_labels(lake, "defect", label_rows((3, "ann", "dent"), (4, "ann", "ok")))
    reviewed.landing.seal([envelope(0, 10)])
    loop = reviewed.run()
    assert tagged(reviewed) == [3]
    plan = read_plan(lake, 1)
    assert plan is not None
    assert read_pins(lake, plan.pins).labels == (LabelPin("defect", read_labels(lake, "defect")[1]),)
    before = loop.rules.digest
    append_labels(lake, "defect", label_rows((12, "ann", "dent")))
    assert loop.rules.refresh() != before
    reviewed.landing.seal([envelope(10, 10)])
    loop.step()
    assert tagged(reviewed) == [3, 12]


def test_a_retag_brings_labels_to_rows_that_got_one_later(reviewed: Core, envelope: MakeEnvelope, tmp_path: Path) -> None:
    reviewed.landing.seal([envelope(0, 10)])
    reviewed.run()
    assert tagged(reviewed) == []
    config = tmp_path / "core.toml"
    config.write_text(f'lake = "{reviewed.root}"\npolicies = "{reviewed.config.policies}"\n')
    for made, expected in ((label_rows((3, "ann", "dent")), [3]), (label_rows((5, "ann", "dent")), [3, 5])):
        append_labels(lake_at(reviewed.root), "defect", made)
        done = CliRunner().invoke(app, ["policy", "retag", STREAM, "-c", str(config)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert tagged(reviewed) == expected
    done = CliRunner().invoke(app, ["policy", "retag", STREAM, "-c", str(config)], catch_exceptions=False)
    assert "carries these rules' tags already" in done.output
    done = CliRunner().invoke(
        app, ["policy", "explain", "car-1/7/3", "--stream", STREAM, "-c", str(config)], catch_exceptions=False
    )
    assert "label('defect', 'latest')" in " ".join(done.output.split())
    policy = str(Path(reviewed.config.policies) / "reviewed.yaml")
    done = CliRunner().invoke(app, ["policy", "preview", policy, "-c", str(config), "--json", "--all"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert '"rows": 2' in done.output


def test_a_rule_may_ask_for_a_majority_and_rows_without_a_label_have_none(core: Core) -> None:
    lake = lake_at(core.root)
    append_labels(
        lake, "defect", label_rows((1, "a", "dent"), (1, "b", "dent"), (1, "c", "ok"), (2, "a", "dent"), (2, "b", "ok"))
    )
    rules = (Rule("voted", "label('defect', 'majority') = 'dent'"), Rule("open", "label('defect', 'majority') IS NULL"))
    tagger = Tagger.compile([Policy("p", (STREAM,), rules)], builtin_contract(STREAM))
    keys = pa.table({"device": ["car-1"] * 3, "epoch": pa.array([7] * 3, pa.int64()), "seq": pa.array([1, 2, 3], pa.int64())})
    filled = LabelColumns(lake, STREAM, tagger.columns, pin_labels(lake, tagger.columns)).fill(keys)
    assert tagger.tag(filled)[0].to_pylist() == [["voted"], ["open"], ["open"]]
    absent = LabelColumns(lake, STREAM, tagger.columns, [LabelPin("defect", None)]).fill(keys)
    assert tagger.tag(absent)[0].to_pylist() == [["open"]] * 3


def test_a_device_refuses_a_rule_that_reads_labels_and_says_why() -> None:
    columns = {"seq": ColumnType.INT64}
    compiled = compile_expression("label('defect') = 'dent'", columns, allow_labels=True)
    assert render(compiled.node) == "label('defect', 'latest') = 'dent'"
    with pytest.raises(ExpressionError, match=r"label\('defect'\) asks for what people said later, which a device does not have"):
        compiled.to_edge()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label('defect') = 'x'", "only a policy's tags read"),
        ("label(seq) = 'x'", "takes a task and a rule as texts"),
        ("label('../x') = 'x'", "takes a task and a rule as texts"),
        ("label('defect', 'best') = 'x'", "there are latest, majority, unanimous"),
        ("label('defect') > 3", "cannot compare"),
    ],
)
def test_a_label_that_cannot_be_read_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        compile_expression(text, {"seq": ColumnType.INT64}, allow_labels="only" not in message)


def test_an_example_of_a_policy_may_give_a_label() -> None:
    examples = (Example({"label:defect:latest": "dent", "seq": 1}, ("bad",)), Example({"seq": 1}, ()))
    policy = Policy("reviewed", (STREAM,), (Rule("bad", "label('defect') = 'dent'"),), examples=examples)
    assert try_policy(policy, ContractSet.load("")).is_passed


def test_pins_without_labels_are_the_bytes_that_they_were() -> None:
    assert encode_pins(Pins((), ())) == b'{"contracts":[],"policies":[]}'


def test_a_backfill_reads_the_same_labels(reviewed: Core, envelope: MakeEnvelope) -> None:
    reviewed.landing.seal([envelope(0, 10)])
    reviewed.run()
    append_labels(lake_at(reviewed.root), "defect", label_rows((3, "ann", "dent")))
    backfill(reviewed.config, segments_of("b0:1-1"), Engine(), SystemClock())
    assert tagged(reviewed) == [3]


def test_maintenance_keeps_every_version_of_labels_and_takes_files_of_none(reviewed: Core, envelope: MakeEnvelope) -> None:
    lake = lake_at(reviewed.root)
    for seq in range(12):  # more commits than Delta keeps without a checkpoint
        append_labels(lake, "defect", label_rows((seq, "ann", "dent")))
    reviewed.landing.seal([envelope(0, 10)])
    reviewed.run()
    stray = lake.root / "labels" / "defect" / "000000000099-lost.parquet"
    stray.write_bytes(b"of an import that lost its race")
    roll_up_all(lake)
    maintain(lake, Keep(0, 0, 0, 0, 0))
    trim_logs(lake, keep_log(0, 1, 0))
    assert not stray.exists()
    first = [read_labels(lake, "defect", version)[0].num_rows for version in (1, 6, 12)]
    assert first == [1, 6, 12]
