"""A real mosquitto, started, stopped, killed and restarted on a port of its own."""

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from catchment.runtime.clock import SystemClock
from pipelines.demo.processes import (
    HOST,
    MAX_PACKET_BYTES,
    START_S,
    find_mosquitto,
    free_port,
    lossless_config,
    wait_for_listener,
    write_config,
)

__all__ = [
    "HOST",
    "MAX_PACKET_BYTES",
    "Address",
    "Broker",
    "MakeBroker",
    "RunningBroker",
    "deployed_config",
    "find_mosquitto",
    "free_port",
    "loopback_broker",
    "secured_broker",
]

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy" / "broker"


class Address(Protocol):
    """Where something listens."""

    host: str
    port: int


class RunningBroker(Address, Protocol):
    """The broker that a test was given: Mosquitto's here, or one that a variable names."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...

    def restart(self) -> None: ...


class MakeBroker(Protocol):
    """Starts a broker with other settings."""

    def __call__(self, *, max_packet_bytes: int = MAX_PACKET_BYTES, extra: str = "") -> "Broker": ...


@dataclass
class Broker:
    """A mosquitto on a loopback port that stays the same over restarts.

    Args:
        folder: configuration, data and logs; made if it is not there.
        max_packet_bytes: largest message.
        extra: more lines of mosquitto.conf.
        config: whole mosquitto.conf, instead of the settings that lose nothing.
        binary: path of mosquitto.
    """

    folder: Path
    max_packet_bytes: int = MAX_PACKET_BYTES
    extra: str = ""
    config: str = ""
    host: str = HOST
    port: int = field(default_factory=free_port)
    binary: str = field(default_factory=find_mosquitto)
    process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        """The broker's own log."""
        return self.folder / "mosquitto.log"

    @property
    def pid(self) -> int:
        """The running broker's process."""
        assert self.process is not None
        return self.process.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        assert self.process is None, "the broker already runs"
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        text = self.config or lossless_config(
            self.port, data, max_packet_bytes=self.max_packet_bytes, log=f"file {self.log_path}\nlog_type notice"
        )
        config = write_config(self.folder, f"{text}\n{self.extra}")
        printed = self.folder / "mosquitto.out"
        with printed.open("ab") as output:
            process = self.process = subprocess.Popen([self.binary, "-c", str(config)], stdout=output, stderr=output)
        if not wait_for_listener(self.host, self.port, lambda: process.poll() is None, SystemClock()):
            self.kill()
            logged = [path.read_text(errors="replace") for path in (printed, self.log_path) if path.exists()]
            raise RuntimeError("\n".join([f"mosquitto did not start on port {self.port}:", *logged]))

    def stop(self) -> None:
        """End it as an operator would: it saves sessions and queues."""
        self.end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start, on the same port with the same sessions."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """Let it read its rules and certificates again."""
        os.kill(self.pid, signal.SIGHUP)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal it and wait until it is gone."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(timeout=START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def deployed_config(name: str, *changes: tuple[str, str]) -> str:
    """A configuration of deploy/broker with these texts replaced; each must be there."""
    text = (DEPLOYED / name).read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


def secured_broker(folder: Path, certificates: Path, acl: Path, *, extra: str = "") -> Broker:
    """A broker with the settings of deploy/broker/mosquitto.conf: it believes certificates alone."""
    port = free_port()
    moved = (
        ("listener 8883", f"listener {port}"),
        ("/etc/mosquitto/certs", str(certificates)),
        ("/etc/mosquitto/acl", str(acl)),
        ("/var/lib/mosquitto", str(folder / "data")),
    )
    return Broker(folder, extra=extra, config=deployed_config("mosquitto.conf", *moved), host="localhost", port=port)


def loopback_broker(folder: Path) -> Broker:
    """A broker with the settings of deploy/broker/loopback.conf."""
    port = free_port()
    moved = (("listener 1883", f"listener {port}"), ("/var/lib/mosquitto", str(folder / "data")))
    return Broker(folder, config=deployed_config("loopback.conf", *moved), port=port)
