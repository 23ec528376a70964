import socket
import threading
from collections.abc import Iterator

import pytest

from pipelines.demo.stage import Proxy


@pytest.fixture
def echo_port() -> Iterator[int]:
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65_536):
                connection.sendall(data)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def echoed(client: socket.socket, data: bytes) -> bytes:
    client.sendall(data)
    back = b""
    while len(back) < len(data):
        back += client.recv(65_536)
    return back


def is_cut(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_bytes_pass_both_ways(echo_port: int) -> None:
    with Proxy(echo_port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        data = bytes(range(256)) * 4_000
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        back = b""
        while len(back) < len(data):
            back += client.recv(65_536)
        sender.join()
        assert back == data


def test_a_dropped_network_closes_what_is_open_and_refuses_what_comes(echo_port: int) -> None:
    with Proxy(echo_port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        assert echoed(client, b"there") == b"there"
        proxy.down()
        assert is_cut(client)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port), 10)


def test_the_network_comes_back_on_the_same_port(echo_port: int) -> None:
    with Proxy(echo_port) as proxy:
        port = proxy.port
        proxy.down()
        proxy.up()
        assert proxy.port == port
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            assert echoed(client, b"again") == b"again"


def test_a_broker_that_is_away_looks_like_a_closed_connection() -> None:
    unused = socket.create_server(("127.0.0.1", 0))
    port = unused.getsockname()[1]
    unused.close()
    with Proxy(port) as proxy, socket.create_connection(("127.0.0.1", proxy.port), 10) as client:
        assert is_cut(client)
