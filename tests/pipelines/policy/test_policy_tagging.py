"""Documents, tagging and the commands."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.commands.policy import policy_app
from pipelines.contracts.arrow import TIMESTAMP
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError, ExpressionError, RefusedError
from pipelines.policy.documents import load_policies, load_policy
from pipelines.policy.engine import Tagger, assemble
from pipelines.policy.trial import try_policy
from schemas.contract import builtin_contract
from schemas.policy import Policy, Rule

EXAMPLES = Path(__file__).parents[3] / "deploy" / "policies"
VEHICLE = builtin_contract("vehicle_telemetry")


def vehicle_rows(speeds: list[float | None]) -> pa.Table:
    now = datetime(2026, 1, 5, 12, tzinfo=UTC)
    return pa.table(
        {
            "event_time": pa.array([now] * len(speeds), TIMESTAMP),
            "device": pa.array(["car-1"] * len(speeds), pa.string()),
            "seq": pa.array(range(len(speeds)), pa.int64()),
            "speed_mps": pa.array(speeds, pa.float64()),
        }
    )


def policy(name: str, *rules: tuple[str, str], streams: tuple[str, ...] = ("vehicle_telemetry",)) -> Policy:
    return Policy(name, streams, tuple(Rule(tag, when) for tag, when in rules))


def test_each_tag_stands_beside_the_policy_and_version_that_gave_it() -> None:
    first, second = (
        policy("one", ("fast", "speed_mps > 20"), ("moving", "speed_mps > 0")),
        policy("two", ("fast", "speed_mps > 30")),
    )
    tags, sources = Tagger.compile([first, second], VEHICLE).tag(vehicle_rows([0.0, 25.0, None, 40.0]))
    one, two = f"one@{first.version}", f"two@{second.version}"
    assert tags.to_pylist() == [[], ["fast", "moving"], [], ["fast", "moving", "fast"]]
    assert sources.to_pylist() == [[], [one, one], [], [one, one, two]]
    assert tags.type == sources.type == pa.list_(pa.string())


def test_rules_of_one_policy_that_give_the_same_tag_give_it_once() -> None:
    both = policy("one", ("odd", "speed_mps > 20"), ("odd", "speed_mps > 30"), ("odd", "speed_mps IS NULL"))
    tags, _ = Tagger.compile([both], VEHICLE).tag(vehicle_rows([40.0, None, 1.0]))
    assert tags.to_pylist() == [["odd"], ["odd"], []]


def test_policies_of_other_streams_give_no_tags() -> None:
    tagger = Tagger.compile([policy("one", ("x", "mpp > 1"), streams=("slide",))], VEHICLE)
    assert tagger.rules == ()
    assert tagger.tag(vehicle_rows([1.0, 2.0]))[0].to_pylist() == [[], []]


def test_a_rule_of_literals_alone_tags_every_row() -> None:
    tagger = Tagger.compile([policy("one", ("all", "1 = 1"), ("none", "1 = 2"))], VEHICLE)
    assert tagger.tag(vehicle_rows([1.0, None, 3.0]))[0].to_pylist() == [["all"]] * 3
    mixed = Tagger.compile([policy("one", ("all", "1 = 1"), ("fast", "speed_mps > 2"))], VEHICLE)
    assert mixed.tag(vehicle_rows([1.0, 3.0]))[0].to_pylist() == [["all"], ["all", "fast"]]


def test_a_table_of_no_rows_gives_lists_of_no_rows() -> None:
    tags, sources = Tagger.compile([policy("one", ("fast", "speed_mps > 2"))], VEHICLE).tag(vehicle_rows([]))
    assert (len(tags), len(sources), tags.type) == (0, 0, pa.list_(pa.string()))


def test_a_table_in_many_chunks_is_tagged_as_one() -> None:
    pieces = pa.concat_tables([vehicle_rows([1.0, 30.0]), vehicle_rows([]), vehicle_rows([30.0])])
    assert Tagger.compile([policy("one", ("fast", "speed_mps > 20"))], VEHICLE).tag(pieces)[0].to_pylist() == [
        [],
        ["fast"],
        ["fast"],
    ]


def test_a_missing_column_is_named() -> None:
    with pytest.raises(RefusedError, match="steering_deg"):
        Tagger.compile([policy("one", ("x", "steering_deg > 1"))], VEHICLE).tag(vehicle_rows([1.0]))


def test_a_rule_that_does_not_compile_names_policy_rule_and_stream() -> None:
    with pytest.raises(ExpressionError, match=r"policy one, rule x, stream vehicle_telemetry: unknown column 'sped_mps'"):
        Tagger.compile([policy("one", ("x", "sped_mps > 1"))], VEHICLE)


def test_lists_are_assembled_as_a_row_loop_would() -> None:
    pick = np.random.default_rng(3)
    rows = 150_001
    hits = [pick.random(rows) < share for share in (0.5, 0.01, 0.0, 1.0, 0.2)]
    offsets, codes = assemble(hits, rows)
    for row in [0, 1, 65_535, 65_536, 131_072, rows - 1, *pick.integers(0, rows, 200)]:
        assert codes[offsets[row] : offsets[row + 1]].tolist() == [k for k, hit in enumerate(hits) if hit[row]]


def test_a_row_may_have_more_tags_than_a_byte_counts() -> None:
    offsets, codes = assemble([np.ones(3, np.bool_)] * 600, 3)
    assert offsets.tolist() == [0, 600, 1_200, 1_800]
    assert codes.tolist() == [*range(600)] * 3


def test_every_example_policy_passes_its_own_examples_and_tests_every_rule() -> None:
    contracts = ContractSet.load("")
    policies = load_policies(str(EXAMPLES))
    assert {stream for each in policies for stream in each.streams} <= {each.name for each in contracts.all()}
    for each in policies:
        trial = try_policy(each, contracts)
        assert (trial.failures, trial.unfired) == ((), ()), each.id


def test_no_folder_means_no_policies() -> None:
    assert load_policies("") == ()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("id: x\nstreams: [slide]\nrules:\n- tag: a\n  when: mpp > 1\n- tag: Bad Tag\n  when: mpp > 1\n", 6, "tag 'Bad Tag'"),
        ("id: x\nstreams: [slide]\nrules:\n- tag: a\n  wen: mpp > 1\n", 5, "unknown key 'wen'"),
        ("id: x\nstreams: [slide]\nexmaples: []\nrules: []\n", 3, "unknown key 'exmaples'"),
        ("id: x\nid: y\nstreams: [slide]\n", 2, "given twice"),
        ("id: x\nstreams: [slide\n", 3, "not YAML"),
        ("id: &a x\nstreams: [*a]\n", 2, "aliases"),
        ("[1, 2]\n", 1, "a policy is a mapping"),
        ("", 1, "empty"),
        ("id: x\nstreams: [slide]\nrules:\n- tag: a\n  when: 3\n", 5, "Expected `str`"),
        ("id: !!python/object/apply:os.system ['id']\n", 1, "not YAML"),
        ("a: " + "[" * 40 + "]" * 40, 1, "nested deeper"),
    ],
)  # fmt: skip
def test_a_document_that_is_no_policy_is_refused_with_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"{path}:{line}:")
    assert words in str(caught.value)


def test_an_id_used_twice_is_refused_with_both_files(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("id: x\nstreams: [slide]\nrules: [{tag: a, when: mpp > 1}]\n")
    with pytest.raises(ConfigError, match=r"b\.yaml.*already used in .*a\.yaml"):
        load_policies(str(tmp_path))


def test_the_check_command_refuses_a_misspelt_column_and_exits_with_one(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("id: x\nstreams: [vehicle_telemetry]\nrules: [{tag: a, when: sped_mps > 1}]\n")
    result = CliRunner().invoke(policy_app, ["check", str(path)])
    assert result.exit_code == 1
    assert "did you mean 'speed_mps'?" in result.output
    assert CliRunner().invoke(policy_app, ["check", *map(str, EXAMPLES.glob("*.yaml"))]).exit_code == 0


def test_the_test_command_tells_failed_examples_and_untested_rules(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "id: x\nstreams: [vehicle_telemetry]\nrules: [{tag: fast, when: speed_mps > 1}, {tag: slow, when: speed_mps < 1}]\n"
        "examples:\n- row: {speed_mps: 3}\n  tags: [slow]\n"
    )
    result = CliRunner().invoke(policy_app, ["test", str(path)])
    assert result.exit_code == 1
    assert "wanted (slow), got (fast)" in result.output
    assert "no example gets slow" in result.output


def test_an_example_with_an_unknown_column_is_refused_not_passed(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "id: x\nstreams: [vehicle_telemetry]\nrules: [{tag: fast, when: speed_mps > 1}]\n"
        "examples:\n- row: {sped: 3}\n  tags: []\n"
    )
    with pytest.raises(ConfigError, match="no stream of it has all of sped"):
        try_policy(load_policy(path), ContractSet.load(""))
