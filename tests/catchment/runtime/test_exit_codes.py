"""One table of exit codes: every command, found by walking both programs, ends the same way for the same reason."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import pipelines.cli as core_program
import pipelines.commands.root as core_cli
from catchment.runtime.exits import MEANINGS
from edge_agent import cli as agent_cli
from edge_agent.commands import options as command_options
from edge_agent.commands.root import app as agent_app
from pipelines import config as core_config_module
from pipelines.commands.exits import code_of

CORE_TOML = 'lake = "lake"\n[broker]\nport = 1\n'
# Arguments that a command must be given to come as far as its configuration.
GIVEN = {
    "policy apply": ["p.yaml"], "policy withdraw": ["p"], "policy diff": ["p"], "policy retag": ["vehicle_telemetry"],
    "policy check": ["p.yaml"], "policy test": ["p.yaml"], "policy preview": ["p.yaml"],
    "policy explain": ["car-1/1/1", "-s", "vehicle_telemetry"], "policy import": ["p.json", "-s", "vehicle_telemetry"],
    "contract show": ["slide"], "contract diff": ["slide", "slide"], "contract quality": ["slide"],
    "set plan": ["s", "--from", "slide"], "set build": ["s", "--from", "slide"], "set show": ["s"], "set verify": ["s"],
    "label import": ["l.csv", "--task", "t", "--from", "slide", "--as", "csv"],
    "label export": ["--task", "t", "--from", "slide", "--as", "csv", "-o", "l.csv"],
    "label queue": ["--task", "t", "--from", "slide", "--as", "csv", "-o", "l.csv"],
    "label agreement": ["--task", "t"], "label resolve": ["--task", "t"],
    "similar": ["car-1/1/1", "--from", "slide"], "rare": ["--from", "slide"], "uncertain": ["--from", "slide"],
    "disagreeing": ["--from", "slide"],
    "set diff": ["s/1", "s/2"], "set check": ["s"], "set card": ["s"], "set pin": ["s", "-m", "why"], "set rm": ["s/1"],
    "set export": ["s", "out", "--to", "webdataset"], "set exports": ["s"],
    "model publish": ["m", "m.onnx"], "model show": ["m"], "model withdraw": ["m", "1"], "rollout start": ["m"],
    "model root draft": ["next.json"], "model root install": ["next.json"], "model root verify": ["next.json"],
    "model rotate": ["timestamp"], "rollout halt": ["m-1"], "model evaluate": ["m", "--from", "slide", "--task", "t"],
    "rollout pause": ["m-1"], "rollout resume": ["m-1"], "rollout rollback": ["m-1"],
    "rollout judge": ["m-1", "v.csv"], "chips sheet": ["scanner-1/7/42", "sheet.html"],
    "chips zarr": ["scanner-1/7/42", "slide.ome.zarr"],
    "quarantine show": ["slide"], "quarantine replay": ["--all"], "quarantine discard": ["--all", "--yes"],
    "director retire": ["00"], "spool show": ["1"], "park replay": ["1"], "run": [],
}  # fmt: skip
# No configuration is needed to do these.
WITHOUT_CONFIG = {
    "catchment": {
        "version",
        "bench au",
        "demo",
        "policy keygen",
        "policy schema",
        "set schema",
        "contract check",
        "contract infer",
        "model key new",
        "model root sign",
    },
    "edge-agent": {"version", "enrol"},
}
# What is not there: words, and what of it must be in the message.
MISSING = {
    "policy apply": ["none.yaml"], "policy withdraw": ["none"], "policy diff": ["none"], "policy retag": ["none"],
    "policy check": ["none.yaml"], "policy test": ["none.yaml"], "policy preview": ["none.yaml"],
    "policy explain": ["car-1/1/1", "-s", "none"], "policy import": ["none.json", "-s", "slide"],
    "policy push": ["--key", "none.pem"], "contract check": ["none.yaml"], "contract infer": ["none.csv"],
    "contract show": ["none"], "contract diff": ["none", "slide"], "contract quality": ["none"],
    "set plan": ["s", "--from", "none"], "set build": ["s", "--from", "none"], "set show": ["none"], "set verify": ["none"],
    "label import": ["none.csv", "--task", "t", "--from", "none", "--as", "csv"],
    "label export": ["--task", "t", "--from", "none", "--as", "csv", "-o", "l.csv"],
    "label queue": ["--task", "t", "--from", "none", "--as", "csv", "-o", "l.csv"],
    "label agreement": ["--task", "none"], "label resolve": ["--task", "none"],
    "similar": ["car-1/1/1", "--from", "none"], "rare": ["--from", "none"], "uncertain": ["--from", "none"],
    "disagreeing": ["--from", "none"],
    "set diff": ["none", "none"], "set check": ["none"], "set card": ["none"], "set pin": ["none", "-m", "w"],
    "set rm": ["none/1"], "set export": ["none", "out", "--to", "webdataset"], "set exports": ["none"],
    "model publish": ["m", "none.onnx"], "model show": ["none"], "model withdraw": ["none", "1"], "rollout start": ["none"],
    "model root draft": ["next.json"], "model root install": ["none.json"], "model root verify": ["none.json"],
    "model root sign": ["none.json", "none.pem"], "model rotate": ["timestamp"],
    "model evaluate": ["m", "--from", "none", "--task", "t"],
    "rollout halt": ["none"], "rollout pause": ["none"], "rollout resume": ["none"], "rollout rollback": ["none"],
    "rollout judge": ["none", "v.csv"],
    "chips sheet": ["none/7/42", "sheet.html"], "chips zarr": ["none/7/42", "slide.ome.zarr"],
    "quarantine show": ["none"], "quarantine replay": ["--stream", "none"], "quarantine discard": ["--stream", "none", "--yes"],
    "director show": [], "director add": [], "director retire": ["00"],
}  # fmt: skip


def words_of(app: typer.Typer) -> list[str]:
    """Every command of an app."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[str]:
        if not hasattr(command, "list_commands"):
            yield " ".join(words)
            return
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from walk(command.resolve_command(context, [name])[1], (*words, name))

    return sorted(walk(typer.main.get_command(app), ()))


CORE, AGENT = words_of(core_cli.app), words_of(agent_app)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("CATCHMENT_CONFIG", "CATCHMENT_AGENT_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(core_config_module, "CONFIG_PLACES", (Path("core.toml"), tmp_path / "etc" / "core.toml"))
    monkeypatch.setattr(command_options, "CONFIG_PLACES", (Path("agent.toml"), tmp_path / "etc" / "agent.toml"))
    return tmp_path


def end(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command in this process as its program does, to its exit code."""
    monkeypatch.setattr(sys, "argv", [program, *words])
    if program == "catchment":
        return core_program.run_command()
    try:
        agent_cli.main()
    except SystemExit as ended:
        return code_of(ended)
    return 0


def error_text(capsys: pytest.CaptureFixture[str], program: str) -> str:
    """What stands on standard error, of which nothing is on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith((f"{program}: ", "  ", "╰")), err
    return err


def _does_without(name: str) -> bool:
    """Whether the built-in contracts are all that a command needs, where no configuration is found."""
    return name.startswith("contract ") or name in {"policy check", "policy test", "policy import"}


def _configured(program: str) -> list[str]:
    return [name for name in (CORE if program == "catchment" else AGENT) if name not in WITHOUT_CONFIG[program]]


@pytest.mark.parametrize("name", _configured("catchment"))
def test_a_wrong_key_in_core_toml_ends_every_command_with_2(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / "core.toml").write_text("lak = 1\n")
    assert end("catchment", [*name.split(), *GIVEN.get(name, [])], monkeypatch) == 2
    assert "core.toml" in error_text(capsys, "catchment")


@pytest.mark.parametrize("name", _configured("catchment"))
def test_a_lake_root_that_is_a_file_ends_every_command_with_2(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / "core.toml").write_text(CORE_TOML)
    (place / "lake").write_text("")
    assert end("catchment", [*name.split(), *GIVEN.get(name, [])], monkeypatch) == 2
    assert "is a file" in error_text(capsys, "catchment")


@pytest.mark.parametrize("name", [name for name in CORE if name.startswith("set ") and name not in WITHOUT_CONFIG["catchment"]])
def test_a_lake_that_is_named_and_is_a_file_ends_a_command_with_2_too(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / "file").write_text("")
    assert end("catchment", [*name.split(), *GIVEN.get(name, []), "--lake", "file"], monkeypatch) == 2
    assert "is a file" in error_text(capsys, "catchment")


@pytest.mark.parametrize("name", [name for name in _configured("catchment") if not _does_without(name)])
def test_without_any_configuration_every_command_ends_with_2_and_names_the_places(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert place.exists()
    assert end("catchment", [*name.split(), *GIVEN.get(name, [])], monkeypatch) == 2
    assert "$CATCHMENT_CONFIG" in error_text(capsys, "catchment")


@pytest.mark.parametrize("name", MISSING)
def test_what_is_not_there_ends_every_command_with_3(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / "core.toml").write_text(CORE_TOML)
    (place / "lake").mkdir()
    if name in {"model show", "rollout start"}:
        assert end("catchment", ["model", "init"], monkeypatch) == 0
        capsys.readouterr()
    assert end("catchment", [*name.split(), *MISSING[name]], monkeypatch) == 3
    error_text(capsys, "catchment")


def test_every_command_that_names_a_thing_is_tried_with_one_that_is_not_there() -> None:
    assert {name for name in GIVEN if name in CORE} - {"run"} <= set(MISSING)


@pytest.mark.parametrize("name", _configured("edge-agent"))
def test_a_wrong_key_in_agent_toml_ends_every_command_with_2(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / "agent.toml").write_text("devise = 1\n")
    assert end("edge-agent", [*name.split(), *GIVEN.get(name, [])], monkeypatch) == 2
    out, err = capsys.readouterr()
    assert "agent.toml" in out + err


@pytest.mark.parametrize("name", _configured("edge-agent"))
def test_without_any_configuration_every_command_of_the_agent_ends_with_2(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert place.exists()
    assert end("edge-agent", [*name.split(), *GIVEN.get(name, [])], monkeypatch) == 2
    assert "$CATCHMENT_AGENT_CONFIG" in error_text(capsys, "edge-agent")


def test_an_error_never_lands_in_the_requested_document(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.exists()
    assert end("catchment", ["contract", "show", "nothing", "--as", "agent"], monkeypatch) == 3
    assert "no contract 'nothing'" in error_text(capsys, "catchment")


@pytest.mark.parametrize(("program", "variable"), [("catchment", "CATCHMENT_CONFIG"), ("edge-agent", "CATCHMENT_AGENT_CONFIG")])
def test_the_configuration_is_found_in_the_environment_then_here_then_in_etc(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, variable: str
) -> None:
    name = "core.toml" if program == "catchment" else "agent.toml"
    (place / "etc").mkdir()
    for path in (place / "etc" / name, place / name, place / "named.toml"):
        path.write_text("wrong = 1\n")
        if path.name == "named.toml":
            monkeypatch.setenv(variable, str(path))
        assert end(program, ["status"], monkeypatch) == 2
        assert (str(path) if path.parent != place or path.name == "named.toml" else name) in error_text(capsys, program)
    assert end(program, ["status", "-c", "other.toml"], monkeypatch) == 2
    assert "other.toml" in error_text(capsys, program)


@pytest.mark.parametrize(("program", "old", "new"), [
    ("catchment", "ledger", "books"), ("catchment", "holes", "gaps"), ("edge-agent", "ledger", "books"),
])  # fmt: skip
def test_an_old_command_does_what_the_new_one_does_with_one_warning(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str, old: str, new: str
) -> None:
    (place / "core.toml").write_text(CORE_TOML)
    (place / "agent.toml").write_text('device = "pi-7"\nstate_dir = "state"\n')
    codes = [end(program, [new], monkeypatch)]
    plain = capsys.readouterr()
    codes.append(end(program, [old], monkeypatch))
    warned = capsys.readouterr()
    assert codes[0] == codes[1]
    assert (warned.out, warned.err.splitlines()[1:]) == (plain.out, plain.err.splitlines())
    assert f"`{old}` is now `{new}`" in warned.err


@pytest.mark.parametrize("program", ["catchment", "edge-agent"])
def test_help_and_the_operator_s_page_show_the_table(
    repository_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert end(program, ["--help"], monkeypatch) == 0
    shown = " ".join(capsys.readouterr().out.split())
    page = (repository_root / "docs" / "operator" / "reference.md").read_text()
    for code, meaning in MEANINGS.items():
        assert f"{code} {meaning}" in shown
        assert f"| {code} | {meaning}" in page


def test_commands_leave_errors_to_the_top(repository_root: Path) -> None:
    """An exit code that is a number of its own, or an `except` that exits, would be a second table."""
    wrong = re.compile(r"typer\.Exit\(\d|sys\.exit\(\d|raise typer\.Exit\([^)]*\) from error")
    strays = [
        f"{path.relative_to(repository_root)}:{number}"
        for package in ("edge_agent", "pipelines")
        for path in sorted((repository_root / package).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if wrong.search(line)
    ]
    assert strays == [], "raise the error; exits.py knows its code"


@pytest.mark.slow
def test_beam_is_imported_without_a_word_about_bigquery(repository_root: Path) -> None:
    """The warning came from an import of Beam's, through a handler that the root logger then kept."""
    program = "import logging, pipelines.runners.run; print(logging.getLogger().handlers)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=repository_root, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
