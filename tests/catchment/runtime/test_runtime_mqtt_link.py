"""The one way to the broker: connected means that the broker said so, and a failure names its cause."""

import socket
import threading
from typing import Self

import pytest

from catchment.runtime.mqtt_link import (
    BrokerLimits,
    PubackClient,
    RefusedByBrokerError,
    UnreachableBrokerError,
    connect_properties,
    make_client,
    open_connection,
)

CONNACK_NOT_AUTHORIZED = bytes((0x20, 3, 0, 0x87, 0))
# A receive maximum of 7 and a maximum packet size of 1,000 bytes.
CONNACK_WITH_LIMITS = bytes((0x20, 11, 0, 0, 8, 0x21, 0, 7, 0x27, 0, 0, 3, 0xE8))


class Peer:
    """Accepts one connection, reads the CONNECT, answers with given bytes, and perhaps hangs up."""

    def __init__(self, answer: bytes, *, hangs_up: bool = False) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.received = b""
        self._answer, self._hangs_up = answer, hangs_up
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listening.accept()
        with connection:
            self.received = connection.recv(4_096)
            connection.sendall(self._answer)
            while not self._hangs_up and connection.recv(4_096):
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)
        self._listening.close()


def test_an_open_connection_knows_the_broker_s_limits_and_calls_its_client_s_own() -> None:
    client, called = make_client("me", PubackClient), []
    client.on_connect = lambda *_: called.append("connected")
    client.on_disconnect = lambda *_: called.append("disconnected")
    with Peer(CONNACK_WITH_LIMITS) as peer:
        limits = open_connection(client, "127.0.0.1", peer.port, properties=connect_properties(receive_maximum=9))
        client.disconnect()
        client.loop_stop()
    assert limits == BrokerLimits(1_000, 7)
    assert called == ["connected", "disconnected"]
    assert bytes((0x21, 0, 9)) in peer.received


@pytest.mark.parametrize(
    ("answer", "hangs_up", "cause"),
    [
        (CONNACK_NOT_AUTHORIZED, False, "Not authorized"),
        (b"", True, "Unspecified error"),
        (b"", False, r"no answer within 0\.3 s"),
    ],
)
def test_a_connection_that_is_not_taken_names_its_cause_and_leaves_no_thread(answer: bytes, hangs_up: bool, cause: str) -> None:
    client, before = make_client("me", PubackClient), threading.active_count()
    with Peer(answer, hangs_up=hangs_up) as peer, pytest.raises(RefusedByBrokerError, match=cause):
        open_connection(client, "127.0.0.1", peer.port, within_s=0.3 if not answer and not hangs_up else 10)
    assert threading.active_count() == before


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 1), ("no.such.host.invalid", 1883), ("", 1883), ("127.0.0.1", -1)])
def test_a_broker_that_cannot_be_reached_is_distinguished_from_one_that_refuses(host: str, port: int) -> None:
    with pytest.raises(UnreachableBrokerError):
        open_connection(make_client("me", PubackClient), host, port)
