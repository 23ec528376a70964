"""The command `set`, as a person types it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines.commands.training_set import parse_split, set_app
from pipelines.errors import RefusedError
from pipelines.training.spec import parse_duration_s
from tests.fakes.run_core import RunCore

RUN = CliRunner()


def test_a_set_is_built_listed_shown_and_verified(lake: Path) -> None:
    where = ["--lake", str(lake)]
    made = RUN.invoke(
        set_app,
        [
            "build",
            "frames",
            "--from",
            "camera_frame",
            "--where",
            "has('dark')",
            "--split",
            "train=0.5,test=0.5",
            "--json",
            *where,
        ],
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["version"] == 1
    assert json.loads(RUN.invoke(set_app, ["ls", "--json", *where]).stdout)[0]["name"] == "frames"
    shown = RUN.invoke(set_app, ["show", "frames/1", *where])
    assert "has('dark')" in shown.stdout
    assert "are what the manifest tells" in RUN.invoke(set_app, ["verify", "frames", *where]).stdout


def test_a_refusal_is_one_line_and_exit_code_3(
    lake: Path, tmp_path: Path, run_core: RunCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["show", "absent"], ["show", "Bad!"], ["show", "frames/x"], ["build", "x", "--from", "nothing"]):
        done = run_core("set", *arguments, "--lake", str(lake))
        assert (done.code, done.out) == (3, "")
        assert done.err.startswith("catchment: ")
    monkeypatch.chdir(tmp_path)
    assert "$CATCHMENT_CONFIG" in run_core("set", "ls").err


def test_an_empty_split_is_reported(lake: Path) -> None:
    result = RUN.invoke(set_app, ["build", "tiny", "--from", "camera_frame", "--where", "device = 'cam-1'", "--lake", str(lake)])
    assert result.exit_code == 0, result.output
    assert "is empty" in result.output


def test_a_malformed_split_is_refused() -> None:
    with pytest.raises(RefusedError, match="give shares"):
        parse_split("train")


def test_a_plan_shows_classes_by_split_and_writes_nothing(lake: Path) -> None:
    arguments = ["plan", "frames", "--from", "camera_frame", "--split", "train=0.5,test=0.5", "--lake", str(lake)]
    facts = json.loads(RUN.invoke(set_app, [*arguments, "--stratify", "label", "--json"]).stdout)
    assert sum(facts["splits"].values()) == 239
    assert {count["name"] for count in facts["coverage"]} == {"label=class-0", "label=class-1", "label=class-2"}
    assert "tags=dark" in RUN.invoke(set_app, arguments).stdout
    assert not (lake / "sets").exists()


def test_durations_are_read_with_their_unit() -> None:
    texts = ("", "30s", "30 s", "5min", "1h", "250ms", "0.5d")
    assert [parse_duration_s(text) for text in texts] == [0.0, 30.0, 30.0, 300.0, 3_600.0, 0.25, 43_200.0]
    for wrong in ("30", "s", "-1s", "1 week"):
        with pytest.raises(RefusedError, match="is no duration"):
            parse_duration_s(wrong)
