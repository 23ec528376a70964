"""A stand-in for a broker that refuses, in front of a real one: chosen topics and filters get a reason code of at least 0x80.

Mosquitto's rules never refuse a subscription, other brokers do. The front speaks the real MQTT 5 bytes, and everything that
is not refused is the real broker's own.
"""

import contextlib
import socket
import threading
from typing import Self

_PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK = 3, 0x40, 8, 9


class RefusingFront:
    """Forwards to a broker on the loopback.

    Args:
        target_port: the broker's.

    Attributes:
        publishes: topic prefix -> the code that a QoS 1 message below it is answered with, instead of being passed on.
        subscriptions: filter prefix -> the code in its SUBACK.
        refused: the topics and filters that were refused, in order.
    """

    def __init__(self, target_port: int) -> None:
        self.publishes: dict[str, int] = {}
        self.subscriptions: dict[str, int] = {}
        self.refused: list[str] = []
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = "127.0.0.1", int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def hang_up(self) -> None:
        """End the connections there are; new ones are taken."""
        _end(*self._sockets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for one in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target_port), timeout=5)
                far.settimeout(None)
                self._sockets += [near, far]
                lock, pending = threading.Lock(), dict[bytes, list[str]]()
                for carry in (self._carry_up, self._carry_down):
                    thread = threading.Thread(target=carry, args=(near, far, lock, pending), daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def _carry_up(self, near: socket.socket, far: socket.socket, lock: threading.Lock, pending: dict[bytes, list[str]]) -> None:
        with contextlib.suppress(OSError), near.makefile("rb") as coming:
            while head := coming.read(1):
                length, raw = _length(coming)
                body = coming.read(length)
                if head[0] >> 4 == _SUBSCRIBE:
                    pending[body[:2]] = _filters(body)
                answer = self._answer(head[0], body)
                if answer is None:
                    far.sendall(head + raw + body)
                else:
                    with lock:
                        near.sendall(answer)
        _end(near, far)

    def _carry_down(self, near: socket.socket, far: socket.socket, lock: threading.Lock, pending: dict[bytes, list[str]]) -> None:
        with contextlib.suppress(OSError), far.makefile("rb") as coming:
            while head := coming.read(1):
                length, raw = _length(coming)
                body = coming.read(length)
                if head[0] >> 4 == _SUBACK:
                    body = self._rewritten(body, pending.pop(body[:2], []))
                with lock:
                    near.sendall(head + raw + body)
        _end(near, far)

    def _answer(self, head: int, body: bytes) -> bytes | None:
        if head >> 4 != _PUBLISH or (head >> 1) & 3 != 1:
            return None
        end = 2 + int.from_bytes(body[:2])
        topic = body[2:end].decode()
        for prefix, code in list(self.publishes.items()):
            if topic.startswith(prefix):
                self.refused.append(topic)
                return bytes([_PUBACK, 3]) + body[end : end + 2] + bytes([code])
        return None

    def _rewritten(self, body: bytes, filters: list[str]) -> bytes:
        codes = bytearray(body)
        first = len(body) - len(filters)
        for place, text in enumerate(filters):
            for prefix, code in self.subscriptions.items():
                if text.startswith(prefix):
                    self.refused.append(text)
                    codes[first + place] = code
        return bytes(codes)


def _filters(body: bytes) -> list[str]:
    """The filters of a SUBSCRIBE: packet id, properties (fewer than 128 bytes), then each filter and its options."""
    at = 3 + body[2]
    found = []
    while at < len(body):
        end = at + 2 + int.from_bytes(body[at : at + 2])
        found.append(body[at + 2 : end].decode())
        at = end + 1
    return found


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
