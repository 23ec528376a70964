"""The page "Your own stream in ten minutes" is followed word for word, on a broker of its own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.device import eventually
from tests.plant.broker import Broker

PORT = "1883"


class Reader:
    """Somebody who follows the page in an empty folder."""

    def __init__(self, page: Path, folder: Path, port: int) -> None:
        self._page = page.read_text()
        self._folder = folder
        self._port = port
        self._environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "160"}

    def shell(self, step: str) -> str:
        """Run the block that begins with `# <step>`; background commands are the test's own."""
        (block,) = re.findall(rf"```sh\n# {step}[^\n]*\n(.*?)```", self._page, re.DOTALL)
        foreground = "\n".join(line for line in block.splitlines() if not line.endswith(" &"))
        return self._run(["bash", "-euc", foreground.replace(PORT, str(self._port))])

    def python(self) -> str:
        (block,) = re.findall(r"```python\n(.*?)```", self._page, re.DOTALL)
        return self._run([sys.executable, "-c", block])

    def core(self) -> subprocess.Popen[bytes]:
        assert "catchment up &" in self._page
        log = (self._folder / "up.log").open("wb")
        with log:
            return subprocess.Popen(["catchment", "up"], cwd=self._folder, env=self._environment, stdout=log, stderr=log)

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def reader(repository_root: Path, tmp_path: Path, broker: Broker) -> Reader:
    return Reader(repository_root / "docs/own-stream.md", tmp_path, broker.port)


@pytest.mark.slow
def test_a_csv_file_becomes_rows_as_the_page_says(reader: Reader, tmp_path: Path) -> None:
    for step in ("file: oven.csv", "contract", "core"):
        reader.shell(step)
    core = reader.core()
    try:
        eventually(lambda: "event=connected" in (tmp_path / "up.log").read_text(), 60.0)
        assert "the core would accept all of them" in reader.shell("device")
        assert re.search(r"oven_reading +│ +3 │ +3 │ +0 │", reader.shell("send"))
        assert "oven_reading" in reader.shell("rows")
        assert "179.2" in reader.python()
    finally:
        core.send_signal(signal.SIGTERM)
        assert core.wait(timeout=30) == 0
