"""The agent as a process: it holds its state folder, hears signals, waits for its spool where it must, and runs."""

import signal
import threading
from collections.abc import Callable

from catchment.runtime.clock import SystemClock
from edge_agent.agent import Agent, agent_version
from edge_agent.config import AgentConfig
from edge_agent.process.ownership import held
from edge_agent.process.standby import Standby, open_spool


def run_agent(config: AgentConfig, reread: Callable[[], AgentConfig], *, until_settled: bool) -> bool:
    """Hold the state folder, run until SIGTERM or SIGINT, stop in order. SIGHUP reads the configuration again.

    A spool that cannot be opened is waited for; with `until_settled` somebody waits for the end, and hears of it at once.

    Raises:
        ConfigError: the configuration asks for what is not there.
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
