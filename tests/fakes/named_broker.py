"""A broker that is not the tests' own: `CATCHMENT_TEST_BROKER=host:port`. It is emptied before each test and never restarted."""

import os
import time
from dataclasses import dataclass

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

# The fixed client ids whose sessions would bring one test's messages into the next.
SESSIONS = ("bridge-0", "bridge-1", "dev-a")
QUIET_S = 0.3


@dataclass
class NamedBroker:
    """As `Broker`, as far as that goes."""

    host: str
    port: int

    def _not_ours(self) -> None:
        pytest.skip("this test stops its broker, and CATCHMENT_TEST_BROKER names one that is not ours")

    start = stop = kill = restart = _not_ours

    def empty(self) -> None:
        """End the sessions of the tests' clients, and take back what is retained."""
        for name in SESSIONS:
            client = self._connected(name)
            client.disconnect()
            client.loop()
            client.reinitialise()
        client = self._connected("")
        kept: list[str] = []
        client.on_message = lambda _c, _d, message: kept.append(message.topic) if message.retain else None
        client.subscribe("catchment/#")
        self._loop(client)
        for topic in kept:
            client.publish(topic, b"", qos=1, retain=True)
        self._loop(client)
        client.disconnect()
        client.reinitialise()

    def _connected(self, name: str) -> mqtt.Client:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        client.connect(self.host, self.port, clean_start=True)
        self._loop(client)
        assert client.is_connected(), f"no broker at {self.host}:{self.port}"
        return client

    @staticmethod
    def _loop(client: mqtt.Client) -> None:
        until = time.monotonic() + QUIET_S
        while time.monotonic() < until:
            client.loop(0.05)


def named_broker() -> NamedBroker | None:
    """The broker of `CATCHMENT_TEST_BROKER`, emptied; None if there is none."""
    named = os.environ.get("CATCHMENT_TEST_BROKER")
    if not named:
        return None
    host, _, port = named.rpartition(":")
    broker = NamedBroker(host, int(port))
    broker.empty()
    return broker
