"""Forks one child for each death of the core: what costs seconds, to start Python and import Beam, is paid once.

    python -W ignore -m tests.faults.mortal     one request a line on stdin, one answer a line on stdout, both JSON

A request names a work (`run`, `maintenance`), the lake, and the durable step at which the child is to die. There it is SIGKILLed
from here, with all its threads, as the kernel or an operator would do it; step 0 is never, and such a child does its work to
its end. The answer has the name of each step it came to.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from catchment.runtime.clock import SystemClock
from pipelines.config import CoreConfig
from pipelines.ingest.loop import RunLoop
from pipelines.lake import table
from pipelines.lake.lake import lake_at
from pipelines.maintenance.maintain import maintain
from pipelines.maintenance.vacuum import Keep
from pipelines.runners.engine import Engine
from tests.faults.forks import fork
from tests.faults.steps import Steps
from tests.plant.core import cut_all


class Request(msgspec.Struct, frozen=True):
    """One death: what the child does, where, and at which of its steps it ends."""

    work: str
    lake: str
    contracts: str
    step: int


class Answer(msgspec.Struct, frozen=True):
    """The steps that the child came to, the signal that ended it or 0, and its exit code."""

    names: list[str]
    signal: int
    code: int


class Nobody:
    """Takes receipts: a step, however many devices are told."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def publish(self, messages: Mapping[str, bytes]) -> None:
        """Before and after."""
        self._steps.step(f"before receipts to {len(messages)}")
        self._steps.step(f"after receipts to {len(messages)}")


def run(request: Request, steps: Steps) -> None:
    """All that waits in the landing, and all that people ask."""
    config = CoreConfig(lake=request.lake, contracts=request.contracts)
    loop = RunLoop(config, Nobody(steps), SystemClock(), Engine("FnApiRunner"))
    while loop.step():
        pass
    cut_all(config, loop)


def maintenance(request: Request, _steps: Steps) -> None:
    """Roll-ups, compaction and vacuum."""
    maintain(lake_at(Path(request.lake)), Keep(0, 0, 0, 0, 0))


WORKS = {"run": run, "maintenance": maintenance}


def live(request: Request, writer: int) -> int:
    """The child's life: do the work, tell of each step, and wait for the end at the one that is the last."""
    try:
        os.dup2(2, 1)  # what the work logs is no answer
        tempfile.tempdir = str(Path(request.lake).parent)  # Beam leaves a folder behind when it is killed
        with os.fdopen(writer, "w", buffering=1) as pipe:
            steps = Steps(Path(request.lake), request.step, lambda name: pipe.write(f"{name}\n"))
            steps.watch()
            WORKS[request.work](request, steps)
    except BaseException:  # noqa: BLE001 # a child of a fork must end here, whatever happens
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def serve(request: Request) -> Answer:
    """Fork a child for one request, and kill it where it waits.

    Raises:
        RuntimeError: there are threads that a fork would leave behind.
    """
    heard, writer = os.pipe()
    pid = fork()
    if pid == 0:
        os.close(heard)
        os._exit(live(request, writer))
    os.close(writer)
    names: list[str] = []
    with os.fdopen(heard) as pipe:
        for line in pipe:
            names.append(line.rstrip("\n"))
            if len(names) == request.step:
                os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Answer(names, max(0, -code), max(0, code))


def main() -> None:
    """Serve until stdin ends."""
    # What a start remembers of tables it writes once their folders have rested for two seconds: steps that come by the clock
    # could not be counted. In this process alone: the states have tests of their own.
    table.SETTLED_NS = 1 << 62
    for line in sys.stdin:
        answer = serve(msgspec.json.decode(line, type=Request))
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
