"""When is a connection dead? Not while the network still takes what we send, however slowly.

Paho gives up when nothing was heard for two keep-alive times. One long message on a slow link takes longer: it would be
sent from its beginning again and again. So while the kernel's buffer empties, the connection lives.

And how fast may it go within one message? The rate limiter releases whole messages; here they go to the socket as the pacer says,
whatever lies below: TCP, TLS or WebSockets.

(`TCP_USER_TIMEOUT` would seem to say the same, but ends a connection whose receive window stays smaller than a segment,
however steadily it moves.)
"""

import fcntl
import socket
import struct
import termios
import threading
import time
from typing import Any, Protocol

import structlog
from paho.mqtt.enums import MQTTErrorCode

from catchment.runtime.mqtt_link import PubackClient
from edge_agent.uplink.rate_limiter import NO_LIMIT_BYTES, TokenBucket

# A rate within a message: how many bytes of what waits may go to the socket now. No IO; time is given. Thread-safe.
# The rate limiter decides which message is next, and releases it whole; a body of 200 kB is two seconds of a rate of 100 kB/s.
# Each turn copies what is left of the message, and wakes a thread: ten of them a second are even enough.
_PACE_S = 0.1


class Pacer:
    """Without a rate everything may go at once. Bytes, as they are given to the socket (TLS adds less than one per cent)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bucket = TokenBucket(0)

    def retune(self, bytes_per_s: int) -> None:
        """Another rate from now on; 0: none."""
        with self._lock:
            self._bucket.retune(bytes_per_s)

    def available_bytes(self, now_s: float) -> int:
        """Return the bytes that may go now: none, or a turn's worth."""
        if self._bucket.bytes_per_s == 0:
            return NO_LIMIT_BYTES
        with self._lock:
            available_bytes = self._bucket.available_bytes(now_s)
            return available_bytes if available_bytes >= self._turn_bytes else 0

    def sent(self, size_bytes: int) -> None:
        """Count sent bytes against the rate limit."""
        if self._bucket.bytes_per_s == 0:
            return
        with self._lock:
            self._bucket.sent(size_bytes)

    def wait_s(self, now_s: float) -> float:
        """Return the time until there is room."""
        if self._bucket.bytes_per_s == 0:
            return 0.0
        with self._lock:
            lacking_bytes = self._turn_bytes - self._bucket.available_bytes(now_s)
            # A rate that was lifted since is asked again.
            return max(0.0, lacking_bytes / max(1, self._bucket.bytes_per_s))

    @property
    def _turn_bytes(self) -> int:
        return max(1, int(self._bucket.bytes_per_s * _PACE_S))


# Where Linux's `struct tcp_info` (4.2 and later) counts the bytes that the other side acknowledged.
_BYTES_ACKED = struct.Struct("=120xQ")
_LOOK_EVERY_S = 0.5

log = structlog.get_logger(__name__)


class _HasDescriptor(Protocol):
    def fileno(self) -> int:
        """The socket's descriptor."""
        ...


class KeepaliveClient(PubackClient):
    """Paho's client, judging the keep-alive only when what goes out does not move; it bears any PUBACK."""

    _taken_bytes = 0
    _moved_s = 0.0
    # Why the socket failed, where it did; 0: it did not, or the other side closed it.
    broke_errno = 0
    _looked_s = 0.0
    _is_moving = False
    _is_cut_off = False
    _offered_bytes = 0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.pacer = Pacer()

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            return super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.broke_errno = error.errno or 0
            raise

    def want_write(self) -> bool:
        """Whether something waits and may go."""
        return super().want_write() and self.pacer.available_bytes(time.monotonic()) > 0

    def loop_misc(self) -> MQTTErrorCode:
        """Paho's housekeeping, once a second or more: the keep-alive."""
        if self._is_cut_off:
            self._sock_close()
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = now_s
            self._is_moving = self._look(now_s)
        return MQTTErrorCode.MQTT_ERR_SUCCESS if self._is_moving else super().loop_misc()

    def cut_off(self) -> None:
        """Have the network thread end the connection as it is, within a second. From any thread."""
        self._is_cut_off = True

    def _look(self, now_s: float) -> bool:
        """Whether something waits to be sent, and the other side still takes some of it."""
        open_socket = self.socket()
        if open_socket is None:
            return False
        taken = taken_bytes(open_socket)
        if taken != self._taken_bytes:
            self._taken_bytes, self._moved_s = taken, now_s
        is_waiting = super().want_write() or unsent_bytes(open_socket) > 0
        return is_waiting and now_s - self._moved_s < self.keepalive

    def _loop(self, timeout: float = 1.0) -> MQTTErrorCode:
        if super().want_write():
            # Come back when more may go. What waits behind a full socket is waited for by paho.
            timeout = min(timeout, self.pacer.wait_s(time.monotonic()) or timeout)
        return super()._loop(timeout)

    def _sock_send(self, buf: bytes | bytearray) -> int:
        # What was offered and not taken must be offered again, and no less: TLS would fail, WebSockets count on it.
        available_bytes = max(self._offered_bytes, self.pacer.available_bytes(time.monotonic()))
        if available_bytes == 0:
            raise BlockingIOError
        offered = buf if len(buf) <= available_bytes else buf[:available_bytes]
        self._offered_bytes = len(offered)
        sent_bytes = super()._sock_send(offered)
        if sent_bytes == 0:
            # Paho's WebSocket holds the rest of the frame; paho would forget the packet.
            raise BlockingIOError
        self._offered_bytes = 0
        self.pacer.sent(sent_bytes)
        return sent_bytes


def taken_bytes(opened: _HasDescriptor) -> int:
    """Return how much the other side has taken of everything written to the socket; 0 for one that is closed."""
    if opened.fileno() < 0:
        return 0
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, opened.fileno())
    try:
        info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.size)
    finally:
        # The descriptor stays paho's.
        borrowed.detach()
    return int(_BYTES_ACKED.unpack(info)[0])


def unsent_bytes(opened: _HasDescriptor) -> int:
    """Return how much the socket holds that the other side has not taken yet; 0 for one that is closed."""
    descriptor = opened.fileno()
    if descriptor < 0:
        return 0
    answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])
