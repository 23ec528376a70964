"""No process of the core leaves anything in the temporary folder, however it ends, nor for long in the lake."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.errors import RefusedError, RetryLaterError
from pipelines.lake.commit import committed_run
from pipelines.lake.lake import lake_at
from pipelines.lake.workplace import SCRATCH_FOLDER, abandoned, scratch
from pipelines.runners.engine import Engine
from pipelines.runners.run import run_pipeline
from tests.plant.broker import RunningBroker
from tests.plant.core import Core, MakeEnvelope

DEADLINE_S = 170.0


@contextmanager
def looping(core: Core, config: Path, temporary: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-W", "ignore", "-m", "pipelines", "run", "-c", str(config), *more]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with (core.root.parent / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(core: Core, run: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + DEADLINE_S
    while committed_run(lake_at(core.root), "commits") < run:
        assert process.poll() is None, (core.root.parent / "log").read_text()[-3_000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def place(core: Core, broker: RunningBroker, tmp_path: Path) -> tuple[Path, Path]:
    config, temporary = tmp_path / "core.toml", tmp_path / "temporary"
    config.write_text(f'lake = "lake"\n[broker]\nport = {broker.port}\n[run]\nworker_processes = 1\ninterval_ms = 20\n')
    temporary.mkdir()
    return config, temporary


def live_and_die(core: Core, envelope: MakeEnvelope, place: tuple[Path, Path], *engine: str) -> None:
    """Killed, started again, five runs, stopped."""
    config, temporary = place
    with looping(core, config, temporary, *engine) as process:
        core.landing.seal([envelope(0, 10)])
        wait_for(core, 1, process)
        process.kill()
        process.wait()
    assert left(core.root / SCRATCH_FOLDER) != []
    with looping(core, config, temporary, *engine) as process:
        for run in range(2, 7):
            core.landing.seal([envelope(run * 10, 10)])
            wait_for(core, run, process)
        end(process)
    assert left(temporary) == []
    assert left(core.root / SCRATCH_FOLDER) == []


@pytest.mark.broker
@pytest.mark.slow
def test_loops_that_are_killed_and_stopped_leave_no_temporary_file(
    core: Core, envelope: MakeEnvelope, place: tuple[Path, Path]
) -> None:
    live_and_die(core, envelope, place)


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not os.environ.get("CATCHMENT_THOROUGH"), reason="starts two Dask clusters; CATCHMENT_THOROUGH=1 does")
def test_loops_with_dask_workers_leave_no_temporary_file_either(
    core: Core, envelope: MakeEnvelope, place: tuple[Path, Path]
) -> None:
    live_and_die(core, envelope, place, "--runner", "dask", "--workers", "1")


def test_what_a_killed_process_left_goes_with_the_next_start_and_what_a_live_one_uses_stays(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, tempfile; from pathlib import Path; from pipelines.lake.workplace import scratch\n"
        "with scratch(Path(sys.argv[1]), 'run'):\n"
        "    tempfile.mkdtemp(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (dead,) = (tmp_path / SCRATCH_FOLDER).iterdir()
    before = tempfile.gettempdir(), os.environ.get("TMPDIR")
    with scratch(tmp_path, "run") as folder:
        assert not dead.exists()
        assert Path(tempfile.mkdtemp()).parent == folder == Path(os.environ["TMPDIR"])
        assert list(abandoned(tmp_path)) == []
    assert not (tmp_path / SCRATCH_FOLDER).exists()
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == before


@pytest.mark.parametrize("fault", [RefusedError("not this graph"), ValueError("no graph")])
def test_a_pipeline_that_is_never_run_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def build(_pipeline: object) -> None:
        assert left(tmp_path)
        raise fault

    with pytest.raises((RefusedError, RetryLaterError)):
        run_pipeline(Engine(), "probe", build)
    assert left(tmp_path) == []
