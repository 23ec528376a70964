"""A stand-in for a proxy, or a broker for hire, that hangs up on a message it does not want; a real broker is behind it.

It is a fake for that one habit (AWS IoT does so where a right is missing, firewalls where a pattern matches): it speaks the real
MQTT 5 bytes, and everything else is the real broker's own.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

_PUBLISH = 3


class HangUpFront:
    """Forwards to a broker on the loopback.

    Args:
        target_port: the broker's.
        is_unwanted: of a message's topic and body (with its properties), at QoS 1.

    Attributes:
        hung_up: how often it did.
        connections: how many there were.
    """

    def __init__(self, target_port: int, is_unwanted: Callable[[str, bytes], bool]) -> None:
        self.is_unwanted = is_unwanted
        self.hung_up = 0
        self.connections = 0
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = "127.0.0.1", int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._listener, *self._sockets)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
                far.settimeout(None)
                self.connections += 1
                self._sockets += [near, far]
                for carry in (self._carry_up, self._carry_down):
                    thread = threading.Thread(target=carry, args=(near, far), daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def _carry_up(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError), near.makefile("rb") as coming:
            while head := coming.read(1):
                length, raw = _length(coming)
                body = coming.read(length)
                if head[0] >> 4 == _PUBLISH and (head[0] >> 1) & 3 == 1:
                    end = 2 + int.from_bytes(body[:2])
                    if self.is_unwanted(body[2:end].decode(), body[end:]):
                        self.hung_up += 1
                        break
                far.sendall(head + raw + body)
        _end(near, far)

    @staticmethod
    def _carry_down(near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := far.recv(65_536):
                near.sendall(piece)
        _end(near, far)


def _length(coming) -> tuple[int, bytes]:  # a buffered reader
    raw = b""
    while True:
        raw += coming.read(1)
        if raw[-1] < 0x80:
            return sum((byte & 0x7F) << (7 * at) for at, byte in enumerate(raw)), raw


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
