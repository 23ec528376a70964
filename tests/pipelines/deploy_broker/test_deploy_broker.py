import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from pipelines.bridge.segment import read_segment
from tests.fakes.authority import Authority

pytestmark = pytest.mark.broker
DEADLINE_S = 20.0


@dataclass
class Secured:
    authority: Authority
    port: int
    process: subprocess.Popen[bytes]
    clients: list["Peer"] = field(default_factory=list)

    def peer(self, name: str, client_id: str | None = None) -> "Peer":
        one = Peer(self, name, client_id or name)
        self.clients.append(one)
        return one


class Peer:
    """A client that holds the certificate of `name`."""

    def __init__(self, broker: Secured, name: str, client_id: str) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.acks: dict[int, ReasonCode] = {}
        self.disconnects = 0
        certificate, key = broker.authority.folder / f"{name}.crt", broker.authority.folder / f"{name}.key"
        if not certificate.exists():
            broker.authority.issue(name)
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        context = ssl.create_default_context(cafile=str(broker.authority.folder / "ca.crt"))
        context.load_cert_chain(certificate, key)
        self.client.tls_set_context(context)
        self._up, self._subscribed = threading.Event(), threading.Event()
        self.client.on_connect = lambda *_: self._up.set()
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_publish = lambda _c, _d, mid, reason, _p: self.acks.__setitem__(mid, reason)
        self.client.on_message = lambda _c, _d, message: self.heard.append((message.topic, bytes(message.payload)))
        self.client.connect("localhost", broker.port)
        self.client.loop_start()
        assert self._up.wait(DEADLINE_S)

    def _on_disconnect(self, *_: object) -> None:
        self.disconnects += 1

    def subscribe(self, topic: str) -> None:
        self._subscribed.clear()
        self.client.subscribe(topic, qos=1)
        assert self._subscribed.wait(DEADLINE_S)

    def publish(self, topic: str, body: bytes = b"{}") -> ReasonCode:
        info = self.client.publish(topic, body, qos=1)
        info.wait_for_publish(DEADLINE_S)
        return self.acks[info.mid]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.client.reinitialise()  # closes its pair of wake-up sockets


@pytest.fixture
def secured(tmp_path, repository_root) -> Iterator[Secured]:
    binary = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
    if binary is None or shutil.which("openssl") is None:
        pytest.skip("needs mosquitto and openssl")
    authority = Authority(tmp_path / "ca")
    authority.issue("server", "subjectAltName = DNS:localhost")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = repository_root / "deploy" / "broker"
    (tmp_path / "data").mkdir()
    conf = (folder / "mosquitto.conf").read_text()
    for old, new in (
        ("listener 8883", f"listener {port}"),
        ("/etc/mosquitto/certs", str(authority.folder)),
        ("/etc/mosquitto/acl", str(folder / "acl")),
        ("/var/lib/mosquitto", str(tmp_path / "data")),
    ):
        assert old in conf
        conf = conf.replace(old, new)
    (tmp_path / "mosquitto.conf").write_text(conf + ("user root\n" if os.geteuid() == 0 else ""))
    with (tmp_path / "broker.log").open("wb") as log:
        process = subprocess.Popen([binary, "-c", str(tmp_path / "mosquitto.conf")], stdout=log, stderr=log)
    broker = Secured(authority, port, process)
    wait_for_port(port, process, tmp_path / "broker.log")
    yield broker
    for one in broker.clients:
        one.close()
    broker.process.terminate()
    broker.process.wait(DEADLINE_S)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("localhost", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("the broker did not listen")


def test_a_device_cannot_publish_as_another(secured):
    hears = secured.peer("bridge-0")
    hears.subscribe("catchment/up/#")
    device = secured.peer("dev-a")
    assert device.publish("catchment/up/dev-b/telemetry", b"forged").value == 0x87
    device.publish("catchment/reported/dev-b", b"forged")
    assert not device.publish("catchment/up/dev-a/telemetry", b"own").is_failure
    wait_for(hears, b"own")
    assert hears.heard == [("catchment/up/dev-a/telemetry", b"own")]


def test_a_device_hears_only_what_is_for_it(secured):
    device = secured.peer("dev-a")
    for topic in ("#", "catchment/down/dev-b/+", "catchment/down/#", "catchment/up/#"):
        device.subscribe(topic)
    core, other = secured.peer("core"), secured.peer("dev-b")
    core.publish("catchment/down/dev-b/receipts", b"for b")
    other.publish("catchment/up/dev-b/telemetry", b"of b")
    core.publish("catchment/down/dev-a/receipts", b"for a")
    wait_for(device, b"for a")
    assert {body for _, body in device.heard} == {b"for a"}


def test_a_client_id_of_another_device_does_not_evict_it(secured):
    first = secured.peer("dev-a")
    secured.peer("dev-b", client_id="dev-a").publish("catchment/up/dev-b/telemetry")
    assert not first.publish("catchment/up/dev-a/telemetry").is_failure
    assert first.disconnects == 0


def test_a_common_name_with_a_wildcard_opens_nothing(secured):
    odd = secured.peer("+")
    odd.client.subscribe("catchment/down/+/receipts", qos=1)  # mosquitto answers by closing, others may refuse
    device, bridge, core = secured.peer("dev-a"), secured.peer("bridge-0"), secured.peer("core")
    device.subscribe("catchment/down/dev-a/+")
    bridge.subscribe("catchment/up/#")
    core.publish("catchment/down/dev-a/receipts", b"for a")
    device.publish("catchment/up/dev-a/telemetry", b"own")
    wait_for(device, b"for a")
    wait_for(bridge, b"own")
    assert odd.heard == []
    assert [body for _, body in bridge.heard] == [b"own"]


def test_a_client_without_a_certificate_or_with_a_revoked_one_is_refused(secured, tmp_path):
    revoked = secured.authority.issue("dev-gone")
    secured.authority.revoke(revoked[0])
    secured.process.terminate()
    secured.process.wait(DEADLINE_S)
    binary = shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin")
    with (tmp_path / "broker.log").open("ab") as log:
        secured.process = subprocess.Popen([binary, "-c", str(tmp_path / "mosquitto.conf")], stdout=log, stderr=log)
    wait_for_port(secured.port, secured.process, tmp_path / "broker.log")
    assert not can_connect(secured, None)
    assert not can_connect(secured, revoked)
    assert can_connect(secured, secured.authority.issue("dev-here"))


def test_a_bridge_with_its_certificate_lands_what_a_device_publishes(secured, tmp_path):
    certificate, key = secured.authority.issue("bridge-0")
    config = tmp_path / "core.toml"
    config.write_text(
        f'lake = "lake"\n[broker]\nhost = "localhost"\nport = {secured.port}\n[broker.tls]\n'
        f'ca = "{secured.authority.folder / "ca.crt"}"\ncert = "{certificate}"\nkey = "{key}"\n[bridge]\nseal_ms = 50\n'
    )
    log_path = tmp_path / "bridge.log"
    with log_path.open("wb") as log:
        bridge = subprocess.Popen([sys.executable, "-m", "pipelines.bridge.cli", "-c", str(config)], stdout=log, stderr=log)
    try:
        until(lambda: "connected " in log_path.read_text())
        device = secured.peer("dev-a")
        device.subscribe("catchment/down/dev-a/+")
        bodies = [os.urandom(100_000) for _ in range(50)]
        for body in bodies:
            device.publish("catchment/up/dev-a/telemetry", body)
        landing = tmp_path / "lake" / "landing" / "bridge-0"
        until(lambda: landed(landing) == bodies)
    finally:
        bridge.terminate()
        assert bridge.wait(DEADLINE_S) == 0, log_path.read_text()


def landed(folder: Path) -> list[bytes]:
    return [
        body
        for path in sorted(folder.glob("*.arrows"))
        for batch in read_segment(path)
        for body in batch.column("payload").to_pylist()
    ]


def can_connect(broker: Secured, certificate: tuple[Path, Path] | None) -> bool:
    context = ssl.create_default_context(cafile=str(broker.authority.folder / "ca.crt"))
    if certificate is not None:
        context.load_cert_chain(*certificate)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="probe", protocol=mqtt.MQTTv5)
    client.tls_set_context(context)
    up = threading.Event()
    client.on_connect = lambda _c, _d, _f, reason, _p: None if reason.is_failure else up.set()
    try:
        client.connect("localhost", broker.port)
        deadline = time.monotonic() + DEADLINE_S
        while not up.is_set() and time.monotonic() < deadline:
            if client.loop(0.1) != mqtt.MQTT_ERR_SUCCESS:
                break
    except OSError:
        return False
    finally:
        client.reinitialise()
    return up.is_set()


def wait_for(peer: Peer, body: bytes) -> None:
    until(lambda: any(heard == body for _, heard in peer.heard))


def until(is_true) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
