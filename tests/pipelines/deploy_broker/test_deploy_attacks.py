"""What one device may try against another: every attack is refused as measured by what is delivered, not by what is answered.

A broker may answer SUBACK "granted" and deliver nothing, or answer nothing at all; so each attack is followed by honest
messages on every path, and nothing of the attack may have come with them. Another broker is tested the same way:
`CATCHMENT_SECURED_BROKER=host:port:/folder/of/its/authority`, with ca.crt, ca.key and ca.cnf in that folder.
"""

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.fakes.secured_broker import Peer, Secured, running_secured, until

pytestmark = [pytest.mark.broker, pytest.mark.slow]
NS = "catchment"
EVIL = b"evil"
SHA = "0" * 64


@dataclass
class Scene:
    """dev-a attacks dev-b; the core's roles listen where they are meant to."""

    broker: Secured
    victim: Peer
    bridge: Peer
    core: Peer
    models: Peer
    marks: int = 0

    def listen(self) -> None:
        for peer, topics in (
            (self.victim, ("down/dev-b/+", "models/data/dev-b")),
            (self.bridge, ("up/+/+", "parts/+/+", "reported/+", "bridges/bridge-0")),
            (self.core, ("reported/+",)),
            (self.models, ("models/get/+",)),
        ):
            for topic in topics:
                peer.subscribe(f"{NS}/{topic}")

    def attacker(self, name: str = "dev-a", **more: Any) -> Peer:
        return self.broker.peer(name, **more)

    def honest_round(self) -> bytes:
        """One message on every path, heard by whom it is for: by then whatever the attack set off has been delivered."""
        self.marks += 1
        mark = b"secret %d" % self.marks
        for topic in ("up/dev-b/telemetry", f"parts/dev-b/{SHA}", "reported/dev-b"):
            self.victim.publish(f"{NS}/{topic}", mark)
            until(partial(self.bridge.heard.__contains__, (f"{NS}/{topic}", mark)))
        self.victim.publish(f"{NS}/models/get/dev-b", mark)
        until(lambda: (f"{NS}/models/get/dev-b", mark) in self.models.heard)
        for topic in ("receipts", "desired", "policy", "objects"):
            self.core.publish(f"{NS}/down/dev-b/{topic}", mark)
            until(partial(self.victim.heard.__contains__, (f"{NS}/down/dev-b/{topic}", mark)))
        self.models.publish(f"{NS}/models/data/dev-b", mark)
        until(lambda: (f"{NS}/models/data/dev-b", mark) in self.victim.heard)
        return mark

    def own_round(self, attacker: Peer) -> None:
        """What is the attacker's own comes, after all that was not: a broker that had thrown it out has let it in again."""
        mark = os.urandom(8)
        attacker.subscribe(f"{NS}/down/dev-a/objects")

        def heard() -> bool:
            self.core.publish(f"{NS}/down/dev-a/objects", mark)
            return (f"{NS}/down/dev-a/objects", mark) in attacker.heard

        until(heard)

    def heard_evil(self) -> list[tuple[str, bytes]]:
        peers = (self.victim, self.bridge, self.core, self.models)
        return [message for peer in peers for message in peer.heard if message[1] == EVIL]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, repository_root: Path) -> Iterator[Secured]:
    with running_secured(tmp_path_factory.mktemp("attacked")) as one:
        yield one


@pytest.fixture(scope="module")
def scene(broker: Secured) -> Scene:
    found = Scene(broker, broker.peer("dev-b"), broker.peer("bridge-0"), broker.peer("core"), broker.peer("models"))
    found.listen()
    return found


WRITES = {
    "sends samples as another": "up/dev-b/telemetry",
    "sends parts of a payload as another": f"parts/dev-b/{SHA}",
    "reports another's books": "reported/dev-b",
    "asks for a model as another": "models/get/dev-b",
    "forges another's receipt, so that it deletes what was never committed": "down/dev-b/receipts",
    "tells another which model to run": "down/dev-b/desired",
    "tells another what to drop": "down/dev-b/policy",
    "tells another that its payload has arrived": "down/dev-b/objects",
    "gives another a piece of a model": "models/data/dev-b",
    "forges its own receipt": "down/dev-a/receipts",
    "ends a bridge by speaking as a second one": "bridges/bridge-0",
    "sends one level deeper, as another": "up/dev-b/telemetry/x",
}
READS = {
    "listens to what another is told": "down/dev-b/+",
    "listens to what everybody is told": "down/#",
    "listens to everybody's desired model": "down/+/desired",
    "listens to everything": "#",
    "listens to everybody's samples": f"{NS}/up/#",
    "listens to another's payloads": f"parts/dev-b/{SHA}",
    "listens to another's books": "reported/+",
    "listens to another's model": "models/data/dev-b",
    "takes samples away from the bridges by a shared subscription": f"$share/thieves/{NS}/up/+/+",
}


ROLES = ("dev-b", "bridge-0", "core")
NAMES = ("+", "#", "dev-b/telemetry", "../dev-b")
HIDDEN = ("a topic alias", "a will", "an empty retained message", "a user name with a password")


def test_there_are_at_least_24_attacks() -> None:
    assert len([*WRITES, *READS, *ROLES, *NAMES, *HIDDEN]) >= 24


@pytest.mark.parametrize("attack", WRITES)
def test_a_device_that_speaks_for_others_is_not_heard(scene: Scene, attack: str) -> None:
    attacker = scene.attacker()
    attacker.client.publish(f"{NS}/{WRITES[attack]}", EVIL, qos=1, retain=True)
    scene.own_round(attacker)
    attacker.close()
    scene.listen()  # had the broker kept it, it would come now
    scene.honest_round()
    assert scene.heard_evil() == []


@pytest.mark.parametrize("attack", READS)
def test_a_device_that_listens_to_others_hears_nothing(scene: Scene, attack: str) -> None:
    attacker = scene.attacker()
    topic = READS[attack]
    attacker.client.subscribe(topic if topic.startswith(("#", "$", NS)) else f"{NS}/{topic}", qos=1)
    scene.core.client.publish(f"{NS}/down/dev-b/receipts", b"secret kept", qos=1, retain=True).wait_for_publish(20)
    scene.honest_round()
    scene.own_round(attacker)
    attacker.close()
    assert [body for _, body in attacker.heard if body.startswith(b"secret")] == []


def test_a_device_that_hides_behind_a_topic_alias_is_not_heard(scene: Scene) -> None:
    attacker = scene.attacker()
    properties = Properties(PacketTypes.PUBLISH)
    properties.TopicAlias = 1
    attacker.client.publish(f"{NS}/up/dev-a/telemetry", b"own", qos=1, properties=properties)
    attacker.client.publish(f"{NS}/up/dev-b/telemetry", EVIL, qos=1, properties=properties)
    scene.own_round(attacker)
    attacker.close()
    scene.honest_round()
    assert scene.heard_evil() == []


def test_a_device_that_leaves_a_will_for_another_is_not_heard(scene: Scene) -> None:
    attacker = scene.attacker(will=(f"{NS}/up/dev-b/telemetry", EVIL), must_connect=False)
    sock = attacker.client.socket()
    if isinstance(sock, socket.socket):
        attacker.client.loop_stop()
        sock.shutdown(socket.SHUT_RDWR)
    time.sleep(0.2)
    scene.honest_round()
    attacker.close()
    assert scene.heard_evil() == []


def test_a_device_that_deletes_what_is_kept_for_another_deletes_nothing(scene: Scene) -> None:
    scene.core.client.publish(f"{NS}/down/dev-b/receipts", b"secret kept", qos=1, retain=True).wait_for_publish(20)
    attacker = scene.attacker()
    attacker.client.publish(f"{NS}/down/dev-b/receipts", b"", qos=1, retain=True)
    scene.own_round(attacker)
    attacker.close()
    scene.victim.heard.clear()
    scene.victim.subscribe(f"{NS}/down/dev-b/+")
    until(lambda: (f"{NS}/down/dev-b/receipts", b"secret kept") in scene.victim.heard)


@pytest.mark.parametrize("role", ROLES)
def test_a_device_that_takes_the_client_id_of_another_does_not_throw_it_out(scene: Scene, role: str) -> None:
    attacker = scene.attacker(client_id=role, must_connect=False)
    scene.honest_round()
    attacker.close()
    assert {"dev-b": scene.victim, "bridge-0": scene.bridge, "core": scene.core}[role].client.is_connected()


def test_a_device_that_gives_the_name_of_another_with_a_password_is_not_heard(scene: Scene) -> None:
    attacker = scene.attacker(says_it_is="dev-b", must_connect=False)
    attacker.client.publish(f"{NS}/up/dev-b/telemetry", EVIL, qos=1)
    attacker.client.subscribe(f"{NS}/down/dev-b/+", qos=1)
    scene.honest_round()
    attacker.close()
    assert scene.heard_evil() == []
    assert attacker.heard == []


@pytest.mark.parametrize("name", NAMES)
def test_a_device_that_was_given_a_strange_name_opens_nothing_with_it(scene: Scene, name: str) -> None:
    attacker = scene.attacker(name, client_id="x", must_connect=False)
    for topic in (f"{NS}/up/dev-b/telemetry", f"{NS}/reported/dev-b", f"{NS}/up/{name}/x"):
        attacker.client.publish(topic, EVIL, qos=1) if not set(topic) & set("+#") else None
    for topic in (f"{NS}/down/+/+", f"{NS}/down/{name}/+" if name != "#" else f"{NS}/down/#", f"{NS}/models/data/+"):
        attacker.client.subscribe(topic, qos=1)
    scene.honest_round()
    attacker.close()
    assert [message for message in scene.heard_evil() if "/dev-b" in message[0]] == []
    assert attacker.heard == []
