"""The demo's plant while it runs: broker, core, agents and devices, watched together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from catchment.runtime.clock import Clock
from pipelines.demo.commands import DemoCommands, command_line
from pipelines.demo.processes import ProcessGroup, Program
from pipelines.demo.proxy import Proxy
from pipelines.demo.site import AgentPlan, DemoSite
from pipelines.demo.view import DemoView, Snapshot
from pipelines.demo.watch import Watch
from pipelines.errors import PipelineError

POLL_S = 0.4

log = structlog.get_logger(__name__)


class NotReachedError(PipelineError):
    """What the demo waits for has not come in time; the message tells what, and how things stand."""


@dataclass(slots=True)
class DemoStage:
    """Everything that runs, and the view on it."""

    site: DemoSite
    group: ProcessGroup
    proxy: Proxy
    watch: Watch
    view: DemoView
    clock: Clock
    commands: DemoCommands
    network_is_up: bool = True

    def start_core(self) -> Program:
        """Start bridge, run loop and model server."""
        return self.group.start("core", command_line("catchment", "up", "-c", str(self.site.core_config)))

    def start_agents(self, agents: Sequence[AgentPlan]) -> list[Program]:
        """Start the agents."""
        return [
            self.group.start(agent.device, command_line("edge-agent", "run", "-c", str(self.site.agent_config(agent.device))))
            for agent in agents
        ]

    def start_device(self, name: str, command: Sequence[str]) -> Program:
        """Start a simulated device that is not its agent's own child."""
        return self.group.start(name, command)

    def snapshot(self) -> Snapshot:
        """How things stand; also shown. Makes sure that all still run.

        Raises:
            ProgramFailedError: one has failed.
        """
        self.group.check()
        found = self.watch.snapshot(network_is_up=self.network_is_up)
        self.view.show(found)
        return found

    def pass_time(self, seconds: float) -> None:
        """Watch for so long."""
        until_s = self.clock.monotonic_s() + seconds
        while self.clock.monotonic_s() < until_s:
            self.snapshot()
            self.clock.sleep(POLL_S)

    def wait_for(self, reached: Callable[[Snapshot], bool], what: str, seconds: float) -> Snapshot:
        """Watch until something is so.

        Raises:
            NotReachedError: it is not, after so many seconds.
        """
        until_s = self.clock.monotonic_s() + seconds
        while True:
            found = self.snapshot()
            if reached(found):
                return found
            if self.clock.monotonic_s() > until_s:
                raise NotReachedError(f"{what}: not within {seconds:.0f} s; {found}; the logs are in {self.site.logs}")
            self.clock.sleep(POLL_S)

    def drop_network(self, seconds: float) -> None:
        """Take the network away from the agents for a while."""
        self.proxy.down()
        self.network_is_up = False
        self.view.event(f"the network is down: the agents keep capturing into their spools ({seconds:.0f} s)", "bold red")
        self.pass_time(seconds)
        self.proxy.up()
        self.network_is_up = True
        self.view.event("the network is back: the agents send what they kept", "bold green")


def tallies(folder: Path) -> dict[str, int]:
    """Device program -> how many samples it says it made."""
    return {path.name: int(path.read_text(encoding="ascii")) for path in folder.iterdir() if not path.name.startswith(".")}
