"""On a device that gives agent and model 256 MB together, a model that wants more costs no frame and no restart."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.rollout.repository import PublishedModel
from pipelines.rollout.server import answer
from tests.fakes import bad_models
from tests.fakes import model_repository as fake

MIB = 1024 * 1024
LIMIT_BYTES = 256 * MIB
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Little:
    """A process with models in it, in 256 MB, and the core's answers to what it asks.

    Args:
        core: publishes models.
        state: the device's folder.
        cgroup: that holds it to its memory; None: a thread that looks, and kills.
        max_ms: for one picture.
        max_memory_mib: the model's own limit.
        kills_agent: whether the thread kills the agent, not the largest process.
        target: what the models' processes run; empty: as ever.
        probation_s: of each version.

    Attributes:
        killed: what the thread killed.
    """

    def __init__(
        self,
        core: "fake.Core",
        state: Path,
        cgroup: Path | None = None,
        max_ms: int = 2_000,
        *,
        max_memory_mib: int = 192,
        kills_agent: bool = False,
        target: str = "",
        probation_s: float = 0.0,
    ) -> None:
        self.killed: list[int] = []
        self._kills_agent = kills_agent
        script = Path(__file__).parents[2] / "fakes" / "model_watch.py"
        picture = base64.b64encode(fake.picture(250)).decode()
        # By a shell that enters first: what a process has before it moves is not counted.
        enter = f"echo $$ > {cgroup}/cgroup.procs && " if cgroup is not None else ""
        self._core = core
        given = (core.root, state, str(max_ms), picture, str(max_memory_mib), target, str(probation_s))
        self.process = subprocess.Popen(
            ["sh", "-c", f'{enter}exec "$0" "$@"', sys.executable, script, *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seen: list[dict[str, Any]] = []
        threads = [self._listen, *([] if cgroup is not None else [self._watch])]
        self._threads = [threading.Thread(target=target, daemon=True) for target in threads]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            message = json.loads(line)
            if "ask" in message:
                correlation, body = message["ask"]
                found = answer(self._core.folder, body.encode())
                self.say(piece=[correlation, found.user_properties, base64.b64encode(found.body).decode()])
            else:
                self.seen.append(message)

    def _watch(self) -> None:
        """Where there is no cgroup: kill whoever is largest, as the kernel would, once all together take too much."""
        while self.process.poll() is None:
            sizes = {pid: _resident(pid) for pid in _family(self.process.pid)}
            if sum(sizes.values()) > LIMIT_BYTES:
                victim = self.process.pid if self._kills_agent else max(sizes, key=lambda pid: sizes[pid])
                if victim not in self.killed:
                    self.killed.append(victim)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            time.sleep(0.01)

    def say(self, **message: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def want(self, model: PublishedModel) -> None:
        self.say(want=[model.spec.version, model.target])

    def first_unless_killed(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
        """As `until`; None where the agent was killed before."""
        try:
            return self.until(holds)
        except AssertionError:
            if not self.killed:
                raise
        for thread in self._threads:
            thread.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        return None

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first figures for which something holds."""
        deadline, at = time.monotonic() + 120, len(self.seen)
        while time.monotonic() < deadline and self.process.poll() is None:
            while at < len(self.seen):
                at += 1
                if holds(self.seen[at - 1]):
                    return self.seen[at - 1]
            time.sleep(0.05)
        raise AssertionError(f"not within 120 s; exit code {self.process.poll()}; last: {self.seen[-1:]}")

    def close(self) -> dict[str, Any]:
        self.say(stop=True)
        assert self.process.stdin is not None
        self.process.wait(30)
        for thread in self._threads:
            thread.join(10)
        self.process.stdin.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.seen[-1]


def _family(pid: int) -> set[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError:
        return {pid}
    return {pid, *map(int, children)}


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):
        return 0


@pytest.fixture
def cgroup() -> Iterator[Path | None]:
    """A cgroup of 256 MB; None where this user may not make one."""
    name = f"catchment-test-{os.getpid()}"
    for folder, limit in (
        (Path("/sys/fs/cgroup/memory") / name, "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup") / name, "memory.max"),
    ):
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(LIMIT_BYTES))
        except OSError:
            folder.rmdir()
            continue
        yield folder
        for _ in range(100):
            try:
                folder.rmdir()
            except OSError:
                time.sleep(0.05)
            else:
                break
        return
    yield None


def test_an_agent_with_a_running_model_has_loaded_nothing_that_checks_or_runs_it(core: "fake.Core", tmp_path: Path) -> None:
    little = Little(core, tmp_path / "state")
    little.want(core.publish())
    running = little.until(lambda figures: figures.get("version") == 1 and figures["by_version"].get("1", 0) > 10)
    little.close()
    assert running["loaded"] == []
    assert running["rss"] < 50 * MIB, "the goal is 40 MB on a device; what a busy machine adds is allowed for"
    assert running["waiting"] <= 256, "a queue has an end"


@pytest.mark.slow
@pytest.mark.parametrize("harm", [bad_models.hungry_model, bad_models.endless_model, lambda: bad_models.slow_model(10)],
                         ids=["takes 400 MB", "never ends", "takes 10 s a frame"])  # fmt: skip
def test_a_harmful_model_costs_no_frame_no_restart_and_not_the_good_model(
    core: "fake.Core", tmp_path: Path, cgroup: Path | None, harm: Callable[[], bytes]
) -> None:
    little = Little(core, tmp_path / "state", cgroup, max_ms=2_000)
    little.want(core.publish())
    before = little.until(lambda figures: figures.get("version") == 1 and figures["by_version"].get("1", 0) > 50)
    little.want(core.publish(harm(), golden=()))
    refused = little.until(lambda figures: figures.get("refused") == [2])
    after = little.until(lambda figures: figures["by_version"]["1"] > refused["by_version"]["1"] + 50)
    last = little.close()
    assert last["frames"] == last["returned"]
    assert after["pid"] == before["pid"]
    assert (after["version"], set(after["by_version"])) == (1, {"None", "1"})
    assert refused["by_version"]["1"] > before["by_version"]["1"] + 20  # the good one answered meanwhile
    assert max(figures.get("rss", 0) for figures in little.seen) < 60 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["open_leaking", "open_crashing"], ids=["leaks 1 MB a frame", "SIGSEGV at each frame"])
def test_a_model_that_harms_while_it_answers_is_given_up_after_two_deaths(
    core: "fake.Core", tmp_path: Path, cgroup: Path | None, harm: str
) -> None:
    little = Little(core, tmp_path / "state", cgroup, target=f"tests.fakes.harmful_process:{harm}", probation_s=15)
    little.want(core.publish())
    before = little.until(lambda figures: figures.get("version") == 1 and not figures["on_probation"])
    little.want(core.publish(fake.tiny_model(0.1)))
    refused = little.until(lambda figures: figures.get("refused") == [2])
    after = little.until(lambda figures: figures["by_version"]["1"] > refused["by_version"]["1"] + 50)
    last = little.close()
    assert after["pid"] == before["pid"]
    assert last["frames"] == last["returned"]
    assert last["counts"]["deaths"] == 2
    assert (after["version"], after["state"]) == (1, "rolled_back")


@pytest.mark.slow
def test_a_proven_model_that_leaks_is_started_again_at_its_limit_and_no_frame_is_lost(
    core: "fake.Core", tmp_path: Path, cgroup: Path | None
) -> None:
    little = Little(core, tmp_path / "state", cgroup, target="tests.fakes.harmful_process:open_leaking")
    core.publish()
    little.want(core.publish(fake.tiny_model(0.1)))
    # With no version before it there is nothing to go back to: it goes on, and is started again each time.
    little.until(lambda figures: figures.get("counts", {}).get("deaths", 0) >= 1 and figures["state"] == "active")
    last = little.close()
    assert last["frames"] == last["returned"]
    assert last["by_version"]["2"] > 50


@pytest.mark.slow
def test_a_model_beyond_the_devices_memory_is_killed_twice_and_the_good_one_stays(core: "fake.Core", tmp_path: Path) -> None:
    little = Little(core, tmp_path / "state", max_memory_mib=1_024)  # its own limit does not help here
    little.want(core.publish())
    before = little.until(lambda figures: figures.get("version") == 1 and figures["by_version"].get("1", 0) > 50)
    little.want(core.publish(bad_models.hoarding_model(), golden=()))
    refused = little.until(lambda figures: figures.get("refused") == [2])
    after = little.until(lambda figures: figures["by_version"]["1"] > refused["by_version"]["1"] + 50)
    last = little.close()
    assert len(little.killed) == 2
    assert after["pid"] == before["pid"]
    assert last["frames"] == last["returned"]
    assert (after["version"], set(after["by_version"])) == (1, {"None", "1"})


@pytest.mark.slow
def test_an_agent_that_is_killed_for_a_models_memory_tries_it_twice_and_keeps_the_good_one(
    core: "fake.Core", tmp_path: Path
) -> None:
    first = Little(core, tmp_path / "state", max_memory_mib=1_024, kills_agent=True)
    first.want(core.publish())
    first.until(lambda figures: figures.get("version") == 1)
    first.close()
    bad, kills = core.publish(bad_models.hoarding_model(), golden=()), 0
    for _ in range(5):
        little = Little(core, tmp_path / "state", max_memory_mib=1_024, kills_agent=True)
        little.want(bad)
        refused = little.first_unless_killed(lambda figures: figures.get("refused") == [2])
        if refused is not None:
            break
        kills += len(little.killed)
    assert refused is not None
    assert kills == 2
    after = little.until(lambda figures: figures["by_version"].get("1", 0) > 50)
    assert (after["version"], after["state"], set(after["by_version"]) - {"None"}) == (1, "refused", {"1"})
    little.close()
