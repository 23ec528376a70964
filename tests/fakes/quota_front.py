"""A stand-in for a broker with quotas, in front of a real one: all passes through, but samples over the quota are refused.

It is a fake for one reason code. Mosquitto 2.0 has no setting that answers a message at QoS 1 with 0x97 (quota exceeded), as
brokers for hire do; it speaks the real MQTT 5 bytes, and everything else is the real broker's own.
"""

import contextlib
import socket
import threading
from typing import Self

_PUBLISH, _PUBACK = 3, 0x40
QUOTA_EXCEEDED = 0x97


class QuotaFront:
    """Forwards to a broker on the loopback.

    Args:
        target_port: the broker's.
        prefix: messages at QoS 1 below this topic count.

    Attributes:
        allowed: so many more are let through; None: all.
        refused: how many were answered with 0x97.
    """

    def __init__(self, target_port: int, prefix: str, allowed: int | None) -> None:
        self.allowed = allowed
        self.refused = 0
        self._prefix = prefix.encode()
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

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
                lock = threading.Lock()
                for carry in (self._carry_up, self._carry_down):
                    thread = threading.Thread(target=carry, args=(near, far, lock), daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def _carry_up(self, near: socket.socket, far: socket.socket, lock: threading.Lock) -> None:
        with contextlib.suppress(OSError), near.makefile("rb") as coming:
            while head := coming.read(1):
                length, raw = _length(coming)
                body = coming.read(length)
                packet_id = self._over_quota(head[0], body)
                if packet_id is None:
                    far.sendall(head + raw + body)
                else:
                    with lock:
                        near.sendall(bytes([_PUBACK, 3]) + packet_id + bytes([QUOTA_EXCEEDED]))
        _end(near, far)

    @staticmethod
    def _carry_down(near: socket.socket, far: socket.socket, lock: threading.Lock) -> None:
        # Whole packets: an answer of our own must not come in the middle of one.
        with contextlib.suppress(OSError), far.makefile("rb") as coming:
            while head := coming.read(1):
                length, raw = _length(coming)
                body = coming.read(length)
                with lock:
                    near.sendall(head + raw + body)
        _end(near, far)

    def _over_quota(self, head: int, body: bytes) -> bytes | None:
        """The packet id of a message that is over the quota."""
        if head >> 4 != _PUBLISH or (head >> 1) & 3 != 1 or self.allowed is None:
            return None
        end = 2 + int.from_bytes(body[:2])
        if not body[2:end].startswith(self._prefix):
            return None
        if self.allowed > 0:
            self.allowed -= 1
            return None
        self.refused += 1
        return body[end : end + 2]


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
