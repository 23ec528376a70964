"""`catchment bridge`: run one bridge until it is stopped."""

from catchment.runtime.clock import SystemClock
from pipelines.bridge.bridge import run_bridge
from pipelines.commands.options import Config
from pipelines.config import load_core_config
from pipelines.stopping import stop_on_signals


def bridge(config: Config = None) -> None:
    """Carry messages from the broker to durable landing files until SIGTERM or Ctrl-C."""
    run_bridge(load_core_config(config), stop_on_signals(), SystemClock())
