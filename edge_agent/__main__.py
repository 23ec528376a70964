"""The agent's process: nothing but what it needs to run. `edge-agent run` checks the configuration, then becomes this.

It holds its state folder, hears signals, waits for its spool where it must, and runs.
"""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TextIO, cast

from edge_agent.startup import load_later

# What libraries load only because it happens to be installed stays out: rich (structlog, for coloured tracebacks) and
# dnspython (paho, for SRV records) are 6 MB that a small device would keep permanently. None counts as not installed.
for _unused in ("rich", "dns"):
    sys.modules.setdefault(_unused, None)  # type: ignore[arg-type]
for _seldom in ("asyncio", "urllib.request"):
    load_later(_seldom)
# From Python 3.12 on, each line in a log asks asyncio for the current task, which would load it.
logging.logAsyncioTasks = False  # type: ignore[attr-defined]  # 3.11 does not know it yet

import structlog  # noqa: E402

from catchment.runtime.clock import SystemClock  # noqa: E402
from catchment.runtime.plain import plain_event, plain_message, plain_tracebacks  # noqa: E402
from edge_agent.agent import Agent, agent_version  # noqa: E402
from edge_agent.commands.exits import EXIT_PARKED, exit_code  # noqa: E402
from edge_agent.config import AgentConfig, load_agent_config  # noqa: E402
from edge_agent.errors import AgentError  # noqa: E402
from edge_agent.process import Standby, held, open_spool  # noqa: E402
from edge_agent.startup import TolerantStderr  # noqa: E402


def main() -> int:
    """Run the agent; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m edge_agent")
    parser.add_argument("-c", "--config", type=Path, required=True)
    parser.add_argument("--until-settled", action="store_true")
    parser.add_argument("--device", default="", help="the certificate's common name, where the caller has read it")
    arguments = parser.parse_args()
    plain_tracebacks()
    try:
        config = load_agent_config(arguments.config, arguments.device)
        # What this process is stays: a certificate that was renewed names the same device, or comes at a new start.
        reread = partial(load_agent_config, arguments.config, config.device)
        _log_to_stderr(config.log_level)
        is_clean = run_agent(config, reread, until_settled=arguments.until_settled)
    except AgentError as error:
        TolerantStderr().write(f"{plain_message(error)}\n")
        return exit_code(error)
    return 0 if is_clean else EXIT_PARKED


def run_agent(config: AgentConfig, reread: Callable[[], AgentConfig], *, until_settled: bool) -> bool:
    """Hold the state folder, run until SIGTERM or SIGINT, stop in order. SIGHUP reads the configuration again.

    Waits for a spool that cannot be opened; with `until_settled`, where the caller waits for the end, it raises at once.

    Raises:
        ConfigError: the configuration names something that does not exist.
        AgentError: another agent holds the state folder, or the spool broke.
    """
    with held(config.state_dir):
        stop, clock = threading.Event(), SystemClock()
        _on_signals(stop.set, lambda: None)
        spool = open_spool(config, clock) if until_settled else Standby(config, agent_version(), clock, stop).open()
        if spool is None:
            return True
        agent = Agent(config, clock, reread, spool)
        _on_signals(agent.stop, agent.reload)
        if stop.is_set():
            agent.stop()
        return agent.run(until_settled=until_settled)


def _on_signals(stop: Callable[[], None], reload: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())
    signal.signal(signal.SIGHUP, lambda *_: reload())


def _log_to_stderr(level: str) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            plain_event,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", TolerantStderr())),
    )


if __name__ == "__main__":
    sys.exit(main())
