"""Putting policies in force: history, conflicts, what a run pins, and the commands."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from pipelines.commands.policy import policy_app
from pipelines.errors import ConflictError, CorruptLakeError, NotFoundError, PipelineError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.policy.documents import (
    active_policies,
    apply_policy,
    difference,
    history,
    load_policy,
    policies_in_force,
    read_document,
    to_yaml,
    withdraw_policy,
)
from schemas.policy import Policy, Rule

EXAMPLES = Path(__file__).parents[3] / "deploy" / "policies"
Commit = Callable[..., Path]


def policy(name: str, tag: str = "fast", when: str = "speed_mps > 20") -> Policy:
    return Policy(name, ("vehicle_telemetry",), (Rule(tag, when),))


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(policy_app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_the_newest_version_of_each_id_is_in_force_and_every_change_is_remembered(tmp_path: Path) -> None:
    one, other, two = policy("a"), policy("b"), policy("a", when="speed_mps > 25")
    for at, each in enumerate((one, other, two)):
        apply_policy(lake_at(tmp_path), each, "ada", at, "why")
    assert {each.label for each in active_policies(lake_at(tmp_path))} == {two.label, other.label}
    assert {each.label for each in active_policies(lake_at(tmp_path), 2)} == {one.label, other.label}
    withdraw_policy(lake_at(tmp_path), "b", "bob", 3)
    assert [(entry.who, entry.action) for entry in history(lake_at(tmp_path))] == [("ada", "apply")] * 3 + [("bob", "withdraw")]
    assert active_policies(lake_at(tmp_path)) == (two,)
    assert read_document(lake_at(tmp_path), one.label) == one
    with pytest.raises(NotFoundError, match="not active"):
        withdraw_policy(lake_at(tmp_path), "b", "bob", 4)


def test_applying_the_version_in_force_changes_nothing(tmp_path: Path) -> None:
    apply_policy(lake_at(tmp_path), policy("a"), "ada", 1)
    apply_policy(lake_at(tmp_path), policy("a"), "ada", 2)
    assert len(history(lake_at(tmp_path))) == 1


def test_of_many_who_apply_at_once_none_undoes_another_unseen(tmp_path: Path) -> None:
    applied: list[str] = []
    lost: list[Exception] = []

    def work(name: str) -> None:
        try:
            apply_policy(lake_at(tmp_path), policy(name), name, 1)
            applied.append(name)
        except ConflictError as error:
            lost.append(error)

    threads = [threading.Thread(target=work, args=(f"p{index}",)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(applied) + len(lost) == 8
    assert sorted(each.id for each in active_policies(lake_at(tmp_path))) == sorted(applied)


def test_a_document_that_is_not_what_its_name_says_stops(tmp_path: Path) -> None:
    apply_policy(lake_at(tmp_path), policy("a"), "ada", 1)
    document = next((tmp_path / "policies" / "documents").iterdir())
    document.write_bytes(document.read_bytes().replace(b"20", b"21"))
    with pytest.raises(CorruptLakeError, match="restore it"):
        active_policies(lake_at(tmp_path))


def test_an_applied_policy_wins_over_the_folder_s_of_the_same_id(tmp_path: Path) -> None:
    folder, root = tmp_path / "folder", tmp_path / "lake"
    folder.mkdir()
    root.mkdir()
    for each in (policy("a"), policy("b")):
        (folder / f"{each.id}.yaml").write_text(to_yaml(each))
    newer = policy("a", when="speed_mps > 30")
    apply_policy(lake_at(root), newer, "ada", 1)
    assert {each.label for each in policies_in_force(lake_at(root), str(folder))} == {newer.label, policy("b").label}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_written_by_us_is_read_back_as_the_same_version(tmp_path: Path, path: Path) -> None:
    loaded = load_policy(path)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(loaded))
    assert load_policy(again).version == loaded.version


def test_a_difference_shows_the_line_that_changed() -> None:
    text = difference(policy("a"), policy("a", when="speed_mps > 30"))
    assert "-  when: speed_mps > 20" in text
    assert "+  when: speed_mps > 30" in text
    assert difference(policy("a"), policy("a")) == ""


def test_the_commands_apply_show_compare_withdraw_and_retag(commit_rows: Commit, tmp_path: Path) -> None:
    root = commit_rows(1)
    old, new = tmp_path / "old.yaml", tmp_path / "new.yaml"
    old.write_text(to_yaml(policy("drive")))
    new.write_text(to_yaml(policy("drive", when="speed_mps > 30")))
    lake = ["--lake", str(root)]
    assert "in force" in run("apply", str(old), *lake, "-m", "first")[1]
    assert "in place of" in run("apply", str(new), *lake)[1]
    assert "in force already" in run("apply", str(new), *lake)[1]
    code, shown = run("diff", str(old), *lake)
    assert code == 1
    assert "speed_mps > 30" in shown
    assert run("diff", "drive", load_policy(new).label, *lake) == (0, "")
    history = json.loads(run("history", *lake, "--json")[1])
    assert [(each["change"], each["note"]) for each in history] == [(1, "first"), (2, "")]
    assert json.loads(run("active", *lake, "--json")[1])[0]["policy"] == load_policy(new).label
    assert "1,000 rows in 1 files" in run("retag", "vehicle_telemetry", *lake)[1]
    assert "carries these rules' tags already" in run("retag", "vehicle_telemetry", *lake)[1]
    assert "undone" in run("retag", "vehicle_telemetry", "--undo", *lake)[1]
    assert DeltaTable(root / "streams" / "vehicle_telemetry").version() == 3
    assert "withdrawn" in run("withdraw", "drive", *lake)[1]
    assert "none yet" in run("active", *lake)[1]


def test_a_policy_whose_example_fails_is_not_put_in_force(commit_rows: Commit, tmp_path: Path) -> None:
    root = commit_rows(1, 10)
    path = tmp_path / "bad.yaml"
    path.write_text(to_yaml(policy("drive")) + "examples:\n- row: {speed_mps: 1.0}\n  tags: [fast]\n")
    with pytest.raises(RefusedError, match="example 1 on vehicle_telemetry wants fast and gets no tags"):
        run("apply", str(path), "--lake", str(root))
    assert history(lake_at(root)) == ()


def test_a_lake_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="no such lake"):
        run("active", "--lake", str(tmp_path / "none"))
