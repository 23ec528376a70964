"""Policy files: their JSON Schema, those that are shipped, those of others."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines.commands.policy import policy_app
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError
from pipelines.policy.documents import load_policies, load_policy, parse_policy, policy_schema, schema_text
from pipelines.policy.pol_filter import import_policies
from pipelines.policy.trial import try_policy

SHIPPED = Path(__file__).parents[3] / "deploy" / "policies"
FILES = sorted(SHIPPED.glob("*.yaml"))


def accepted(document: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(document, policy_schema())
    except jsonschema.ValidationError:
        return False
    return True


def test_the_schema_that_is_shipped_is_the_one_that_the_reader_has() -> None:
    assert (SHIPPED / "policy.schema.json").read_text() == schema_text(), (
        "catchment policy schema > deploy/policies/policy.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(policy_schema())
    assert CliRunner().invoke(policy_app, ["schema"]).output == schema_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_policy_names_its_schema_and_fits_it(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=policy.schema.json\n")
    assert accepted(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_rule_of_a_shipped_policy_is_without_a_test(path: Path) -> None:
    trial = try_policy(load_policy(path), ContractSet.load(""))
    assert trial.is_passed
    assert (trial.unfired, trial.untrue) == ((), ())


def test_there_is_a_shipped_policy_for_every_built_in_stream() -> None:
    streams = {stream for policy in load_policies(str(SHIPPED)) for stream in policy.streams}
    assert streams == {contract.name for contract in ContractSet.load("").all()}


GOOD: dict[str, Any] = {"id": "a", "streams": ["slide"], "rules": [{"tag": "x", "when": "mpp > 1"}]}
BAD: list[dict[str, Any]] = [
    {**GOOD, "id": "Upper"},
    {**GOOD, "streams": []},
    {**GOOD, "exmaples": []},
    {**GOOD, "rules": [{"tag": "No Tag", "when": "TRUE"}]},
    {**GOOD, "rules": [{"tag": "x", "when": ""}]},
    {**GOOD, "rules": [{"tag": "x", "when": "TRUE", "then": 1}]},
    {**GOOD, "sample": [{"when": "TRUE", "rate": 1.5}]},
    {**GOOD, "sample": [{"when": "TRUE"}]},
    {**GOOD, "priority": [{"when": "TRUE", "priority": -1}]},
    {**GOOD, "inspect": [{"use": "image", "max_ms": 0}]},
    {**GOOD, "examples": [{"row": {"mpp": {"a": 1}}}]},
    {"streams": ["slide"], "rules": []},
]


@pytest.mark.parametrize("document", BAD, ids=range(len(BAD)))
def test_what_the_reader_refuses_an_editor_marks_as_well(document: dict[str, Any]) -> None:
    assert not accepted(document)
    with pytest.raises(ConfigError):
        parse_policy(yaml.safe_dump(document))


def test_every_key_of_a_policy_is_taken_by_both() -> None:
    document = {
        **GOOD, "owner": "me", "description": "d", "keep": [{"when": "TRUE", "description": "d"}],
        "sample": [{"when": "TRUE", "rate": 0.5, "pressure": 0.2}], "priority": [{"when": "TRUE", "priority": 7}],
        "inspect": [{"use": "image", "options": {"near_bits": 4}}],
        "examples": [{"row": {"mpp": 2.0, "label": None}, "tags": ["x"]}],
    }  # fmt: skip
    assert accepted(document)
    assert parse_policy(yaml.safe_dump(document)).has_edge_part


TAGS = {"tags": {"a": "b"}}
THEIRS = [
    {
        "pol_id": "pol2", "pol_filter": "user='research1' AND size>23 AND filename LIKE 'f0%'", "action_id": "AUTOTAG",
        "action_params": {"tags": {"Project Name": "Apollo 11", "tag5": "val5"}}, "schedule": "NOW", "pol_state": "active",
    },
    {
        "pol_id": "nightly", "pol_filter": "width in (640, 1280) or label is null", "action_id": "AUTOTAG",
        "action_params": '{"tags": {"size": "standard"}}', "schedule": {"hour": 5}, "policy_owner": "sdadmin",
    },
    {"pol_id": "deep", "pol_filter": "size>1", "action_id": "DEEPINSPECT", "action_params": {}},
    {"pol_id": "off", "pol_filter": "size>1", "action_id": "AUTOTAG", "action_params": TAGS, "pol_state": "inactive"},
    {"pol_id": "bad", "pol_filter": "size >", "action_id": "AUTOTAG", "action_params": TAGS},
    {"pol_id": "none", "pol_filter": "size > 1", "action_id": "AUTOTAG", "action_params": {"tags": {}}},
]  # fmt: skip


def test_policies_of_spectrum_discover_are_taken_over_and_the_rest_is_reported() -> None:
    found = import_policies(json.dumps(THEIRS).encode(), "camera_frame", {"user": "camera", "size": "width"})
    first, second = found.policies
    assert [rule.tag for rule in first.rules] == ["project_name:apollo-11", "tag5:val5"]
    assert first.rules[0].when == "camera = 'research1' AND width > 23 AND file_name LIKE 'f0%'"
    assert (second.id, second.owner, second.rules[0].tag) == ("nightly", "sdadmin", "size:standard")
    assert try_policy(first, ContractSet.load("")).is_passed
    assert try_policy(second, ContractSet.load("")).is_passed
    notes = "\n".join(found.notes)
    assert len(found.notes) == 5
    for word in ("schedule", "inspect", "inactive", "not SQL", "no tags"):
        assert word in notes


def test_the_command_writes_files_that_check_accepts(tmp_path: Path) -> None:
    source = tmp_path / "theirs.json"
    source.write_text(json.dumps(THEIRS))
    out = str(tmp_path / "out")
    arguments = ["import", str(source), "-s", "camera_frame", "-o", out, "--map", "user=camera", "--map", "size=width"]
    result = CliRunner().invoke(policy_app, arguments)
    assert result.exit_code == 0
    written = sorted((tmp_path / "out").glob("*.yaml"))
    assert [path.stem for path in written] == ["nightly", "pol2"]
    assert CliRunner().invoke(policy_app, ["check", *map(str, written)]).exit_code == 0
    assert "left as it is" in CliRunner().invoke(policy_app, arguments).output


def test_a_column_that_we_do_not_have_is_reported_when_it_is_written(tmp_path: Path) -> None:
    source = tmp_path / "theirs.json"
    source.write_text(json.dumps(THEIRS[0]))
    result = CliRunner().invoke(policy_app, ["import", str(source), "-s", "camera_frame", "-o", str(tmp_path)])
    assert "does not compile yet" in result.output


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


parameters = st.fixed_dictionaries({"tags": json_values})
policies = st.fixed_dictionaries(
    {"pol_id": st.text(max_size=9), "action_id": st.just("AUTOTAG")},
    optional={"pol_filter": json_values, "action_params": parameters, "pol_state": json_values},
)


@given(json_values | policies)
def test_any_json_is_taken_over_or_reported(document: object) -> None:
    try:
        found = import_policies(json.dumps(document).encode(), "camera_frame")
    except ConfigError:
        return
    assert found.policies or found.notes or document == []
