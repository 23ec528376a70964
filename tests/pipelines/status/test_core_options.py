"""Options that commands share are written once, in a dataclass: each command takes them as if they were its own."""

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from catchment.runtime.output import say
from pipelines.commands.options import with_options

RUN = CliRunner()


@dataclass(frozen=True, slots=True)
class _Shared:
    stream: Annotated[str, typer.Option("--from", help="The stream.")]
    count: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many.")] = 20


def _app() -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @with_options(_Shared)
    def pick(sample: str, shared: _Shared, exact: Annotated[bool, typer.Option("--exact")] = False) -> None:
        """Pick samples."""
        say(f"{sample} {shared.stream} {shared.count} {exact}")

    return app


def test_a_command_takes_the_options_of_a_dataclass_next_to_its_own() -> None:
    assert RUN.invoke(_app(), ["a/b/1", "--from", "camera"]).stdout == "a/b/1 camera 20 False\n"
    assert RUN.invoke(_app(), ["a/b/1", "--from", "camera", "-n", "3", "--exact"]).stdout == "a/b/1 camera 3 True\n"


def test_a_shared_option_without_a_default_is_required_and_its_bounds_hold() -> None:
    without = RUN.invoke(_app(), ["a/b/1"])
    assert (without.exit_code, "--from" in without.output) == (2, True)
    assert RUN.invoke(_app(), ["a/b/1", "--from", "camera", "-n", "0"]).exit_code == 2


def test_the_help_of_a_command_shows_shared_options_and_its_own_sentence() -> None:
    shown = RUN.invoke(_app(), ["--help"], env={"COLUMNS": "120"}).output
    assert "Pick samples." in shown
    assert all(text in shown for text in ("--from", "How many.", "--exact"))
