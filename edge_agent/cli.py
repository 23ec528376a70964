"""`edge-agent`: run it, look into it, check its configuration."""

import os
import sqlite3
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from catchment.runtime.output import say, say_json
from catchment.runtime.plain import plain_tracebacks
from edge_agent.cli_ops import register
from edge_agent.errors import AgentError, ConfigError
from edge_agent.exits import EXIT_CONFIG, EXIT_RETRY
from edge_agent.spool_cli import park_app, spool_app

_HELP = """Captures samples, keeps them through power cuts, and delivers each exactly once.

Start with `edge-agent check -c agent.toml`, see with `edge-agent try` what its sources give, then `edge-agent run`; look with
`status` and `ledger`, which work while the agent runs and after. SIGHUP makes a running agent read its configuration again.

Exit codes: 0 done; 1 `doctor` found something that does not work, `try` something that is refused, or `spool verify` damage;
2 the command or the configuration is wrong (the message names file, line and key); 3 `run --until-settled` ended with parked
envelopes left; 75 try again: the spool broke and is mended at the next start, another agent runs, nothing came for `try`, or
there is no spool yet to look at.
"""

app = typer.Typer(help=_HELP, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(spool_app, name="spool")
app.add_typer(park_app, name="park")
ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="The agent's TOML file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]


@app.command()
def run(
    config: ConfigOption,
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
def status(config: ConfigOption, as_json: JsonOption = False) -> None:
    """Is it connected, does it make progress, how full is the spool, what was refused, what is parked?"""
    from edge_agent.looking import read_status  # noqa: PLC0415
    from edge_agent.show import show_status  # noqa: PLC0415

    found = read_status(config)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_status(found)


@app.command()
def ledger(config: ConfigOption, as_json: JsonOption = False) -> None:
    """The books of every stream: captured = settled + spooled + dropped, with reasons and open epochs."""
    from edge_agent.looking import read_ledger  # noqa: PLC0415
    from edge_agent.show import show_ledger  # noqa: PLC0415

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
    except ConfigError as error:
        say(f"edge-agent: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    except (AgentError, sqlite3.Error, OSError) as error:
        say(f"edge-agent: {error}", err=True)
        sys.exit(EXIT_RETRY)
