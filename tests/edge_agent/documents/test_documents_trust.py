"""Whom a device believes: keys in its configuration or in the file that enrolment wrote; a file it cannot read gives none."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from edge_agent.checking import check_file
from edge_agent.commands.doctor.examine import examine_orders
from edge_agent.commands.doctor.findings import CheckResult
from edge_agent.commands.root import app
from edge_agent.config import load_agent_config
from edge_agent.documents.trust import director_trust, rules_trust
from edge_agent.errors import ConfigError
from edge_agent.health.file import Health
from schemas.reported import DocumentReport
from tests.plant.present import present

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


def write(folder: Path, more: str = "") -> Path:
    path = folder / "agent.toml"
    path.write_text(f'device = "car-1"\nstate_dir = "state"\n{more}')
    return path


def test_keys_of_the_table_and_of_the_file_are_trusted_for_all_and_those_of_policy_for_rules_alone(tmp_path: Path) -> None:
    (tmp_path / "director.pub").write_text(f"# since spring\n{TWO}  # plant\n\n{ONE}\n")
    text = f'[director]\npublic_keys = ["{ONE}"]\nfile = "director.pub"\ncohorts = ["north"]\n[policy]\npublic_key = "{THREE}"\n'
    config = load_agent_config(write(tmp_path, text))
    director, rules = present(director_trust(config)), present(rules_trust(config))
    assert (director.keys, director.device, director.cohorts) == ((ONE, TWO), "car-1", frozenset({"north"}))
    assert (rules.keys, rules.cohorts) == ((ONE, TWO, THREE), frozenset({"north"}))
    bare = load_agent_config(write(tmp_path))
    assert (director_trust(bare), rules_trust(bare)) == (None, None)


@pytest.mark.parametrize(
    "text", [None, "", "# none\n", ONE[:-1], ONE.replace("1", "A"), f"{ONE}\n" * 5, "x" * 5_000, "\xff"], ids=repr
)
def test_a_key_file_that_cannot_be_read_gives_no_keys_and_the_agent_runs(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "director.pub").write_text(text, encoding="latin-1")
    path = write(tmp_path, '[director]\nfile = "director.pub"\n')
    trust = director_trust(load_agent_config(path))
    assert trust is not None
    assert trust.keys == ()
    found = check_file(path)
    if text is None:
        assert any("without it no order is followed" in line for line in found.report_lines)
    else:
        assert [fault.line for fault in found.faults] == [4]


@pytest.mark.parametrize(
    "table",
    [
        "[director]\n", "[director]\npublic_keys = []\n", '[director]\npublic_keys = ["ab"]\n',
        f"[director]\npublic_keys = {json.dumps([ONE] * 5)}\n", f'[director]\npublic_keys = ["{ONE}"]\ncohorts = ["A b"]\n',
        f'[director]\npublic_key = "{ONE}"\n', "[policy]\n", '[policy]\npublic_key = "ab"\n',
    ],
)  # fmt: skip
def test_a_wrong_table_is_an_error_of_the_configuration(tmp_path: Path, table: str) -> None:
    path = write(tmp_path, table)
    with pytest.raises(ConfigError):
        load_agent_config(path)
    assert len(check_file(path).faults) == 1


def test_two_policy_keys_are_trusted_while_one_is_being_changed(tmp_path: Path) -> None:
    config = load_agent_config(write(tmp_path, f'[policy]\npublic_key = "{ONE}"\npublic_keys = ["{TWO}", "{ONE}"]\n'))
    assert present(rules_trust(config)).keys == (ONE, TWO)


def test_a_device_with_a_model_and_no_director_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "root.json").write_text("{}")
    model = '[model]\nname = "m"\nroot = "root.json"\nstreams = ["camera_frame"]\n'
    assert any("unsigned orders" in line for line in check_file(write(tmp_path, model)).report_lines)
    with_key = check_file(write(tmp_path, f'{model}[director]\npublic_keys = ["{ONE}"]\n'))
    assert not any("unsigned" in line for line in with_key.report_lines)


def enrol(folder: Path, director: str) -> "tuple[int, str]":
    result = CliRunner().invoke(app, ["enrol", "car-1", "--folder", str(folder), "--director", director])
    return result.exit_code, result.output + str(result.exception or "")


def test_enrolment_brings_the_directors_keys_to_where_the_examples_look(tmp_path: Path) -> None:
    code, output = enrol(tmp_path, ONE)
    assert (code, (tmp_path / "director.pub").read_text()) == (0, f"{ONE}\n")
    assert "1 trusted" in output
    (tmp_path / "keys").write_text(f"{ONE}\n{TWO}\n")
    assert enrol(tmp_path, str(tmp_path / "keys"))[0] == 0
    assert (tmp_path / "director.pub").read_text() == f"{ONE}\n{TWO}\n"
    config = load_agent_config(write(tmp_path, '[director]\nfile = "director.pub"\n'))
    assert present(director_trust(config)).keys == (ONE, TWO)
    for wrong in ("no such file", "ab", " ".join([ONE] * 5)):
        assert enrol(tmp_path, wrong)[0] != 0
    assert (tmp_path / "director.pub").read_text() == f"{ONE}\n{TWO}\n"


@pytest.mark.parametrize(
    ("document", "verdict", "words"),
    [
        (DocumentReport("desired", 5), CheckResult.GOOD, "counter 5 was followed"),
        (DocumentReport("desired"), CheckResult.GOOD, "none came yet"),
        (DocumentReport("desired", 5, 2, "counter 4 is not newer"), CheckResult.WARNING, "2 refused"),
    ],
)
def test_the_doctor_tells_what_became_of_orders(
    tmp_path: Path, document: DocumentReport, verdict: CheckResult, words: str
) -> None:
    model = '[model]\nname = "m"\nroot = "root.json"\nstreams = ["camera_frame"]\n'
    config = load_agent_config(write(tmp_path, f'{model}[director]\npublic_keys = ["{ONE}"]\n'))
    health = Health(0, 1, True, 0, 0, 0, 0, 0, None, 0, 1, 0, documents=(document,))
    found = examine_orders(config, health)
    assert (found.verdict, words in found.message) == (verdict, True)
    assert examine_orders(config, None).verdict is CheckResult.SKIPPED
    assert examine_orders(msgspec.structs.replace(config, director=None), health).verdict is CheckResult.WARNING
    assert examine_orders(msgspec.structs.replace(config, model=None), health).verdict is CheckResult.SKIPPED
