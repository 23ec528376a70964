"""A runner that cannot work as it is configured stops the start, once, with what to do; and nothing holds an end up."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, RetryLaterError
from pipelines.runners.engine import Engine, last_line, remedy
from pipelines.runners.run import demand_workers, opened, run_pipeline
from tests.plant.broker import RunningBroker

ROOT = Path(__file__).resolve().parents[3]
WAIT_S = 60.0


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('ValueError: Unable to parse jar URL "/x.jar"', "--flink_job_server_jar"),
        ("RuntimeError: Unable to fetch remote job server jar at https://x: HTTP Error 404", "--job_endpoint"),
        ("ModuleNotFoundError: No module named 'apache_beam'", "install this release of catchment"),
        ("KeyError: 'beam:env:process:v1'", "--environment_type"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'java'", "Java"),
        ("the scheduler went away", ""),
        ("grpc: Connection reset by peer", ""),
    ],
)
def test_what_no_trying_again_mends_is_distinguished_from_what_may_pass(text: str, hint: str) -> None:
    found = remedy(text)
    assert (hint in found) if hint else found == ""
    error = RuntimeError("job failed")
    error.__cause__ = ValueError(text)
    assert remedy(error) == found


def test_the_line_of_an_error_that_says_what_happened_is_found() -> None:
    assert last_line("Traceback\n  File x\nKeyError: 'a'\n\nWARNING:root:noise\n") == "KeyError: 'a'"
    assert last_line("") == ""


@pytest.mark.parametrize(("options", "value"), [(("--a=1",), "1"), (("--b", "2", "--a", "3"), "3"), (("--a",), ""), ((), "")])
def test_an_option_is_read_in_both_of_its_forms(options: tuple[str, ...], value: str) -> None:
    assert Engine("direct", options).option("--a") == value


def test_a_job_server_that_does_not_answer_is_waited_for_by_starting_again() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RetryLaterError, match="is it running"), opened(Engine("portable", (f"--job_endpoint=localhost:{port}",))):
        pass


def test_runners_that_work_here_are_not_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_a, **_m: pytest.fail("a process was started"))
    demand_workers(Engine("direct"))
    demand_workers(Engine("dask", ("--dask_client_address=tcp://x:1",)))
    demand_workers(Engine("portable", ("--job_endpoint=localhost:1",)), within_s=0)


def test_a_job_server_s_jar_that_is_missing_is_configuration_and_not_tried_again() -> None:
    engine = Engine("flink", ("--flink_master=localhost:1", "--flink_job_server_jar=/nonexistent.jar"))
    with pytest.raises(ConfigError, match=r"--flink_job_server_jar=PATH.*Unable to parse jar"):
        run_pipeline(engine, "run 1", lambda pipeline: __import__("apache_beam").Create([1]).__ror__(pipeline))


@pytest.fixture
def job_server(tmp_path: Path) -> Iterator[Callable[..., tuple[str, ...]]]:
    ports = tmp_path / "port"
    command = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port", "0"]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port_file", str(ports), "--staging_dir", str(tmp_path / "staging")], stdout=log, stderr=log
        )
    while not (ports.exists() and ports.read_text().strip()):
        assert process.poll() is None
    yield lambda *more: (f"--job_endpoint=localhost:{ports.read_text().strip()}", *more)
    process.kill()
    process.wait()


def python_without_beam(folder: Path) -> str:
    """A worker's Python that has nothing installed."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    path.chmod(0o755)
    return str(path)


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


@pytest.mark.slow
def test_workers_that_have_beam_pass_and_those_without_are_a_stop_with_the_remedy(
    job_server: Callable[..., tuple[str, ...]], tmp_path: Path
) -> None:
    demand_workers(Engine("portable", job_server("--environment_type=LOOPBACK")), WAIT_S)
    unknown = job_server("--environment_type=PROCESS", '--environment_config={"command": "/usr/bin/false"}')
    with pytest.raises(ConfigError, match="does not know that environment"):
        demand_workers(Engine("portable", unknown), WAIT_S)
    python = python_without_beam(tmp_path)
    bare = job_server("--environment_type=beam:env:harness_subprocess_python:v1", f"--environment_config={python}")
    with pytest.raises(ConfigError, match="install this release of catchment with the same apache-beam"):
        demand_workers(Engine("portable", bare), 12)


@pytest.mark.slow
def test_a_loop_that_waits_for_workers_ends_on_sigterm_with_all_it_started(
    job_server: Callable[..., tuple[str, ...]], broker: RunningBroker, tmp_path: Path
) -> None:
    python = python_without_beam(tmp_path)
    options = job_server("--environment_type=beam:env:harness_subprocess_python:v1", f"--environment_config={python}")
    config = tmp_path / "core.toml"
    config.write_text(
        f'lake = "lake"\n[broker]\nport = {broker.port}\n[run]\nrunner = "portable"\nbeam_options = {list(options)}\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "run", "-c", str(config)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (started := children.read_text().split()):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == 143
    until_gone([int(pid) for pid in started])
