import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from pipelines.bridge.segment import read_segment
from tests.fakes.secured_broker import DEADLINE_S, Secured, running_secured, until, wait_for

pytestmark = pytest.mark.broker
QOS_NOT_SUPPORTED = 0x9B


@pytest.fixture
def secured(tmp_path: Path, repository_root: Path) -> Iterator[Secured]:
    with running_secured(tmp_path) as broker:
        yield broker


def test_a_device_cannot_publish_as_another(secured: Secured) -> None:
    hears = secured.peer("bridge-0")
    hears.subscribe("catchment/up/#")
    device = secured.peer("dev-a")
    assert device.publish("catchment/up/dev-b/telemetry", b"forged").value == 0x87
    device.publish("catchment/reported/dev-b", b"forged")
    assert not device.publish("catchment/up/dev-a/telemetry", b"own").is_failure
    wait_for(hears, b"own")
    assert hears.heard == [("catchment/up/dev-a/telemetry", b"own")]


def test_a_device_hears_only_what_is_for_it(secured: Secured) -> None:
    device = secured.peer("dev-a")
    for topic in ("#", "catchment/down/dev-b/+", "catchment/down/#", "catchment/up/#"):
        device.subscribe(topic)
    core, other = secured.peer("core"), secured.peer("dev-b")
    core.publish("catchment/down/dev-b/receipts", b"for b")
    other.publish("catchment/up/dev-b/telemetry", b"of b")
    core.publish("catchment/down/dev-a/receipts", b"for a")
    wait_for(device, b"for a")
    assert {body for _, body in device.heard} == {b"for a"}


def test_a_device_hears_the_pages_of_its_own_receipt_alone(secured: Secured) -> None:
    device, other, core = secured.peer("dev-a"), secured.peer("dev-b"), secured.peer("core")
    device.subscribe("catchment/down/dev-a/receipts/+")
    for topic in ("catchment/down/dev-a/receipts/+", "catchment/down/+/receipts/+"):
        other.subscribe(topic)
    other.subscribe("catchment/down/dev-b/receipts/+")
    assert not core.publish("catchment/down/dev-a/receipts/1", b"page of a").is_failure
    assert not core.publish("catchment/down/dev-b/receipts/1", b"page of b").is_failure
    wait_for(device, b"page of a")
    wait_for(other, b"page of b")
    assert {body for _, body in device.heard} == {b"page of a"}
    assert {body for _, body in other.heard} == {b"page of b"}
    assert other.publish("catchment/down/dev-a/receipts/1", b"forged").value == 0x87


def test_a_client_id_of_another_device_does_not_evict_it(secured: Secured) -> None:
    first = secured.peer("dev-a")
    secured.peer("dev-b", client_id="dev-a").publish("catchment/up/dev-b/telemetry")
    assert not first.publish("catchment/up/dev-a/telemetry").is_failure
    assert first.disconnects == 0


def test_a_common_name_with_a_wildcard_opens_nothing(secured: Secured) -> None:
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


def test_a_client_without_a_certificate_or_with_a_revoked_one_is_refused(secured: Secured, tmp_path: Path) -> None:
    revoked = secured.authority.issue("dev-gone")
    secured.authority.revoke(revoked[0])
    secured.restart()
    assert not can_connect(secured, None)
    assert not can_connect(secured, revoked)
    assert can_connect(secured, secured.authority.issue("dev-here"))


@pytest.mark.slow
def test_a_bridge_with_its_certificate_lands_what_a_device_publishes(secured: Secured, tmp_path: Path) -> None:
    certificate, key = secured.authority.issue("bridge-0")
    config = tmp_path / "core.toml"
    config.write_text(
        f'lake = "lake"\n[broker]\nhost = "localhost"\nport = {secured.port}\n[broker.tls]\n'
        f'ca = "{secured.authority.folder / "ca.crt"}"\ncert = "{certificate}"\nkey = "{key}"\n[bridge]\nseal_ms = 50\n'
    )
    log_path = tmp_path / "bridge.log"
    with log_path.open("wb") as log:
        bridge = subprocess.Popen([sys.executable, "-m", "pipelines", "bridge", "-c", str(config)], stdout=log, stderr=log)
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


def test_a_device_that_sends_at_qos_2_and_never_releases_it_is_hung_up_on(secured: Secured) -> None:
    hears, device = secured.peer("bridge-0"), secured.peer("dev-a")
    hears.subscribe("catchment/up/#")
    reasons = []
    device.client.on_disconnect = lambda _c, _d, _flags, reason, _p: reasons.append(reason.value)
    device.client.publish("catchment/up/dev-a/telemetry", b"never released", qos=2)
    until(lambda: bool(reasons))
    assert reasons[0] == QOS_NOT_SUPPORTED
    secured.peer("dev-b").publish("catchment/up/dev-b/telemetry", b"own")
    wait_for(hears, b"own")
    assert [body for _, body in hears.heard] == [b"own"]


def test_names_of_topics_that_a_device_made_up_end_with_the_brokers_restart(secured: Secured) -> None:
    if secured.started is None:
        pytest.skip("the memory of a broker that is not ours is not seen")
    device, before = secured.peer("dev-a"), resident_bytes(secured.started.pid)
    for number in range(1_000):
        device.client.publish(f"catchment/up/dev-a/{number}{'x' * 30_000}", b"", qos=1, retain=True)
    device.publish("catchment/up/dev-a/telemetry")
    assert resident_bytes(secured.started.pid) - before > 20_000_000
    device.close()
    secured.restart()
    assert resident_bytes(secured.started.pid) - before < 5_000_000


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def landed(folder: Path) -> list[bytes]:
    return [
        body
        for path in sorted(folder.glob("*.arrows"))
        for batch in read_segment(path)
        for body in batch.column("payload").to_pylist()
    ]


def can_connect(broker: Secured, certificate: tuple[Path, Path] | None) -> bool:
    context = broker.authority.context()
    if certificate is not None:
        context.load_cert_chain(*certificate)
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="probe", protocol=mqtt.MQTTv5)
    client.tls_set_context(context)
    up = threading.Event()
    client.on_connect = lambda _c, _d, _f, reason, _p: None if reason.is_failure else up.set()
    try:
        client.connect(broker.host, broker.port)
        deadline = time.monotonic() + DEADLINE_S
        while not up.is_set() and time.monotonic() < deadline:
            if client.loop(0.1) != mqtt.MQTT_ERR_SUCCESS:
                break
    except OSError:
        return False
    finally:
        client.reinitialise()
    return up.is_set()
