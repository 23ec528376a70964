"""The core and agents as the real programs, in their own process groups."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable

from pipelines.demo.site import to_toml
from tests.plant.broker import RunningBroker

EDGE = [sys.executable, "-c", "from edge_agent.cli import main; main()"]
CORE = [sys.executable, "-c", "from pipelines.cli import main; main()"]


def eventually(condition: Callable[[], Any], what: str, seconds: float = 90.0) -> Any:
    """What the condition gives once it is true; fails, naming what was awaited, when it never is."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"{what}: not within {seconds:.0f} s")


@dataclass
class Plant:
    """One core, some agents, one lake."""

    folder: Path
    broker: RunningBroker
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    eventually = staticmethod(eventually)

    @property
    def lake(self) -> Path:
        """The lake root."""
        return self.folder / "lake"

    @property
    def core_config(self) -> Path:
        """The core's configuration."""
        return self.folder / "core.toml"

    def write_core(self, more: str = "") -> None:
        """Write the core's configuration."""
        self.core_config.write_text(
            f'lake = "lake"\nmodels = "models"\n[broker]\nhost = "{self.broker.host}"\nport = {self.broker.port}\n'
            f"[bridge]\nseal_ms = 200\nlinger_ms = 10\n{more}"
        )

    def write_agent(self, device: str, sources: list[dict[str, Any]], more: str = "") -> Path:
        """Write an agent's configuration: sources as {kind, stream, options}."""
        path = self.folder / f"{device}.toml"
        lines = [
            f'device = "{device}"\nstate_dir = "state/{device}"',
            f'[broker]\nhost = "{self.broker.host}"\nport = {self.broker.port}',
            "[uplink]\nreport_interval_s = 0.5\nresend_after_s = 3.0\npart_bytes = 262144",
            more,
        ]
        path.write_text("\n".join([*lines, to_toml({"source": sources})]))
        return path

    def start(self, name: str, command: list[str]) -> None:
        """Start a program in a process group of its own."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start_core(self) -> None:
        """Start bridge, run loop and model server."""
        self.start("core", [*CORE, "up", "-c", str(self.core_config)])

    def start_agent(self, device: str, *, until_settled: bool = True) -> None:
        """Start an agent."""
        more = ["--until-settled"] if until_settled else []
        self.start(device, [*EDGE, "run", "-c", str(self.folder / f"{device}.toml"), *more])

    def kill(self, name: str) -> None:
        """SIGKILL a program and all that it started."""
        process = self.running.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def ended_well(self, name: str, seconds: float = 120.0) -> None:
        """Wait until a program has ended by itself; it must say 0."""
        process = self.running[name]
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} has not ended after {seconds:.0f} s; core books: {self.core_books()}\n{self.tail(name)}")
        assert status == 0, self.tail(name)
        del self.running[name]

    def tail(self, name: str) -> str:
        """The end of a program's log."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-3_000:]

    def run(self, command: list[str]) -> str:
        """Run a command to its end; its standard output."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command[3:]} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def agent_books(self, device: str) -> Any:
        """`edge-agent books --json`."""
        return json.loads(self.run([*EDGE, "books", "-c", str(self.folder / f"{device}.toml"), "--json"]))

    def core_books(self) -> Any:
        """`catchment books --json`."""
        return json.loads(self.run([*CORE, "books", "-c", str(self.core_config), "--json"]))

    def core(self, *arguments: str) -> str:
        """Run a command of the core on this plant's configuration."""
        return self.run([*CORE, *arguments, "-c", str(self.core_config)])

    def count(self, table: str) -> int:
        """Rows of a Delta table of the lake, 0 if there is none yet."""
        if not (self.lake / table / "_delta_log").is_dir():
            return 0
        actions = DeltaTable(self.lake / table).get_add_actions(flatten=True)
        return sum(actions.column("num_records").to_pylist()) if actions.num_rows else 0

    def rows(self, table: str) -> pl.DataFrame:
        """A Delta table of the lake; empty if there is none yet."""
        if not (self.lake / table / "_delta_log").is_dir():
            return pl.DataFrame()
        return pl.read_delta(str(self.lake / table))

    def payload(self, row: dict[str, Any]) -> bytes:
        """A row's payload, by offset and length in the file that it names: no code of ours."""
        with (self.lake / row["payload_shard"]).open("rb") as file:
            file.seek(row["payload_offset"])
            return bytes(file.read(row["payload_length"]))
