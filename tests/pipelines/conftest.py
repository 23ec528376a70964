"""A landing of any content, a lake that takes it in, and deaths for the asking."""

import gc
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.config import CoreConfig
from pipelines.runners.run import end_prism
from schemas.contract import Contract
from tests.fakes.run_core import RunCore, runner
from tests.faults.deaths import Deaths
from tests.plant.core import AsIpc, Core, Landing, Mailbox, MakeContract, MakeEnvelope, MakeFrames, ipc
from tests.plant.core import envelope as make_envelope

FETCHED_RUNNERS = Path(__file__).resolve().parents[2] / ".runners/bin"


@pytest.fixture
def prism() -> Iterator[str]:
    """The program of Beam's Prism, where `make fetch-runners` brought it; the one that a test started is ended after it."""
    found = shutil.which("prism", path=os.pathsep.join([str(FETCHED_RUNNERS), os.environ.get("PATH", "")]))
    if found is None:
        pytest.skip("Prism is not here: make fetch-runners builds it (needs Go)")
    yield found
    with warnings.catch_warnings():
        # Beam leaves the pipe of a Prism that ended to the collector.
        warnings.simplefilter("ignore", ResourceWarning)
        end_prism()
        gc.collect()


@pytest.fixture
def core(core_on_disk: Core) -> Core:
    return core_on_disk


@pytest.fixture
def core_on_disk(tmp_path: Path) -> Core:
    root = tmp_path / "lake"
    root.mkdir()
    return Core(root, Landing(root), Mailbox(), CoreConfig(lake=str(root)))


@pytest.fixture
def envelope() -> MakeEnvelope:
    return make_envelope


@pytest.fixture
def as_ipc() -> AsIpc:
    return ipc


@pytest.fixture
def contract_with() -> MakeContract:
    def make(**changes: Any) -> Contract:
        return Contract(**{"name": "probe", "version": "1.0.0", "columns": (), **changes})

    return make


@pytest.fixture
def frames(as_ipc: AsIpc) -> MakeFrames:
    """The body of some frames, each with a payload of its own."""

    def make(first: int, count: int) -> bytes:
        payloads = [hashlib.sha256(str(first + at).encode()).digest() * (20 + at) for at in range(count)]
        return as_ipc(
            pa.record_batch(
                {
                    "event_time": pa.array([1_790_000_000_000_000 - first - at for at in range(count)]).cast(
                        pa.timestamp("us", "UTC")
                    ),
                    "media_type": ["image/jpeg"] * count,
                    "payload": pa.array(payloads, pa.binary()),
                    "payload_sha256": [hashlib.sha256(body).hexdigest() for body in payloads],
                }
            )
        )

    return make


@pytest.fixture(scope="session")
def one_deaths() -> Iterator[Deaths]:
    deaths = Deaths()
    yield deaths
    deaths.close()


@pytest.fixture
def deaths(one_deaths: Deaths, kills: Callable[[int], None]) -> Iterator[Deaths]:
    """Kills the core at its durable steps; what imports it all is one process for all tests."""
    before = one_deaths.kills
    yield one_deaths
    kills(one_deaths.kills - before)


@pytest.fixture
def run_core(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCore:
    """Run a command of the core to its exit code."""
    return runner(monkeypatch, capsys)
