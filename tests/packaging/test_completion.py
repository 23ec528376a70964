"""A real bash completes both commands, by the script that they print themselves."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SCRIPT = """
set -euo pipefail
{script}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
{function} {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


BIN = str(Path(sys.executable).parent)
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}


@cache
def printed(program: str) -> str:
    """The script that a command prints."""
    # From a bash that stays: the command looks at the shell that called it.
    command = ["bash", "-c", f"{program} --show-completion bash; exit $?"]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("edge-agent st", {"status"}),
        ("edge-agent do", {"doctor"}),
        ("edge-agent doctor --", {"--config", "--json", "--probe", "--help"}),
        ("edge-agent enrol --f", {"--folder"}),
        ("catchment br", {"bridge"}),
        ("catchment contract ch", {"check"}),
    ],
)
def test_bash_completes(typed: str, offered: set[str]) -> None:
    bash, program = shutil.which("bash"), typed.split(maxsplit=1)[0]
    if bash is None or shutil.which(program, path=BIN) is None:
        pytest.skip("needs bash, and the commands installed next to this Python")
    function = f"_{program.replace('-', '_')}_completion"
    done = subprocess.run(
        [bash, "-c", SCRIPT.format(script=printed(program), program=program, words=typed, function=function)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= offered
    assert len(done.stdout.split()) == len(offered)
