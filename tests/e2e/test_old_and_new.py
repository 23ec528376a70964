"""Devices and core are never upgraded on one day: each works with the other's release before, and takes over its state."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.plant.programs import Plant

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.timeout(300)]

# The release before: what devices and cores in the field run.
BEFORE = "e84e46f17b254b6274504f11d27b3953ab973789"
ROWS = 200
LARGE_BYTES = 3 * 1024 * 1024


@pytest.fixture(scope="module")
def release_before(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the release before."""
    folder = tmp_path_factory.mktemp("before")
    archive = folder / "tree.tar"
    done = subprocess.run(
        ["git", "archive", "--output", str(archive), BEFORE, "edge_agent", "pipelines", "schemas"],
        cwd=repository_root,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"the commit of the release before is not in this checkout: {done.stderr.strip()[:200]}")
    shutil.unpack_archive(archive, folder / "tree")
    return folder / "tree"


class Fleet:
    """Starts agent and core of either release on one plant."""

    def __init__(self, plant: Plant, before: Path) -> None:
        self.plant = plant
        self._before = before

    def start(self, name: str, module: str, *arguments: str, is_old: bool) -> None:
        command = [sys.executable, "-c", f"from {module}.cli import main; main()", *arguments]
        environment = os.environ | {"PYTHONPATH": str(self._before)} if is_old else dict(os.environ)
        with (self.plant.folder / f"{name}.log").open("ab") as log:
            self.plant.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
                cwd=self._before if is_old else None,
            )

    def start_core(self, *, is_old: bool) -> None:
        self.start("core", "pipelines", "up", "-c", str(self.plant.core_config), is_old=is_old)

    def start_agent(self, device: str, *, is_old: bool, until_settled: bool = True) -> None:
        more = ["--until-settled"] if until_settled else []
        self.start(device, "edge_agent", "run", "-c", str(self.plant.folder / f"{device}.toml"), *more, is_old=is_old)

    def configure(self, device: str) -> None:
        """A device with telemetry, one row of it refused by the contract, and a picture that travels in parts."""
        folder = self.plant.folder / device
        (folder / "pictures").mkdir(parents=True)
        lines = ["event_time,speed_mps", *(f"2026-05-28T20:{n // 60:02d}:{n % 60:02d}Z,{n % 40}" for n in range(ROWS - 1))]
        (folder / "drive.csv").write_text("\n".join([*lines, "2026-05-28T21:00:00Z,-700"]) + "\n")
        picture = b"\xff\xd8\xff\xe0" + device.encode() + os.urandom(LARGE_BYTES) + b"\xff\xd9"
        (folder / "pictures" / "a.jpg").write_bytes(picture)
        self.plant.write_agent(
            device,
            [
                {"kind": "replay", "stream": "vehicle_telemetry", "options": {"path": folder / "drive.csv"}},
                {"kind": "directory", "stream": "camera_frame", "options": {"path": folder / "pictures", "settle_ms": 200}},
            ],
        )

    def committed(self, device: str) -> tuple[int, int]:
        """Rows of the two streams."""
        tables = (self.plant.rows(f"streams/{name}") for name in ("vehicle_telemetry", "camera_frame"))
        return tuple(rows.filter(rows["device"] == device).height if rows.height else 0 for rows in tables)  # type: ignore[return-value]

    def settles(self, device: str) -> None:
        """Every sample is settled at the device and is a row, or a rejection, in the core: once."""
        books = self.plant.eventually(lambda: self._settled_books(device), f"{device} is settled")
        assert {stream: entry["captured"] for stream, entry in books.items()} == {"vehicle_telemetry": ROWS, "camera_frame": 1}
        self.plant.eventually(lambda: self.committed(device) == (ROWS - 1, 1), f"all rows of {device}, each once")

    def books(self, device: str) -> list[dict[str, Any]]:
        """The agent's books; none before its spool is there."""
        has_spool = (self.plant.folder / "state" / device / "spool" / "spool.db").exists()
        return list(self.plant.agent_books(device)["books"]) if has_spool else []

    def _settled_books(self, device: str) -> dict[str, Any] | None:
        found = {entry["stream"]: entry for entry in self.books(device)}
        is_settled = len(found) == 2 and all(entry["settled"] == entry["captured"] for entry in found.values())
        return found if is_settled else None


@pytest.fixture
def fleet(plant: Plant, release_before: Path) -> Fleet:
    return Fleet(plant, release_before)


def test_an_agent_of_the_release_before_settles_against_the_new_core(fleet: Fleet) -> None:
    fleet.configure("car-old")
    fleet.start_core(is_old=False)
    fleet.start_agent("car-old", is_old=True, until_settled=False)
    fleet.settles("car-old")


def test_a_new_agent_settles_against_the_core_of_the_release_before(fleet: Fleet) -> None:
    fleet.configure("car-new")
    fleet.start_core(is_old=True)
    fleet.start_agent("car-new", is_old=False, until_settled=False)
    fleet.settles("car-new")


def test_both_take_over_the_state_of_the_release_before_in_the_middle_of_the_work(fleet: Fleet) -> None:
    for device in ("car-1", "car-2"):
        fleet.configure(device)
    fleet.start_core(is_old=True)
    fleet.start_agent("car-1", is_old=True, until_settled=False)
    fleet.settles("car-1")
    fleet.plant.kill("core")
    fleet.start_agent("car-2", is_old=True, until_settled=False)
    fleet.plant.eventually(lambda: _spooled(fleet, "car-2") == ROWS + 1, "car-2 has captured all, with no core to settle it")
    fleet.plant.kill("car-2")
    fleet.plant.kill("car-1")
    fleet.start_core(is_old=False)
    for device in ("car-1", "car-2"):
        fleet.start_agent(device, is_old=False, until_settled=False)
        fleet.settles(device)
    assert fleet.committed("car-1") == (ROWS - 1, 1), "what the old core committed is there once"


def _spooled(fleet: Fleet, device: str) -> int:
    return sum(entry["captured"] - entry["settled"] for entry in fleet.books(device))
