"""What the whole suite shares: a real broker, the real data, and how much hypothesis tries."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, Phase, settings

from pipelines.errors import RefusedError
from tests.fakes.named_broker import named_broker
from tests.faults.kill_count import KillCount, kills
from tests.plant.broker import MAX_PACKET_BYTES, Broker, MakeBroker, RunningBroker, find_mosquitto

ROOT = Path(__file__).resolve().parent.parent
__all__ = ["kills"]  # a fixture

settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow])
# The same examples each time, and the first that fails is enough: `make mutants` only counts.
settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests and the processes that they kill leave in the temporary folder goes with the session."""
    folder = tmp_path_factory.mktemp("t")
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    yield
    tempfile.tempdir = before[1]
    os.environ.pop("TMPDIR")
    if before[0] is not None:
        os.environ["TMPDIR"] = before[0]
    shutil.rmtree(folder, ignore_errors=True)


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true", "yes")


def _skip_or_fail(reason: str) -> NoReturn:
    """In CI a missing part is a failure: a suite that skips its promises proves nothing."""
    if _in_ci():
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[MakeBroker]:
    """Start brokers with other settings: `make_broker(max_packet_bytes=…, extra="one line each of mosquitto.conf")`."""
    try:
        find_mosquitto()
    except RefusedError as error:
        _skip_or_fail(str(error))
    started: list[Broker] = []

    def make(*, max_packet_bytes: int = MAX_PACKET_BYTES, extra: str = "") -> Broker:
        broker = Broker(tmp_path / f"broker-{len(started)}", max_packet_bytes, extra)
        broker.start()
        started.append(broker)
        return broker

    yield make
    for broker in started:
        broker.kill()


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> RunningBroker:
    """A running broker that nobody else uses: Mosquitto, or the one that `CATCHMENT_TEST_BROKER=host:port` names."""
    named = named_broker()
    if named is not None:
        return named
    make: MakeBroker = request.getfixturevalue("make_broker")
    return make()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images, telemetry, flows and models; kept next to the checkout, never in it."""
    folder = Path(os.environ.get("CATCHMENT_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set CATCHMENT_SHARED_DATA to its folder to run this test")
    return folder


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The checkout."""
    return ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for a broker is marked so, and `-m 'not broker'` needs nobody's memory."""
    for item in items:
        if {"broker", "make_broker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("broker")


def pytest_configure(config: pytest.Config) -> None:
    """Workers tell the process that started them, and that one counts."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(KillCount())
