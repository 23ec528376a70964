"""Ask for deaths of the core at its durable steps (`tests.faults.mortal`), and count them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from tests.faults.forks import NO_POOLS
from tests.faults.mortal import Answer, Request

ROOT = Path(__file__).resolve().parents[2]
# Every step at its beginning; if thorough, at its end, too. What lies on disk then differs only where a step is followed by
# writes that are no step of their own.
IS_THOROUGH = bool(os.environ.get("CATCHMENT_THOROUGH"))


class Deaths:
    """One process that forks the dying; started at the first death."""

    def __init__(self) -> None:
        self.kills = 0
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """No more deaths."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def steps(self, work: str, lake: Path, contracts: Path | None = None) -> list[str]:
        """Let the work be done to its end on this lake; the names of its durable steps."""
        answer = self._ask(Request(work, str(lake), str(contracts or ""), 0))
        assert (answer.signal, answer.code) == (0, 0), answer
        return answer.names

    def kill(self, work: str, lake: Path, step: int, contracts: Path | None = None) -> str:
        """Let the work be killed at its k-th step; the step's name."""
        answer = self._ask(Request(work, str(lake), str(contracts or ""), step))
        assert answer.signal == signal.SIGKILL, (step, answer)
        self.kills += 1
        return answer.names[-1]

    def at_each(
        self, work: str, lake: Path, part: slice, check: Callable[[str], None], contracts: Path | None = None
    ) -> list[str]:
        """Kill at the chosen ones of the work's steps, each time from the lake as it is now, and check what comes of it.

        Returns:
            The names of all steps of the work, whether it was killed there or not.
        """
        pristine = lake.with_name("pristine")
        shutil.copytree(lake, pristine)
        # The steps are those of a copy, as it dies later: what a lake knows of its files by inode is not true of a copy.
        _copy_again(pristine, lake)
        names = self.steps(work, lake, contracts)
        for step, name in list(chosen(names))[part]:
            _copy_again(pristine, lake)
            died = self.kill(work, lake, step, contracts)
            assert died == name, f"step {step} was {name!r}, and is {died!r}"
            check(name)
        return names

    def _ask(self, request: Request) -> Answer:
        if self._process is None:
            environment = {**os.environ, **NO_POOLS, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-W", "ignore", "-m", "tests.faults.mortal"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Answer)


def _copy_again(pristine: Path, lake: Path) -> None:
    shutil.rmtree(lake)
    shutil.copytree(pristine, lake)


def chosen(names: Iterable[str]) -> Iterable[tuple[int, str]]:
    """The steps to die at, each with its number."""
    return ((step, name) for step, name in enumerate(names, start=1) if IS_THOROUGH or not name.startswith("after "))
