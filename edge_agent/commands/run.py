"""`edge-agent run` and `version`."""

import os
import sys
from typing import Annotated

import typer

from catchment.runtime.output import say
from edge_agent.commands.options import AGENT, Config


def run(
    config: Config = AGENT,
    until_settled: Annotated[
        bool, typer.Option("--until-settled", help="End when all sources ended and everything is settled.")
    ] = False,
) -> None:
    """Capture and deliver until SIGTERM or Ctrl-C. Logs go to stderr; SIGHUP reads the configuration again."""
    # The process that runs for months carries neither this command line nor its tables: it starts small.
    from edge_agent.config import load_agent_config

    device = load_agent_config(config).device
    arguments = [sys.executable, "-m", "edge_agent", "-c", str(config), "--device", device]
    arguments += ["--until-settled"] if until_settled else []
    # Few malloc arenas: threads of bursts must not keep their peaks permanently.
    environment = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072", **os.environ}
    sys.stdout.flush()
    os.execve(sys.executable, arguments, environment)  # noqa: S606 # our own interpreter and module


def version() -> None:
    """The installed version."""
    from importlib import metadata

    say(metadata.version("catchment"))
