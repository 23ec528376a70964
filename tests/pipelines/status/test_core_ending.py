"""A command ends with its exit code when all is done, whatever C++ libraries still hold."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pipelines.commands.exits import code_of, leave

def last():
    time.sleep(0.2)
    sys.stdout.write("thread ")

atexit.register(sys.stdout.write, "exit functions")
threading.Thread(target=last).start()
idle = ThreadPoolExecutor(1)
idle.submit(int).result()
sys.stdout.write("output ")
try:
    sys.exit({code})
except SystemExit as ended:
    leave(code_of(ended))
"""


@pytest.mark.parametrize(
    ("code", "expected", "error_text"), [("None", 0, ""), ("75", 75, ""), ("'no such lake'", 1, "no such lake\n")]
)
def test_it_ends_with_its_code_once_threads_exit_functions_and_output_are_done(code: str, expected: int, error_text: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(code=code)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (expected, "output thread exit functions", error_text)


def test_commands_end_so() -> None:
    program = "import os\nfrom pipelines.cli import main\nos._exit = lambda code: print('left', code)\nmain()"
    done = subprocess.run([sys.executable, "-c", program, "version"], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("left 0\n")
