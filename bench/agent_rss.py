"""How much memory the real agent takes: idle, capturing, with a backlog while the broker is away, and draining it.

python bench/agent_rss.py [--samples 200000] [--picture-mb 400]
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.plant.broker import Broker, free_port

TARGET_MB = 40
TARGET_GROWTH_MB = 10
AGENT = [sys.executable, "-c", "from edge_agent.cli import main; main()"]


def rss_mb(pid: int) -> tuple[float, float]:
    """Resident memory now, and the most it ever was."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def say(what: str, figure: float, target: float) -> None:
    verdict = "within" if figure <= target else "ABOVE"
    print(f"{what:<44} {figure:8.1f} MB   {verdict} target {target} MB")


@contextmanager
def agent(folder: Path, name: str, port: int, sources: str) -> Iterator[subprocess.Popen[bytes]]:
    config = folder / f"{name}.toml"
    config.write_text(
        f'device = "{name}"\nstate_dir = "state-{name}"\n[broker]\nport = {port}\n[spool]\nmax_bytes = 17179869184\n'
        f"[uplink]\nresend_after_s = 3600.0\n{sources}"
    )
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([*AGENT, "run", "-c", str(config)], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.returncode not in (0, -signal.SIGTERM):
        print((folder / f"{name}.log").read_text(errors="replace")[-2_000:])


def broker(folder: Path, port: int) -> Broker:
    return Broker(folder, config=f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_bytes 0", port=port)


def until_quiet(size: Callable[[], int], seconds: float = 300.0) -> None:
    """Wait until something has stopped growing."""
    last, since, began = -1, time.monotonic(), time.monotonic()
    while time.monotonic() - began < seconds:
        now = size()
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > 3:
            return
        time.sleep(0.2)


def tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure_backlog(folder: Path, name: str, port: int, sources: str, idle_mb: float) -> None:
    state = folder / f"state-{name}"
    with agent(folder, name, port, sources) as process:
        until_quiet(lambda: tree_bytes(state))
        now, peak = rss_mb(process.pid)
    print(f"{name}: backlog of {tree_bytes(state) / 1e6:,.0f} MB on disk, broker away")
    say("  RSS with the backlog", now, TARGET_MB + TARGET_GROWTH_MB)
    say("  RSS at its peak while capturing", peak, TARGET_MB + TARGET_GROWTH_MB)
    with broker(folder, port), agent(folder, name, port, sources) as process:
        time.sleep(6)
        now, peak = rss_mb(process.pid)
    say("  RSS 6 s after the broker came back", now, TARGET_MB + TARGET_GROWTH_MB)
    say("  growth over idle", now - idle_mb, TARGET_GROWTH_MB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--picture-mb", type=int, default=400)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agent-rss-") as name:
        folder, port = Path(name), free_port()
        with broker(folder, port), agent(folder, "idle", port, "") as process:
            time.sleep(5)
            idle_mb, _ = rss_mb(process.pid)
        say("idle, connected", idle_mb, TARGET_MB)

        table = folder / "telemetry.csv"
        rows = "\n".join(f"{index},{index / 100:.2f},{index % 40}.5,1.25" for index in range(given.samples))
        table.write_text(f"frame,t_s,speed_mps,steering_deg\n{rows}\n")
        measure_backlog(folder, "telemetry", port, (
            f'[[source]]\nkind = "replay"\nstream = "vehicle_telemetry"\n[source.options]\n'
            f'path = "{table}"\ntime_column = "t_s"\n'
        ), idle_mb)  # fmt: skip

        pictures = folder / "pictures"
        pictures.mkdir()
        head = bytes.fromhex("ffd8ffe000104a46494600010100000100010000ffc0001108009600c803012200021101031101")
        for index in range(given.picture_mb * 5):
            (pictures / f"{index:06d}.jpg").write_bytes(head + os.urandom(200_000))
        measure_backlog(folder, "pictures", port, (
            f'[[source]]\nkind = "directory"\nstream = "camera_frame"\n[source.options]\npath = "{pictures}"\nsettle_ms = 100\n'
        ), idle_mb)  # fmt: skip


if __name__ == "__main__":
    main()
