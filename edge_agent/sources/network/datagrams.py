"""A UDP socket that says what it lost: datagrams above the limit, and those the kernel dropped because nobody read."""

import socket
import struct
from typing import NamedTuple

import structlog

from edge_agent.errors import SourceError
from edge_agent.sources.rejects import Rejects

# Not in Python's socket module; the numbers are Linux's.
_SO_RXQ_OVFL = 40
_SO_RCVBUFFORCE = 33
_ANCILLARY_BYTES = 64
KERNEL_DROPPED = "row: dropped by the kernel: its receive buffer was full"

log = structlog.get_logger(__name__)


class Datagram(NamedTuple):
    """One datagram and who sent it."""

    peer: str
    body: bytes


class DatagramSocket:
    """Receives without waiting.

    Args:
        host: address to bind.
        port: port to bind.
        buffer_bytes: asked of the kernel; it may give less, which is logged.
        max_bytes: of a datagram; a longer one is refused and counted.
        rejects: where.

    Raises:
        SourceError: the address cannot be bound.
    """

    def __init__(self, host: str, port: int, buffer_bytes: int, max_bytes: int, rejects: Rejects) -> None:
        self._max = max_bytes
        self._rejects = rejects
        self._dropped = 0
        self.socket = bound_socket(host, port, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
        except OSError:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        given = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel tells twice what it gave
        if given < buffer_bytes:
            log.warning("receive_buffer_small", hint="raise net.core.rmem_max", wanted_bytes=buffer_bytes, given_bytes=given)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        except OSError as error:
            log.warning("kernel_drops_not_counted", error=str(error))

    @property
    def port(self) -> int:
        """The port it is bound to."""
        return int(self.socket.getsockname()[1])

    def receive(self, most: int) -> list[Datagram]:
        """At most so many datagrams, none where none is there."""
        found: list[Datagram] = []
        while len(found) < most:
            try:
                body, ancillary, flags, sender = self.socket.recvmsg(self._max, _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                continue  # an answer to something sent from here; nothing of ours is lost
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, _SO_RXQ_OVFL):
                    self._count_dropped(struct.unpack("=I", data[:4])[0])
            if flags & socket.MSG_TRUNC:
                self._rejects.count(f"row: message above {self._max} bytes")
                continue
            found.append(Datagram(str(sender[0]), body))
        return found

    def _count_dropped(self, total: int) -> None:
        fresh = (total - self._dropped) & 0xFFFF_FFFF
        self._dropped = total
        if fresh:
            self._rejects.count(KERNEL_DROPPED, times=fresh)

    def close(self) -> None:
        """Close the port."""
        self.socket.close()


def bound_socket(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    """A socket at this address.

    Raises:
        SourceError: it is no address of this machine, or another process has it.
    """
    made = None
    try:
        family, kind_, protocol, _, address = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind_, protocol)
        if kind is socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        if made is not None:
            made.close()
        raise SourceError(
            f"cannot listen at {host} port {port} ({error.strerror or error}); is another program there? Ports below 1024"
            " need CAP_NET_BIND_SERVICE"
        ) from error
    return made
