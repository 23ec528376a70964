"""The broker of the suite is a real one, and keeps what it promised over a restart."""

import queue
import socket

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.plant.broker import RunningBroker


def test_a_test_that_asks_for_a_broker_is_marked(request: pytest.FixtureRequest, broker: RunningBroker) -> None:
    assert request.node.get_closest_marker("broker") is not None


def test_a_message_queued_for_an_absent_session_survives_a_restart(broker: RunningBroker) -> None:
    def connect(name: str) -> mqtt.Client:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        ready: queue.Queue[bool] = queue.Queue()
        client.on_connect = lambda *_: ready.put(True)
        client.connect(broker.host, broker.port, clean_start=False, properties=properties)
        client.loop_start()
        ready.get(timeout=10)
        return client

    heard: queue.Queue[bytes] = queue.Queue()
    reader = connect("reader")
    subscribed: queue.Queue[bool] = queue.Queue()
    reader.on_subscribe = lambda *_: subscribed.put(True)
    reader.subscribe("t/#", qos=1)
    subscribed.get(timeout=10)
    reader.disconnect()
    reader.loop_stop()
    writer = connect("writer")
    writer.publish("t/a", b"kept", qos=1).wait_for_publish(10)
    writer.disconnect()
    writer.loop_stop()
    broker.restart()
    reader = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="reader", protocol=mqtt.MQTTv5)
    reader.on_message = lambda _client, _data, message: heard.put(bytes(message.payload))
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    reader.connect(broker.host, broker.port, clean_start=False, properties=properties)
    reader.loop_start()
    assert heard.get(timeout=10) == b"kept"
    reader.disconnect()
    reader.loop_stop()


def test_a_stopped_broker_refuses_connections(broker: RunningBroker) -> None:
    broker.stop()
    with pytest.raises(OSError):
        socket.create_connection((broker.host, broker.port), timeout=1)
