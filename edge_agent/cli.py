"""`edge-agent`: run it, look into it, check its configuration."""

import os
import sys
from typing import Annotated, ClassVar

import msgspec
import typer

from catchment.runtime.exits import exit_table
from catchment.runtime.output import say, say_json
from catchment.runtime.plain import plain_tracebacks
from catchment.runtime.renamed_commands import RenamedCommands
from edge_agent.commands.device import register
from edge_agent.commands.exits import REPORTED, exit_code
from edge_agent.commands.options import AGENT, AsJson, Config
from edge_agent.commands.spool import park_app, spool_app

_HELP = """Captures samples, keeps them through power cuts, and delivers each exactly once.

Start with `edge-agent check -c agent.toml`, see with `edge-agent try` what its sources give, then `edge-agent run`; look with
`status` and `books`, which work while the agent runs and after. SIGHUP makes a running agent read its configuration again.

Code 1: `doctor` found something that does not work, `try` something that is refused, or `spool verify` damage; 3: also where
`run --until-settled` ended with parked envelopes left; 75: also where another agent runs, where nothing came for `try`, and
where there is no spool yet.
"""


class Commands(RenamedCommands):
    """The agent's commands."""

    renamed: ClassVar[dict[str, str]] = {"ledger": "books"}


app = typer.Typer(cls=Commands, help=_HELP, epilog=exit_table(), no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(spool_app, name="spool")
app.add_typer(park_app, name="park")


@app.command()
def run(
    config: Config = AGENT,
    until_settled: Annotated[
        bool, typer.Option("--until-settled", help="End when all sources ended and everything is settled.")
    ] = False,
) -> None:
    """Capture and deliver until SIGTERM or Ctrl-C. Logs go to stderr; SIGHUP reads the configuration again."""
    # The process that runs for months carries neither this command line nor its tables: it starts small.
    from edge_agent.config import load_agent_config  # noqa: PLC0415 # each command loads only what it needs

    device = load_agent_config(config).device
    arguments = [sys.executable, "-m", "edge_agent", "-c", str(config), "--device", device]
    arguments += ["--until-settled"] if until_settled else []
    # Few malloc arenas: threads of bursts must not keep their peaks for ever.
    environment = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072", **os.environ}
    sys.stdout.flush()
    os.execve(sys.executable, arguments, environment)  # noqa: S606 # our own interpreter and module


@app.command()
def status(config: Config = AGENT, as_json: AsJson = False) -> None:
    """Is it connected, does it make progress, how full is the spool, what was refused, what is parked?"""
    from edge_agent.commands.status_reader import read_status  # noqa: PLC0415
    from edge_agent.commands.tables import show_status  # noqa: PLC0415

    found = read_status(config)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_status(found)


@app.command()
def books(config: Config = AGENT, as_json: AsJson = False) -> None:
    """The books of every stream: captured = settled + spooled + dropped, with reasons and open epochs."""
    from edge_agent.commands.status_reader import read_ledger  # noqa: PLC0415
    from edge_agent.commands.tables import show_ledger  # noqa: PLC0415

    found = read_ledger(config)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_ledger(found)


@app.command()
def version() -> None:
    """The installed version."""
    from importlib import metadata  # noqa: PLC0415

    say(metadata.version("catchment"))


register(app)


def main() -> None:
    """The console script."""
    plain_tracebacks()
    try:
        app()
    except REPORTED as error:
        say(f"edge-agent: {error}", err=True)
        sys.exit(exit_code(error))
