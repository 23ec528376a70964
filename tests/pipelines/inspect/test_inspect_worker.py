"""A user's function in its own process: late, greedy, broken or chatty, it costs its sample and nothing else."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from pipelines.errors import InterruptedInspectionError, RefusedError, UninspectableError
from pipelines.inspect.code import MAX_KILLS, UserWorker
from pipelines.inspect.run import inspect_rows
from pipelines.lake.lake import lake_at
from schemas.contract import ColumnType
from schemas.policy import InspectStep
from tests.plant.present import present

CODE = """
import os, time

def length(payload):
    return {"n": len(payload)}

def chatty(payload):
    print("x" * 100000)
    os.write(1, b"y" * 100000)
    return {"n": 1}

def slow(payload):
    if payload == b"slow":
        time.sleep(60)
    return {"n": 2}

def greedy(payload):
    if payload == b"greedy":
        held = bytearray(8 << 30)
    return {"n": 3}

def dies(payload):
    os._exit(7)

def breaks(payload):
    raise ValueError("no " + payload.decode())

def wrong(payload):
    return 5

def sees(payload):
    return {"env": ",".join(sorted(os.environ))}

def with_row(payload, row, factor=1):
    return {"n": row["width"] * factor}

def writes(payload):
    with open(payload.decode(), "w") as file:
        file.write("x" * 10)
    return {}

class Counter:
    def __init__(self, start=0):
        self.n = start
    def __call__(self, payload):
        self.n += 1
        return {"n": self.n}
"""
Start = Callable[..., UserWorker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    path = tmp_path / "code.py"
    path.write_text(CODE)
    made: list[UserWorker] = []

    def make(function: str, max_ms: int = 5_000, **options: Any) -> UserWorker:
        made.append(UserWorker("mine", str(path), function, options, max_ms, 512))
        return made[-1]

    yield make
    for worker in made:
        worker.close()


def test_it_answers_sample_after_sample(start: Start) -> None:
    worker = start("length")
    assert [worker.ask(b"x" * size, {}) for size in (0, 1, 3_000_000)] == [{"n": 0}, {"n": 1}, {"n": 3_000_000}]


def test_a_class_is_made_once_with_its_options(start: Start) -> None:
    worker = start("Counter", start=5)
    assert [worker.ask(b"", {})["n"] for _ in range(3)] == [6, 7, 8]


def test_what_it_prints_does_not_disturb(start: Start) -> None:
    assert start("chatty").ask(b"", {}) == {"n": 1}


def test_an_exception_is_that_sample_s_and_names_itself(start: Start) -> None:
    with pytest.raises(UninspectableError, match="ValueError: no way"):
        start("breaks").ask(b"way", {})


def test_an_answer_that_is_no_dict_is_refused(start: Start) -> None:
    with pytest.raises(UninspectableError, match="dict of columns"):
        start("wrong").ask(b"", {})


def test_a_late_function_is_killed_and_the_next_sample_answered(start: Start) -> None:
    worker = start("slow", max_ms=1_500)
    assert worker.ask(b"", {}) == {"n": 2}
    with pytest.raises(InterruptedInspectionError, match="longer than 1500 ms"):
        worker.ask(b"slow", {})
    worker.max_ms = 20_000
    assert worker.ask(b"", {}) == {"n": 2}
    assert worker.kills == 0


def test_a_greedy_function_gets_no_memory(start: Start) -> None:
    worker = start("greedy")
    with pytest.raises(UninspectableError, match="MemoryError"):
        worker.ask(b"greedy", {})
    assert worker.ask(b"", {}) == {"n": 3}


def test_one_that_always_dies_is_given_up_on(start: Start) -> None:
    worker = start("dies")
    for _ in range(MAX_KILLS):
        with pytest.raises(InterruptedInspectionError, match="died"):
            worker.ask(b"", {})
    with pytest.raises(InterruptedInspectionError, match="suspended"):
        worker.ask(b"", {})


def test_it_sees_no_secret_of_the_core(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATCHMENT_SECRET", "hush")
    seen = start("sees").ask(b"", {})["env"]
    assert "SECRET" not in seen
    assert "OMP_NUM_THREADS" in seen


def test_it_cannot_write_a_byte_to_disk(start: Start, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(UninspectableError, match="File too large"):
        start("writes").ask(str(target).encode(), {})
    assert target.stat().st_size == 0


def test_it_is_given_the_row_where_it_asks_for_it(start: Start) -> None:
    worker = start("with_row", factor=3)
    assert worker.wants_row
    assert worker.ask(None, {"width": 7}) == {"n": 21}


@pytest.mark.parametrize("function", ["nothing", "__name__"])
def test_one_that_does_not_load_is_refused(start: Start, function: str) -> None:
    with pytest.raises(RefusedError, match="does not load"):
        start(function).ask(b"", {})


def test_one_that_ended_between_two_samples_costs_neither(start: Start) -> None:
    worker = start("length")
    assert worker.ask(b"ab", {}) == {"n": 2}
    pid = present(worker.pid)
    os.kill(pid, signal.SIGKILL)  # its end is what is tried
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert worker.ask(b"abc", {}) == {"n": 3}
    assert worker.kills == 0


ORPHAN = """
import sys, threading, time
from pipelines.inspect.code import UserWorker
worker = UserWorker("mine", sys.argv[1], "slow", {}, 600_000, 512)
threading.Thread(target=worker.ask, args=(b"slow", {}), daemon=True).start()
while worker._worker is None or worker._worker.pid is None:
    time.sleep(0.01)
print(worker._worker.pid, flush=True)
time.sleep(600)
"""


def test_one_that_never_returns_does_not_outlive_a_killed_run(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    path.write_text(CODE)
    with subprocess.Popen([sys.executable, "-c", ORPHAN, str(path)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = int(run.stdout.readline())
        time.sleep(0.5)
        run.kill()
    deadline_s = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_a_package_may_bring_one_as_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brought.py").write_text(CODE)
    info = tmp_path / "brought-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[catchment.inspectors]\nbrought-length = brought:length\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    rows = pa.table({"device": ["a"], "epoch": [1], "seq": [0]})
    step = InspectStep("brought-length", columns={"n": ColumnType.INT32})
    assert inspect_rows(lake_at(tmp_path), rows, [step], lambda _place: b"four").column("n").to_pylist() == [4]
