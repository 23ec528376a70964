import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from pipelines.bridge.segment import read_segment
from tests.plant.broker import RunningBroker

DEADLINE_S = 30.0


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@dataclass
class Device:
    """A plain paho client that publishes, and keeps what it hears."""

    host: str
    port: int
    name: str = "dev-a"
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=self.name, protocol=mqtt.MQTTv5)
        self.client.max_inflight_messages_set(50)
        self.client.on_message = lambda _c, _d, message: self.heard.append((message.topic, bytes(message.payload)))
        self._subscribed = threading.Event()
        self.client.on_connect = lambda client, *_: client.subscribe(f"catchment/down/{self.name}/+", qos=1)
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.connect(self.host, self.port)
        self.client.loop_start()
        assert self._subscribed.wait(DEADLINE_S)

    def publish(
        self, topic: str, body: bytes, properties: list[tuple[str, str]] | None = None, content_type: str | None = None
    ) -> mqtt.MQTTMessageInfo:
        packed = Properties(PacketTypes.PUBLISH)
        packed.UserProperty = properties or []
        if content_type:
            packed.ContentType = content_type
        return self.client.publish(topic, body, qos=1, properties=packed)

    def send(self, *args: Any, **more: Any) -> None:
        wait_until(self.client.is_connected)
        info = self.publish(*args, **more)
        info.wait_for_publish(DEADLINE_S)
        assert info.is_published()

    def part(self, content: bytes, offset: int, length: int, digest: str | None = None, total: int | None = None) -> None:
        name = digest or hashlib.sha256(content).hexdigest()
        properties = [("offset", str(offset)), ("total", str(total or len(content)))]
        self.send(f"catchment/parts/{self.name}/{name}", content[offset : offset + length], properties)

    def states(self) -> list[dict[str, Any]]:
        return [json.loads(body) for topic, body in self.heard if topic.endswith("/objects")]

    def wait_until(self, is_true: Callable[[], bool]) -> None:
        wait_until(is_true)

    def wait_for_state(self, is_it: Callable[[dict[str, Any]], bool]) -> None:
        wait_until(lambda: any(is_it(state) for state in self.states()))

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.client.reinitialise()  # closes its pair of wake-up sockets


@dataclass
class BridgeProcess:
    """A bridge as an operator runs it: a process with a configuration file."""

    folder: Path
    host: str
    port: int
    id: str = "bridge-0"
    more: str = ""
    broker_more: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def lake(self) -> Path:
        return self.folder / "lake"

    @property
    def landing(self) -> Path:
        return self.lake / "landing" / self.id

    def start(self) -> None:
        config = self.folder / f"{self.id}.toml"
        config.write_text(
            f'lake = "lake"\n[broker]\nhost = "{self.host}"\nport = {self.port}\n{self.broker_more}\n'
            f'[bridge]\nid = "{self.id}"\n{self.more}\n'
        )
        log = (self.folder / f"{self.id}.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "bridge", "-c", str(config)], stdout=log, stderr=log, env={**os.environ}
        )
        log.close()

    def log(self) -> str:
        path = self.folder / f"{self.id}.log"
        return path.read_text() if path.exists() else ""

    def start_connected(self) -> None:
        before = self.log().count("connected ")
        self.start()
        wait_until(lambda: self.log().count("connected ") > before)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        return process.wait(DEADLINE_S)

    def wait_landed(self, device: Device) -> None:
        """Until all that was published so far is in a sealed segment: the broker keeps the order, so a last message proves it."""
        mark = os.urandom(8).hex()
        device.send("catchment/up/dev-a/mark", json.dumps(mark).encode())
        wait_until(lambda: any(row["payload"] == json.dumps(mark).encode() for row in self.rows()))

    def rows(self) -> list[dict[str, Any]]:
        return [
            row for path in sorted(self.landing.glob("*.arrows")) for batch in read_segment(path) for row in batch.to_pylist()
        ]


@pytest.fixture
def make_bridge(broker: RunningBroker, tmp_path: Path) -> Iterator[Callable[..., BridgeProcess]]:
    made: list[BridgeProcess] = []

    def make(**more: Any) -> BridgeProcess:
        one = BridgeProcess(tmp_path, broker.host, broker.port, **more)
        made.append(one)
        return one

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def bridge(make_bridge: Callable[..., BridgeProcess]) -> BridgeProcess:
    return make_bridge()


@pytest.fixture
def device(broker: RunningBroker) -> Iterator[Device]:
    one = Device(broker.host, broker.port)
    yield one
    one.close()
