"""Stand-ins for brokers with habits that Mosquitto has not, in front of a real one.

Each is a fake for one habit: a reason code of at least 0x80 (rights, quotas), or a connection that is ended on an unwanted
message (AWS IoT where a right is missing, firewalls where a pattern matches). They speak the real MQTT 5 bytes, and everything
else is the real broker's own.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import BinaryIO, Self

_PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK = 3, 0x40, 8, 9
QUOTA_EXCEEDED = 0x97


class _HangUpError(Exception):
    """The connection is to end."""


class BrokerFront:
    """Forwards whole packets to a broker on the loopback; `answer_publish` and `answer_subscribe` decide otherwise.

    Args:
        target_port: the broker's.

    Attributes:
        connections: how many there were.
    """

    def __init__(self, target_port: int) -> None:
        self.connections = 0
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host, self.port = "127.0.0.1", int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def answer_publish(self, topic: str, body: bytes) -> int | None:
        """The code that a message at QoS 1 is answered with instead of being passed on; `body` begins with its packet id."""
        return None

    def answer_subscribe(self, topic_filter: str) -> int | None:
        """The code of a filter in its SUBACK, instead of the broker's."""
        return None

    def hang_up(self) -> None:
        """End the connections there are; new ones are taken."""
        _end(*self._sockets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._listener, *self._sockets)
        for one in (self._listener, *self._sockets):
            one.close()
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
                # Whole packets under a lock: an answer of our own must not come in the middle of one.
                lock, filters = threading.Lock(), dict[bytes, list[str]]()
                for carry in (self._carry_up, self._carry_down):
                    thread = threading.Thread(target=carry, args=(near, far, lock, filters), daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def _carry_up(self, near: socket.socket, far: socket.socket, lock: threading.Lock, filters: dict[bytes, list[str]]) -> None:
        with contextlib.suppress(OSError, _HangUpError), near.makefile("rb") as coming:
            while head := coming.read(1):
                length, raw = _length(coming)
                body = coming.read(length)
                if head[0] >> 4 == _SUBSCRIBE:
                    filters[body[:2]] = _filters(body)
                answer = self._answer(head[0], body)
                if answer is None:
                    far.sendall(head + raw + body)
                else:
                    with lock:
                        near.sendall(answer)
        _end(near, far)

    def _carry_down(self, near: socket.socket, far: socket.socket, lock: threading.Lock, filters: dict[bytes, list[str]]) -> None:
        with contextlib.suppress(OSError), far.makefile("rb") as coming:
            while head := coming.read(1):
                length, raw = _length(coming)
                body = coming.read(length)
                if head[0] >> 4 == _SUBACK:
                    body = self._rewritten(body, filters.pop(body[:2], []))
                with lock:
                    near.sendall(head + raw + body)
        _end(near, far)

    def _answer(self, head: int, body: bytes) -> bytes | None:
        if head >> 4 != _PUBLISH or (head >> 1) & 3 != 1:
            return None
        end = 2 + int.from_bytes(body[:2])
        code = self.answer_publish(body[2:end].decode(), body[end:])
        return None if code is None else bytes([_PUBACK, 3]) + body[end : end + 2] + bytes([code])

    def _rewritten(self, body: bytes, filters: list[str]) -> bytes:
        codes = bytearray(body)
        first = len(body) - len(filters)
        for place, topic_filter in enumerate(filters):
            code = self.answer_subscribe(topic_filter)
            if code is not None:
                codes[first + place] = code
        return bytes(codes)


class RefusingFront(BrokerFront):
    """Refuses chosen topics and filters.

    Attributes:
        publishes: topic prefix -> the code that a QoS 1 message below it is answered with, instead of being passed on.
        passed_first: topic prefix -> how many more messages below it are passed on before `publishes` counts.
        subscriptions: filter prefix -> the code in its SUBACK.
        refused: the topics and filters that were refused, in order.
    """

    def __init__(self, target_port: int) -> None:
        self.publishes: dict[str, int] = {}
        self.passed_first: dict[str, int] = {}
        self.subscriptions: dict[str, int] = {}
        self.refused: list[str] = []
        super().__init__(target_port)

    def answer_publish(self, topic: str, body: bytes) -> int | None:
        for prefix, code in list(self.publishes.items()):
            if topic.startswith(prefix):
                if self.passed_first.get(prefix, 0) > 0:
                    self.passed_first[prefix] -= 1
                    return None
                self.refused.append(topic)
                return code
        return None

    def answer_subscribe(self, topic_filter: str) -> int | None:
        found = None
        for prefix, code in self.subscriptions.items():
            if topic_filter.startswith(prefix):
                self.refused.append(topic_filter)
                found = code
        return found


class HangUpFront(BrokerFront):
    """Ends the connection on a message that it does not want.

    Args:
        target_port: the broker's.
        is_unwanted: of a message's topic and body (with its packet id and properties), at QoS 1.

    Attributes:
        hung_up: how often it did.
    """

    def __init__(self, target_port: int, is_unwanted: Callable[[str, bytes], bool]) -> None:
        self.is_unwanted = is_unwanted
        self.hung_up = 0
        super().__init__(target_port)

    def answer_publish(self, topic: str, body: bytes) -> int | None:
        if self.is_unwanted(topic, body):
            self.hung_up += 1
            raise _HangUpError
        return None


def _filters(body: bytes) -> list[str]:
    """The filters of a SUBSCRIBE: packet id, properties (fewer than 128 bytes), then each filter and its options."""
    at = 3 + body[2]
    found = []
    while at < len(body):
        end = at + 2 + int.from_bytes(body[at : at + 2])
        found.append(body[at + 2 : end].decode())
        at = end + 1
    return found


def _length(coming: BinaryIO) -> tuple[int, bytes]:
    raw = b""
    while True:
        byte = coming.read(1)
        if not byte:
            raise ConnectionResetError
        raw += byte
        if raw[-1] < 0x80:
            return sum((one & 0x7F) << (7 * at) for at, one in enumerate(raw)), raw


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
