"""What the whole suite shares: a real broker, the real data, and how much hypothesis tries."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.fakes.named_broker import NamedBroker, named_broker
from tests.faults.kill_count import KillCount, kills

ROOT = Path(__file__).resolve().parent.parent
MOSQUITTO_MISSING = "no mosquitto on PATH or in /usr/sbin; install it: apt-get install -y --no-install-recommends mosquitto"
START_TIMEOUT_S = 20.0
# Everything must survive a broker that is stopped and started again, so sessions and queues go to disk.
BROKER_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
user {user}
persistence true
persistence_location {data}/
autosave_interval 1
max_queued_messages 1000000
max_queued_bytes 0
max_inflight_messages 100
max_packet_size {max_packet_bytes}
set_tcp_nodelay true
log_dest file {log}
log_type error
log_type warning
log_type notice
{extra}
"""

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


def _skip_or_fail(reason: str) -> None:
    """In CI a missing part is a failure: a suite that skips its promises proves nothing."""
    if _in_ci():
        pytest.fail(reason)
    pytest.skip(reason)


def _find_mosquitto() -> str | None:
    # Debian puts daemons in /usr/sbin, which is not on an ordinary user's PATH.
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Broker:
    """A mosquitto of one test, on a loopback port that stays the same over restarts."""

    binary: str
    folder: Path
    max_packet_bytes: int = 16 * 1024 * 1024
    extra: str = ""
    host: str = "127.0.0.1"
    port: int = field(default_factory=_free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """Where the broker writes what it does."""
        return self.folder / "mosquitto.log"

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        assert self.process is None, "the broker already runs"
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = self.folder / "mosquitto.conf"
        user = "root" if os.geteuid() == 0 else "mosquitto"  # a broker that drops root could not write to the test's folder
        config.write_text(
            BROKER_CONFIG.format(
                port=self.port,
                user=user,
                data=data,
                log=self.log_path,
                max_packet_bytes=self.max_packet_bytes,
                extra=self.extra,
            )
        )
        with (self.folder / "mosquitto.out").open("ab") as output:
            self.process = subprocess.Popen([self.binary, "-c", str(config)], stdout=output, stderr=output)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                socket.create_connection((self.host, self.port), timeout=1).close()
            except OSError:
                time.sleep(0.01)
            else:
                return
        self.kill()
        output = (self.folder / "mosquitto.out").read_text(errors="replace")
        logged = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        raise RuntimeError(f"mosquitto did not start on port {self.port}:\n{output}\n{logged}")

    def stop(self) -> None:
        """End it as an operator would: it saves sessions and queues."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start, on the same port with the same sessions."""
        self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., Broker]]:
    """Start brokers with other settings: `make_broker(max_packet_bytes=…, extra="one line each of mosquitto.conf")`."""
    binary = _find_mosquitto()
    if binary is None:
        _skip_or_fail(MOSQUITTO_MISSING)
        raise AssertionError
    started: list[Broker] = []

    def make(*, max_packet_bytes: int = 16 * 1024 * 1024, extra: str = "") -> Broker:
        folder = tmp_path / f"broker-{len(started)}"
        folder.mkdir()
        broker = Broker(binary, folder, max_packet_bytes, extra)
        broker.start()
        started.append(broker)
        return broker

    yield make
    for broker in started:
        broker.kill()


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Broker | NamedBroker:
    """A running broker that nobody else uses: Mosquitto, or the one that `CATCHMENT_TEST_BROKER=host:port` names."""
    named = named_broker()
    if named is not None:
        return named
    make: Callable[..., Broker] = request.getfixturevalue("make_broker")
    return make()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images, telemetry, flows and models; kept beside the checkout, never in it."""
    folder = Path(os.environ.get("CATCHMENT_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set CATCHMENT_SHARED_DATA to its folder to run this test")
    return folder


@pytest.fixture(scope="session")
def repository_root() -> Path:
    """The checkout."""
    return ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for a broker is marked so, and `-m 'not broker'` needs nobody's memory."""
    for item in items:
        if {"broker", "make_broker"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("broker")


def pytest_configure(config: pytest.Config) -> None:
    """Workers tell the process that started them, and that one counts."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(KillCount())
