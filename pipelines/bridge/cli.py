"""`catchment bridge`: run one bridge until it is told to stop."""

from pathlib import Path
from typing import Annotated

import typer

from catchment.runtime.output import say
from pipelines.bridge.bridge import run_bridge
from pipelines.clock import SystemClock
from pipelines.config import load_core_config
from pipelines.errors import ConfigError
from pipelines.stopping import stop_on_signals


def bridge(config: Annotated[Path, typer.Option("--config", "-c", help="The core's configuration (TOML).")]) -> None:
    """Carry messages from the broker to durable landing files until SIGTERM or Ctrl-C."""
    try:
        run_bridge(load_core_config(config), stop_on_signals(), SystemClock())
    except ConfigError as error:
        say(f"bridge stopped: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(bridge)
