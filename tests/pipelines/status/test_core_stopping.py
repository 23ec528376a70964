"""SIGTERM ends a process of the core whatever it is doing; and one that does not start says why where people look."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from signal import Signals
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from pipelines.commands.supervisor import Child, stop_all
from pipelines.errors import ConfigError
from pipelines.heartbeat import Heartbeats, ProcessHealth, read_heartbeats, starting
from pipelines.lake.lake import lake_at

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 60.0
# Within a library that never comes back to the interpreter, with a child that ends by nothing but SIGKILL.
STUCK = """
import hashlib, subprocess, sys
from pipelines.stopping import stop_on_signals
stop = stop_on_signals(0.3)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"])
print(child.pid, flush=True)
hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one whose parent has not heard of its end yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def until_gone(pids: list[int]) -> None:
    """Wait until none of these runs: a kill is carried out a moment later."""
    deadline_s = time.monotonic() + WAIT_S
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline_s, "they go on"
        time.sleep(0.02)


def start(program: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stuck_in_a_library_ends_with_its_children(number: Signals) -> None:
    process = start(STUCK)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(number)
    output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143
    assert b"stop_forced" in output
    until_gone([child])


def test_a_process_that_ends_in_order_is_not_forced() -> None:
    process = start(
        "from pipelines.stopping import stop_on_signals\nstop = stop_on_signals(30)\nprint(1, flush=True)\nstop.wait()"
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=WAIT_S) == (b"", b"")
    assert process.returncode == 0


def test_children_that_do_not_end_are_killed_in_time_and_the_others_end_in_order() -> None:
    ready = "import signal, sys, time; signal.signal(15, {}); print(1, flush=True); time.sleep(1000)"
    deaf, good = ready.format("signal.SIG_IGN"), ready.format("lambda *_: sys.exit(0)")
    children = [Child(name, [sys.executable, "-c", program]) for name, program in (("a", good), ("b", deaf), ("c", good))]
    for child in children:
        child.process = subprocess.Popen(child.command, stdout=subprocess.PIPE)
        assert child.process.stdout is not None
        child.process.stdout.readline()
    processes = [child.process for child in children]
    stop_all(children, next_after_s=0.2, within_s=1.0)
    assert [process.poll() for process in processes if process] == [0, -signal.SIGKILL, 0]
    for process in processes:
        assert process is not None
        assert process.stdout is not None
        process.stdout.close()


def catchment(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-m", "pipelines", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=WAIT_S)


@pytest.mark.slow
def test_a_core_whose_own_contract_is_broken_at_its_first_start_says_so_in_its_status(tmp_path: Path) -> None:
    contracts = tmp_path / "contracts"
    contracts.mkdir()
    (contracts / "room.odcs.yaml").write_text("apiVersion: v3.0.2\nkind: DataContract\nname: [broken\n")
    config = tmp_path / "core.toml"
    config.write_text('lake = "lake"\ncontracts = "contracts"\n[run]\nworker_processes = 0\n')
    done = catchment("run", "-c", str(config))
    assert done.returncode == 2
    assert "room.odcs.yaml" in done.stderr
    status = catchment("status", "--json", "-c", str(config))
    assert status.returncode == 1
    alarms: list[str] = json.loads(status.stdout)["alarms"]
    assert any("run loop: does not start" in alarm and "room.odcs.yaml" in alarm for alarm in alarms), alarms


@pytest.mark.parametrize("role", ["bridge", "models"])
def test_other_roles_that_do_not_start_say_so_too(role: str, tmp_path: Path) -> None:
    config = tmp_path / "core.toml"
    config.write_text('lake = "lake"\n[broker.tls]\nca = "no"\ncert = "no"\nkey = "no"\n')
    assert catchment(*({"bridge": ("bridge",), "models": ("model", "serve")}[role]), "-c", str(config)).returncode == 2
    (heartbeat,) = [one for one in read_heartbeats(lake_at(tmp_path / "lake")) if one.role == role]
    assert not heartbeat.is_ready
    assert "does not start: broker.tls" in heartbeat.trouble


def test_a_second_process_that_may_not_start_leaves_the_word_of_the_one_at_work(tmp_path: Path) -> None:
    clock = SystemClock()
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            with Heartbeats(lake_at(tmp_path), "run", "loop", clock, lambda: ProcessHealth(is_ready=True)):
                pass
            path = tmp_path / "status/run-loop.json"
            heartbeat: dict[str, Any] = json.loads(path.read_text())
            path.write_text(json.dumps({**heartbeat, "pid": other.pid, "trouble": "", "is_ready": True}))
            with pytest.raises(ConfigError), starting(tmp_path, "run", "loop", clock):
                raise ConfigError("no")
            assert read_heartbeats(lake_at(tmp_path))[0].is_ready
        finally:
            other.kill()
    with pytest.raises(ConfigError), starting(tmp_path, "run", "loop", clock):
        raise ConfigError("no")
    assert read_heartbeats(lake_at(tmp_path))[0].trouble == "does not start: no"
