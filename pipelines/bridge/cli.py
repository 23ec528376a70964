"""`catchment bridge`: run one bridge until it is told to stop."""

import signal
import threading

import typer

from pipelines.bridge.bridge import run_bridge
from pipelines.clock import SystemClock
from pipelines.config import load_core_config
from pipelines.options import Config


def bridge(config: Config = None) -> None:
    """Carry messages from the broker to durable landing files until SIGTERM or Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_bridge(load_core_config(config), stop, SystemClock())


if __name__ == "__main__":
    typer.run(bridge)
