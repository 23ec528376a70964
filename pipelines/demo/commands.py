"""The demo runs the same commands as its reader would, and shows them."""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pipelines.demo.view import DemoView
from pipelines.errors import PipelineError

TIMEOUT_S = 180.0
_PROGRAMS = {"catchment": "pipelines.cli", "edge-agent": "edge_agent.cli"}


class CommandFailedError(PipelineError):
    """A command that the demo ran has failed; the message shows it and what it said."""


def command_line(program: str, *arguments: str) -> list[str]:
    """How to start one of the two programs with this interpreter, wherever its script was installed."""
    return [sys.executable, "-c", f"from {_PROGRAMS[program]} import main; main()", *arguments]


@dataclass(frozen=True, slots=True)
class DemoCommands:
    """Runs commands in one demo folder."""

    folder: Path
    view: DemoView

    def run(self, program: str, *arguments: str, is_shown: bool = True) -> str:
        """Run a command to its end.

        Returns:
            Its standard output.

        Raises:
            CommandFailedError: it failed, or took too long.
        """
        text = shlex.join([program, *arguments])
        if is_shown:
            self.view.event(f"$ {text}", "cyan")
        try:
            done = subprocess.run(
                command_line(program, *arguments), cwd=self.folder, capture_output=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CommandFailedError(f"{text}: not done after {TIMEOUT_S:.0f} s") from error
        if done.returncode != 0:
            output = (done.stderr or done.stdout).decode(errors="replace")[-2_000:]
            raise CommandFailedError(f"{text}: ended with {done.returncode}: {output}")
        return done.stdout.decode()
