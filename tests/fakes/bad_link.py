"""A network between agent and broker that is slow, and that breaks: a real TCP proxy, on a port of its own."""

import contextlib
import socket
import struct
import threading
import time
from typing import Self

_CHUNK_BYTES = 64 * 1024
_SLOW_BUFFER_BYTES = 16 * 1024


class BadLink:
    """Forwards to a port; what goes up can be slowed down, and a connection reset after so many bytes or seconds.

    Args:
        target_port: the broker's, on the loopback.
        cut_after_bytes: of each connection, going up; None: never.
        cut_after_s: of each connection; None: never.
        bytes_per_s: going up; None: as fast as it goes.
    """

    def __init__(
        self,
        target_port: int,
        *,
        cut_after_bytes: int | None = None,
        cut_after_s: float | None = None,
        bytes_per_s: int | None = None,
    ) -> None:
        self.host = "127.0.0.1"
        self.cut_after_bytes = cut_after_bytes
        self.cut_after_s = cut_after_s
        self.bytes_per_s = bytes_per_s
        self.cuts = 0
        self.connections = 0
        self.bytes_up = 0
        self._target_port = target_port
        self._is_closed = False
        self._listener = socket.create_server((self.host, 0))
        if bytes_per_s is not None:
            # A slow link has little buffer; what is accepted from here inherits it.
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_BUFFER_BYTES)
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Take no more connections."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((self.host, self._target_port), timeout=5)
            except OSError:
                near.close()
                continue
            self.connections += 1
            for target in (self._carry_up, self._carry_down):
                thread = threading.Thread(target=target, args=(near, far), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _carry_up(self, near: socket.socket, far: socket.socket) -> None:
        began_s, carried = time.monotonic(), 0
        near.settimeout(0.05)
        while not self._is_closed:
            lasted_s = time.monotonic() - began_s
            if (self.cut_after_s is not None and lasted_s > self.cut_after_s) or (
                self.cut_after_bytes is not None and carried > self.cut_after_bytes
            ):
                self.cuts += 1
                break
            if self.bytes_per_s is not None and carried > lasted_s * self.bytes_per_s:
                time.sleep(0.02)
                continue
            try:
                piece = near.recv(_CHUNK_BYTES if self.bytes_per_s is None else 4_096)
                if not piece:
                    break
                far.sendall(piece)
            except TimeoutError:
                continue
            except OSError:
                break
            carried += len(piece)
            self.bytes_up += len(piece)
        self._reset(near, far)

    def _carry_down(self, near: socket.socket, far: socket.socket) -> None:
        far.settimeout(0.5)
        while not self._is_closed:
            try:
                piece = far.recv(_CHUNK_BYTES)
                if not piece:
                    break
                near.sendall(piece)
            except TimeoutError:
                continue
            except OSError:
                break
        self._reset(near, far)

    @staticmethod
    def _reset(*sockets: socket.socket) -> None:
        """As a link breaks: what is on its way is gone, on both sides."""
        for one in sockets:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
