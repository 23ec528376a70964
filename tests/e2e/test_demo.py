"""`catchment demo` as a newcomer runs it: it ends well, and leaves no process behind, also when it is interrupted or killed."""

import importlib.util
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.demo.view import command_line
from pipelines.training.open import open_set

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.timeout(400)]


def started(out: Path, *more: str) -> "subprocess.Popen[bytes]":
    command = command_line("catchment", "demo", "--seconds", "8", "--out", str(out), *more)
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def left_over(out: Path) -> list[str]:
    """Command lines of living processes that name the demo's folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        if str(out) in line and int(folder.name) != os.getpid():
            found.append(line)
    return found


def wait_until_gone(out: Path) -> None:
    for _ in range(200):
        if not left_over(out):
            return
        time.sleep(0.1)
    pytest.fail(f"left behind: {left_over(out)}")


def wait_for_agents(out: Path, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        if list(out.glob("agents/state/*/spool")) and (out / "logs" / "core.log").exists():
            return
        assert process.poll() is None, out.with_suffix(".log").read_text()
        time.sleep(0.1)
    pytest.fail("the demo has not started its agents")


def test_the_demo_ends_well_with_balanced_books_and_predictions_in_the_lake(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = started(out)
    status = process.wait(300)
    log_text = out.with_suffix(".log").read_text()
    assert status == 0, log_text
    assert "Every captured sample is in the lake or accounted for." in log_text
    outcome = json.loads((out / "outcome.json").read_bytes())
    assert outcome["faults"] == []
    assert outcome["predicted_rows"] >= 10
    assert outcome["test_accuracy"] > 0.8
    assert [one["name"] for one in outcome["sets"]] == ["motion", "surface", "scenes", "drive-windows", "tissue"]
    assert all(one["samples"] > 0 for one in outcome["sets"])
    scenes, windows = (Path(one["folder"]) for one in outcome["sets"][2:4])
    assert "its card:" in log_text
    assert "came from <b>vehicle_telemetry</b>" in (scenes / "card.html").read_text()
    assert open_set(windows, "train").array_batch(np.array([0]))["windows"].shape == (1, 40, 4)
    assert "201 megapixels" in log_text
    chips = open_set(Path(outcome["sets"][4]["folder"]), "train")
    assert len(chips) > 100
    assert {sample["slide_mpp"] for sample in chips} == {0.5}
    assert "<h1>microscope-2/" in (out / "slide.html").read_text()
    assert ("PyTorch is not installed" in log_text) == (importlib.util.find_spec("torch") is None)
    wait_until_gone(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_stopped_in_the_middle_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "demo"
    process = started(out)
    wait_for_agents(out, process)
    assert len(left_over(out)) > 4
    process.send_signal(number)
    status = process.wait(60)
    assert status == (-number if number == signal.SIGKILL else 130), out.with_suffix(".log").read_text()
    wait_until_gone(out)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "mine").touch()
    assert started(out).wait(60) == 2
    assert "empty" in out.with_suffix(".log").read_text()
