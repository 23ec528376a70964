"""`catchment bridge`: run one bridge until it is told to stop."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from catchment.runtime.output import say
from pipelines.bridge.bridge import run_bridge
from pipelines.clock import SystemClock
from pipelines.config import load_core_config
from pipelines.errors import ConfigError


def bridge(config: Annotated[Path, typer.Option("--config", "-c", help="The core's configuration (TOML).")]) -> None:
    """Carry messages from the broker to durable landing files until SIGTERM or Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run_bridge(load_core_config(config), stop, SystemClock())
    except ConfigError as error:
        say(f"bridge stopped: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(bridge)
