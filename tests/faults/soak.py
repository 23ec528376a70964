"""Agent, broker, bridge and run loop killed again and again while samples flow; at the end every sample is one row, and right.

The broker is Mosquitto with its defaults: no persistence, so a kill takes its sessions and queues along. Samples go from a
table through the agent's process, the broker, the bridge's and the run loop's process into a lake, and receipts back to the
agent. Bridge and run loop are the command `catchment`, forked from a process that has its imports behind it, so that they
live long enough between two deaths to do something.

    python tests/faults/soak.py --samples 1000000 --kills 500
"""

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.faults.soak_lake import DEVICE, STREAM, commits, look, rows_committed, table_text
from tests.faults.warm_roles import Role, WarmStart
from tests.plant.broker import Broker, free_port

VICTIMS = ("agent", "agent", "broker", "broker", "bridge", "run", "run")
_DRAIN_S = 300.0
_KILL_WITHIN_S = 0.5
_PROGRESS_S = 5.0


@dataclass
class Program:
    """A process that is started, killed and started again."""

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=_environment())

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None


def soak(folder: Path, samples: int, kills: int, seed: int) -> dict[str, Any]:
    """Run it; the figures."""
    chance, lake = random.Random(seed), folder / "lake"
    warm = WarmStart()
    programs = _programs(folder, warm, samples, rate_hz=samples / (0.6 * kills))
    killed: Counter[str] = Counter()
    began = time.monotonic()
    try:
        for program in programs.values():
            program.start()
        for _ in range(kills):
            # Half of them as soon as something got through since the last one, the others wherever it may be.
            before = commits(lake) if chance.random() < 0.5 else -1
            _wait(lambda: commits(lake) > before, _PROGRESS_S)  # noqa: B023 # called before the next turn
            time.sleep(chance.random() * _KILL_WITHIN_S)
            name = chance.choice(VICTIMS)
            programs[name].end()
            killed[name] += 1
            programs[name].start()
        killing_s = time.monotonic() - began
        _wait(lambda: rows_committed(lake) >= samples, _DRAIN_S)
        ledger = _settled_ledger(folder)
        for name in ("agent", "bridge", "run"):
            programs[name].end(signal.SIGTERM)
    finally:
        for program in programs.values():
            program.end()
        warm.close()
    books = ledger["books"][0]
    edge = {name: books[name] for name in ("captured", "settled", "spooled", "dropped")}
    return {
        "samples": samples, "kills": dict(killed), "edge": {**edge, "is_balanced": ledger["is_balanced"]},
        **asdict(look(lake, samples)), "killing_s": round(killing_s), "in_all_s": round(time.monotonic() - began),
    }  # fmt: skip


def is_true(figures: dict[str, Any]) -> bool:
    """Whether nothing was lost, doubled or changed, the books of both ends say so, and no file is left that no row needs."""
    samples = figures["samples"]
    edge = {"captured": samples, "settled": samples, "spooled": 0, "dropped": {}, "is_balanced": True}
    nothing = ("lost", "double", "wrong", "quarantined", "orphans")
    is_whole = figures["rows"] == figures["committed"] == samples and bool(figures["is_balanced"])
    return is_whole and figures["edge"] == edge and all(figures[name] == 0 for name in nothing)


def _programs(folder: Path, warm: WarmStart, samples: int, rate_hz: float) -> dict[str, Broker | Program | Role]:
    port, table = free_port(), folder / "telemetry.csv"
    table.write_text(table_text(samples))
    (folder / "agent.toml").write_text(
        f'device = "{DEVICE}"\nstate_dir = "state"\n[broker]\nport = {port}\n'
        "[uplink]\nresend_after_s = 5.0\nreport_interval_s = 1.0\n"
        f'[[source]]\nkind = "replay"\nstream = "{STREAM}"\nmax_samples = 200\n[source.options]\npath = "{table}"\n'
        f'rate_hz = {rate_hz:.0f}\ntime_column = "t_s"\ntime_unit = "s"\ntime_start = "2024-05-01T00:00:00Z"\n'
    )
    # Half of the run loops settle their items themselves, half by a child of theirs, as their configuration says.
    for worker_pool in range(2):
        (folder / f"core-{worker_pool}.toml").write_text(
            f'lake = "lake"\n[broker]\nport = {port}\n[bridge]\nid = "bridge-0"\nseal_ms = 200\n'
            f"[run]\ninterval_ms = 100\nworker_processes = {worker_pool}\n"
        )
    cores = itertools.cycle(str(folder / f"core-{worker_pool}.toml") for worker_pool in range(2))
    agent = [sys.executable, "-m", "edge_agent", "-c", str(folder / "agent.toml")]
    return {
        "broker": Broker(folder, config=f"listener {port} 127.0.0.1\nallow_anonymous true", port=port),  # the rest as it comes,
        "bridge": Role(warm, lambda: ("bridge", "-c", str(folder / "core-0.toml")), folder / "bridge.log"),
        "run": Role(warm, lambda: ("run", "-c", next(cores)), folder / "run.log"),
        "agent": Program(agent, folder / "agent.log"),
    }


def _settled_ledger(folder: Path) -> dict[str, Any]:
    """The device's books, once its agent has heard of everything."""
    call = "from edge_agent.cli import main; main()"
    command = [sys.executable, "-c", call, "books", "--json", "-c", str(folder / "agent.toml")]
    deadline = time.monotonic() + _DRAIN_S
    while True:
        output = subprocess.run(command, capture_output=True, check=True, env=_environment()).stdout
        ledger: dict[str, Any] = json.loads(output)
        if not ledger["books"][0]["spooled"] or time.monotonic() > deadline:
            return ledger
        time.sleep(1)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def _wait(is_true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=None, help="a folder for all that is written, kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = given.keep or Path(name)
        folder.mkdir(exist_ok=True)
        figures = soak(folder, given.samples, given.kills, given.seed)
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.exit(0 if is_true(figures) else 1)


if __name__ == "__main__":
    main()
