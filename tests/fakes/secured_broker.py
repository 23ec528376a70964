"""The broker as deploy/broker configures it, an authority that signs its clients, and clients that speak and hear."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from pipelines.errors import RefusedError
from tests.fakes.authority import Authority
from tests.plant.broker import DEPLOYED, Broker, find_mosquitto, secured_broker

DEADLINE_S = 20.0


@dataclass
class Secured:
    """The broker of deploy/broker, or another one that `CATCHMENT_SECURED_BROKER` names."""

    authority: Authority
    host: str
    port: int
    started: Broker | None = None
    clients: list["Peer"] = field(default_factory=list)

    def peer(self, name: str, client_id: str | None = None, **more: Any) -> "Peer":
        one = Peer(self, name, client_id or name, **more)
        self.clients.append(one)
        return one

    def restart(self) -> None:
        """Of a broker that is not ours nothing is restarted: the test is skipped."""
        if self.started is None:
            pytest.skip("this test restarts the broker, and the one that is named is not ours")
        self.started.restart()


class Peer:
    """A client that holds the certificate of `name`."""

    def __init__(
        self, broker: Secured, name: str, client_id: str, *, will: tuple[str, bytes] | None = None, says_it_is: str = "",
        must_connect: bool = True,
    ) -> None:  # fmt: skip
        self.heard: list[tuple[str, bytes]] = []
        self.acks: dict[int, ReasonCode] = {}
        self.disconnects = 0
        # A file's name bears less than a certificate's.
        certificate, key = (broker.authority.folder / f"{quote(name, safe='+#')}.{end}" for end in ("crt", "key"))
        if not certificate.exists():
            broker.authority.issue(name)
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5)
        context = broker.authority.context()
        context.load_cert_chain(certificate, key)
        self.client.tls_set_context(context)
        self._up, self._subscribed = threading.Event(), threading.Event()
        self.client.on_connect = lambda *_: self._up.set()
        self.client.on_disconnect = self._on_disconnect
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_publish = lambda _c, _d, mid, reason, _p: self.acks.__setitem__(mid, reason)
        self.client.on_message = lambda _c, _d, message: self.heard.append((message.topic, bytes(message.payload)))
        if will is not None:
            self.client.will_set(*will, qos=1)
        if says_it_is:
            self.client.username_pw_set(says_it_is, "x")
        try:
            self.client.connect(broker.host, broker.port)
        except OSError:
            assert not must_connect
            return
        self.client.loop_start()
        assert self._up.wait(DEADLINE_S if must_connect else 2) or not must_connect

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


@contextmanager
def running_secured(folder: Path) -> Iterator[Secured]:
    """The broker to test: `CATCHMENT_SECURED_BROKER=host:port:<folder of the authority>`, else deploy/broker on Mosquitto."""
    named = os.environ.get("CATCHMENT_SECURED_BROKER")
    if named:
        host, port, authority_folder = named.split(":", 2)
        yield from _closing(Secured(Authority(Path(authority_folder)), host, int(port)))
        return
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    try:
        find_mosquitto()
    except RefusedError as error:
        pytest.skip(str(error))
    authority = Authority(folder / "ca")
    authority.issue("server", "subjectAltName = DNS:localhost")
    with secured_broker(folder, authority.folder, DEPLOYED / "acl") as broker:
        yield from _closing(Secured(authority, broker.host, broker.port, broker))


def _closing(broker: Secured) -> Iterator[Secured]:
    yield broker
    for one in broker.clients:
        one.close()


def wait_for(peer: Peer, body: bytes) -> None:
    until(lambda: any(heard == body for _, heard in peer.heard))


class Ticking(Protocol):
    """What goes on step by step."""

    def tick(self) -> None: ...


def after_tick(server: Ticking, is_true: Callable[[], bool]) -> Callable[[], bool]:
    """The same question, asked after the server's next step."""

    def look() -> bool:
        server.tick()
        return is_true()

    return look


def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
