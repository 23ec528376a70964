"""When is a connection dead? Not while the network still takes what we send, however slowly.

Paho gives up when nothing was heard for two keep-alive times. One long message on a slow link takes longer: it would be
sent from its beginning again and again, for ever. So while the kernel's buffer empties, the connection lives.

And how fast may it go within one message? The governor sends whole messages; the kernel spreads them.

(`TCP_USER_TIMEOUT` would seem to say the same, but ends a connection whose receive window stays smaller than a segment,
however steadily it moves.)
"""

import fcntl
import socket
import struct
import termios
import time
from typing import Any, Literal, Protocol

import paho.mqtt.client as mqtt
from paho.mqtt.enums import MQTTErrorCode

# Linux's; the socket module has no name for it.
_SO_MAX_PACING_RATE = 47
_NO_PACE = 0xFFFF_FFFF
_PACE_MARGIN = 1.1
# In a PUBACK: where its reason code stands, which ones MQTT 5 lists, and the one of these that says nothing more.
_CODE_AT = 2
_LISTED = frozenset({0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99})
_UNSPECIFIED = 0x80


class _HasDescriptor(Protocol):
    def fileno(self) -> int:
        """The socket's descriptor."""
        ...


class PatientClient(mqtt.Client):
    """Paho's client, judging the keep-alive only when what goes out does not move.

    It also bears a refusal whose code the standard does not list: Mosquitto answers a message above its
    `message_size_limit` with 0x95, which MQTT 5 gives to other packets alone. Paho would break the connection, and the same
    message would break the next one, for ever.
    """

    _unsent_bytes = 0
    _moved_s = 0.0
    # Why the socket failed, where it did; 0: it did not, or the other side closed it.
    broke_errno = 0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._unlisted: dict[int, int] = {}

    def take_code(self, mid: int, listed: int) -> int:
        """The reason code the broker answered a message with, where paho tells a listed one."""
        return self._unlisted.pop(mid, listed)

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        body = self._in_packet["packet"]
        if cmd == "PUBACK" and len(body) > _CODE_AT and body[_CODE_AT] not in _LISTED:
            self._unlisted[int.from_bytes(body[:_CODE_AT])] = body[_CODE_AT]
            body = bytearray(body)
            body[_CODE_AT] = _UNSPECIFIED
            self._in_packet["packet"] = body
        return super()._handle_pubackcomp(cmd)

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            return super()._sock_recv(bufsize)
        except BlockingIOError:
            raise
        except OSError as error:
            self.broke_errno = error.errno or 0
            raise

    def loop_misc(self) -> MQTTErrorCode:
        """Paho's housekeeping, once a second or more: the keep-alive."""
        open_socket = self.socket()
        waiting_bytes = 0 if open_socket is None else unsent_bytes(open_socket)
        now_s = time.monotonic()
        if waiting_bytes != self._unsent_bytes:
            self._unsent_bytes, self._moved_s = waiting_bytes, now_s
        if waiting_bytes > 0 and now_s - self._moved_s < self.keepalive:
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super().loop_misc()


def pace(opened: _HasDescriptor | None, bytes_per_s: int) -> None:
    """Have the kernel send no faster. It counts the packets' heads too, so it is allowed a little more than the governor."""
    if opened is None or opened.fileno() < 0:
        return
    most = min(_NO_PACE, int(bytes_per_s * _PACE_MARGIN)) if bytes_per_s else _NO_PACE
    borrowed = socket.socket(fileno=opened.fileno())
    try:
        borrowed.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, struct.pack("=I", most))
    finally:
        # The descriptor stays paho's.
        borrowed.detach()


def unsent_bytes(opened: _HasDescriptor) -> int:
    """What the socket holds that the other side has not taken yet; 0 for one that is closed."""
    descriptor = opened.fileno()
    if descriptor < 0:
        return 0
    answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("i", answer)[0])
