"""A child process that crashes, hangs, leaks or lies costs its caller one request, and outlives nobody."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.worker.limits import MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Closed, Died, OutOfMemory, Refused, TooLate
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec

TARGETS = "tests.runtime.worker_targets"


def _spec(name: str = "obedient", options: bytes = b"", **limits: Any) -> WorkerSpec:
    return WorkerSpec(target=f"{TARGETS}:{name}", options=options, limits=WorkerLimits(**limits))


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess(_spec(memory_bytes=128 * MIB)) as process:
        assert process.start() == Answered(b"")
        yield process


def test_a_child_answers_one_request_after_another_with_its_options() -> None:
    with WorkerProcess(_spec(options=b"o:")) as process:
        process.start()
        assert [process.request(b"echo %d" % index, 10) for index in range(3)] == [
            Answered(b"o:0"), Answered(b"o:1"), Answered(b"o:2")
        ]  # fmt: skip


def test_an_exception_is_an_answer_and_the_child_lives_on(worker: WorkerProcess) -> None:
    pid = worker.pid
    assert worker.request(b"raise why", 10) == Refused("KeyError", "'why'")
    assert worker.request(b"echo x", 10) == Answered(b"x")
    assert worker.pid == pid


@pytest.mark.parametrize(
    ("request_body", "expected"),
    [
        (b"segfault", Died(signal.SIGSEGV, 0)),
        (b"kill 6", Died(signal.SIGABRT, 0)),
        (b"kill 9", Died(signal.SIGKILL, 0)),
        (b"exit 3", Died(0, 3)),
        (b"exit 0", Died(0, 0)),
        (b"note", Died(signal.SIGSEGV, 0, b"second")),
        (b"allocate 400000000", OutOfMemory(128 * MIB)),
        (b"sleep 60", TooLate(0.3)),
        (b"spin", TooLate(0.3)),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_each_end_of_a_child_has_a_name_and_the_next_child_works(
    worker: WorkerProcess, request_body: bytes, expected: object
) -> None:
    pid = worker.pid
    timeout_s = 0.3 if isinstance(expected, TooLate) else 30
    assert worker.request(request_body, timeout_s) == expected
    assert worker.pid is None
    assert not Path(f"/proc/{pid}").exists()
    assert worker.request(b"echo x", 10) is None
    assert worker.start() == Answered(b"")
    assert worker.request(b"echo x", 10) == Answered(b"x")


def test_a_child_that_never_stops_talking_is_too_late(worker: WorkerProcess) -> None:
    assert worker.request(b"chatter", 0.3) == TooLate(0.3, b"still here")


def test_a_leak_ends_at_the_limit_and_not_later(worker: WorkerProcess) -> None:
    kept = 0
    while isinstance(outcome := worker.request(b"leak %d" % MIB, 10), Answered):
        kept += 1
        assert kept < 128
    assert outcome == OutOfMemory(128 * MIB)


@pytest.mark.slow
def test_processor_time_of_a_request_is_limited_but_not_that_of_all_requests_together() -> None:
    with WorkerProcess(_spec(cpu_s=1)) as process:
        process.start()
        assert process.request(b"echo", 10) == Answered(b"")
        assert process.request(b"spin", 60) == TooLate(1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("failing", Refused("ValueError", "no such thing to load")),
        ("hungry", OutOfMemory(128 * MIB)),
        ("hanging", TooLate(3)),
        ("absent", Refused("AttributeError", f"module '{TARGETS}' has no attribute 'absent'")),
    ],
)
def test_a_child_that_does_not_start_says_why(name: str, expected: object) -> None:
    with WorkerProcess(_spec(name, memory_bytes=128 * MIB, start_timeout_s=3)) as process:
        assert process.start() == expected
        assert process.pid is None


def test_a_child_sees_no_secret_of_its_parent_s_environment(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.setenv("PYTHONSTARTUP", "/x")
    with WorkerProcess(_spec()) as process:
        process.start()
        outcome = process.request(b"environment", 10)
    assert isinstance(outcome, Answered)
    names = outcome.body.decode().split("\n")
    assert not {"AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "PYTHONSTARTUP", "HOME", "PATH"} & {*names}


def test_a_child_has_two_pipes_and_nothing_else_that_is_open_in_its_parent(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with WorkerProcess(_spec()) as first, WorkerProcess(_spec()) as second:
            first.start()
            second.start()
            outcome = second.request(b"descriptors", 10)
    assert isinstance(outcome, Answered)
    opened = [name for name in outcome.body.decode().split("\n") if not name.startswith("/proc/")]
    assert sorted(name.partition(":")[0] for name in opened) == ["/dev/null"] * 3 + ["pipe"] * 2


def test_a_child_writes_no_file_and_prints_into_nobody_s_frames(worker: WorkerProcess, tmp_path: Path) -> None:
    assert worker.request(b"write " + bytes(tmp_path / "x"), 10) == Refused("OSError", "[Errno 27] File too large")
    assert worker.request(b"print", 10) == Answered(b"printed:")


def test_a_child_is_nicer_than_its_parent(worker: WorkerProcess) -> None:
    assert worker.request(b"nice", 10) == Answered(str(min(19, os.nice(0) + 5)).encode())


def test_large_requests_and_answers_pass_and_larger_ones_are_refused() -> None:
    with WorkerProcess(_spec(max_request_bytes=8 * MIB, max_answer_bytes=8 * MIB)) as process:
        process.start()
        body = b"size " + b"x" * (8 * MIB - 5)
        assert process.request(body, 30) == Answered(str(8 * MIB - 5).encode())
        assert process.request(b"large %d" % (8 * MIB), 30) == Answered(b"x" * 8 * MIB)
        assert process.request(body + b"x", 30) == Refused(
            "RequestTooLarge", f"a request of {8 * MIB + 1} bytes is above {8 * MIB}"
        )
        assert isinstance(process.request(b"large %d" % (8 * MIB + 1), 30), Died)


@pytest.mark.parametrize("frame", ["61ffffffff", "6effffffff", "7a00000000", "72", "00" * 64, "6500000003ff"])
def test_a_child_that_breaks_the_protocol_is_killed(worker: WorkerProcess, frame: str) -> None:
    assert isinstance(worker.request(b"raw " + frame.encode(), 2), Died | TooLate)
    assert worker.pid is None


def test_a_request_that_would_wait_for_another_too_long_is_not_made(worker: WorkerProcess) -> None:
    thread = threading.Thread(target=worker.request, args=(b"sleep 60", 60))
    thread.start()
    while not worker.is_busy:
        time.sleep(0.01)
    assert worker.request(b"echo x", 10, max_wait_s=0.05) is None
    worker.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_process_that_is_closed_in_the_middle_of_a_request_says_so(worker: WorkerProcess) -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(worker.request(b"sleep 60", 60)))
    thread.start()
    while not worker.is_busy:
        time.sleep(0.01)
    worker.close()
    thread.join(10)
    assert found == [Closed()]


def test_a_child_outlives_the_thread_that_started_it() -> None:
    with WorkerProcess(_spec()) as process:
        thread = threading.Thread(target=process.start)
        thread.start()
        thread.join()
        time.sleep(0.2)
        assert process.request(b"echo x", 10) == Answered(b"x")


def test_a_child_ignores_signals_that_are_for_the_whole_group(worker: WorkerProcess) -> None:
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(worker.pid, number)
    assert worker.request(b"echo x", 10) == Answered(b"x")


_PARENT = f"""
import sys, threading
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
process = WorkerProcess(WorkerSpec(target="{TARGETS}:obedient"))
process.start()
print(process.pid, flush=True)
process.request(b"spin", 600)
"""


def test_a_parent_that_is_killed_leaves_no_child_even_one_that_never_reads(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 30
    while _is_running(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_notes_prolong_the_time_of_a_request_that_asks_for_it(worker: WorkerProcess) -> None:
    assert worker.request(b"notes 20", 2, notes_prolong=True) == Answered(b"done")
    assert worker.request(b"notes 20", 2) == TooLate(2, b"still here")


def test_a_child_that_is_given_time_ends_by_itself(tmp_path: Path) -> None:
    for name, grace_s in (("killed", 0.0), ("gone", 60.0)):
        process = WorkerProcess(_spec("parting", bytes(tmp_path / name)))
        process.start()
        process.close(grace_s)
    assert [path.name for path in tmp_path.iterdir()] == ["gone"]


def test_a_trusted_child_has_its_parent_s_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    spec = WorkerSpec(target=f"{TARGETS}:obedient", environment={"EXTRA": "1"}, is_trusted=True)
    with WorkerProcess(spec) as process:
        process.start()
        outcome = process.request(b"environment", 10)
    assert isinstance(outcome, Answered)
    assert {"AWS_SECRET_ACCESS_KEY", "EXTRA", "PATH"} <= {*outcome.body.decode().split("\n")}


def test_nonsense_limits_are_refused_at_birth() -> None:
    for wrong in ({"memory_bytes": -1}, {"start_timeout_s": 0}, {"max_answer_bytes": 0}, {"open_files": 0}):
        with pytest.raises(ValueError, match="must"):
            WorkerLimits(**wrong)
    with pytest.raises(ValueError, match="module:factory"):
        WorkerSpec(target="nothing")
