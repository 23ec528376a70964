"""Listen for datagrams (UDP) and connections (TCP, TLS) without waiting, bounded in number and in bytes held.

Addresses are URLs: udp://0.0.0.0:514, tls://[::]:6514. Datagrams above the limit and those that the kernel dropped are counted.
"""

import selectors
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

import structlog

from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Rejects

# Not in Python's socket module; the numbers are Linux's.
_SO_RXQ_OVFL = 40
_SO_RCVBUFFORCE = 33
_ANCILLARY_BYTES = 64
KERNEL_DROPPED = "row: dropped by the kernel: its receive buffer was full"

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 64 * 1024
_AHEAD = 4  # so many times what was asked for is held at most, but for one chunk's worth
_BACKLOG = 128
_HELD_S = 0.25  # after so long without a byte, what may be a whole message is one


@dataclass(frozen=True, slots=True)
class HostPort:
    """An address: udp, tcp or tls, host and port."""

    scheme: str
    host: str
    port: int


def read_address(kind: str, text: str, schemes: Collection[str]) -> HostPort:
    """Read an address.

    Raises:
        ConfigError: it is none, or not one of these schemes; names the source's kind.
    """
    example = f"{min(schemes)}://127.0.0.1:5514"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"source {kind!r}: {text!r} is no address: {error}; write {example}") from error
    if parts.scheme not in schemes or not parts.hostname or port is None or parts.path or parts.query:
        raise ConfigError(f"source {kind!r}: {text!r} is no address like {example} ({', '.join(sorted(schemes))})")
    return HostPort(parts.scheme, parts.hostname, port)


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


class Frames(Protocol):
    """Cuts one connection's bytes into messages."""

    def add(self, piece: bytes) -> list[bytes]:
        """More bytes; the messages that are whole now."""
        ...

    @property
    def is_held(self) -> bool:
        """Whether a message waits until what follows shows where it ends."""
        ...

    def idle(self) -> list[bytes]:
        """Return what waits and counts as a message, because nothing followed for a while."""
        ...

    def end(self) -> list[bytes]:
        """The connection is over; what is left that counts as a message."""
        ...


class _Connection:
    def __init__(self, opened: socket.socket, peer: str, frames: Frames) -> None:
        self.socket = opened
        self.peer = peer
        self.frames = frames
        self.heard_s = time.monotonic()

    def messages(self) -> tuple[list[bytes], bool, OSError | None]:
        """Return the messages that arrived, whether the connection is still open, and the error that broke it."""
        found: list[bytes] = []
        self.heard_s = time.monotonic()
        try:
            piece = self.socket.recv(_CHUNK_BYTES)
            if not piece:
                return self.frames.end(), False, None
            found += self.frames.add(piece)
            # What is decrypted already no selector sees.
            while isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
                found += self.frames.add(self.socket.recv(_CHUNK_BYTES))
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return found, True, None
        except OSError as error:
            return found + self.frames.end(), False, error
        return found, True, None


class SocketInbox:
    """All sockets of a listening source.

    Args:
        make_frames: for each new connection.
        max_connections: more are closed at once, and counted.
        rejects: where.
    """

    def __init__(self, make_frames: Callable[[], Frames], max_connections: int, rejects: Rejects) -> None:
        self._make_frames = make_frames
        self._max_connections = max_connections
        self._rejects = rejects
        self._selector = selectors.DefaultSelector()
        self._connections: set[_Connection] = set()
        self._waiting: deque[Datagram] = deque()

    def add_datagrams(self, made: DatagramSocket) -> int:
        """Receive datagrams as well; returns the port."""
        self._selector.register(made.socket, selectors.EVENT_READ, made)
        return made.port

    def add_listener(self, host: str, port: int, context: ssl.SSLContext | None) -> int:
        """Accept connections as well, by TLS where there is a context; returns the port.

        Raises:
            SourceError: the address cannot be bound.
        """
        made = bound_socket(host, port, socket.SOCK_STREAM)
        made.listen(_BACKLOG)
        made.setblocking(False)
        self._selector.register(made, selectors.EVENT_READ, (made, context))
        return int(made.getsockname()[1])

    def take(self, most: int, wait_s: float) -> list[Datagram]:
        """At most so many messages, in the order they came; waits for the first."""
        if len(self._waiting) < most:
            self._receive(most, 0 if self._waiting else wait_s)
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]

    def _receive(self, most: int, wait_s: float) -> None:
        for key, _ in self._selector.select(wait_s):
            if len(self._waiting) > _AHEAD * most:
                return  # the kernel holds the rest
            if isinstance(key.data, DatagramSocket):
                self._waiting.extend(key.data.receive(most))
            elif isinstance(key.data, _Connection):
                self._read(key.data)
            else:
                self._accept(*key.data)
        self._release_held()

    def _release_held(self) -> None:
        """Messages whose end only what follows could tell, where nothing follows."""
        before_s = time.monotonic() - _HELD_S
        for connection in self._connections:
            if connection.frames.is_held and connection.heard_s <= before_s:
                self._waiting.extend(Datagram(connection.peer, message) for message in connection.frames.idle())

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        try:
            opened, address = listener.accept()
        except OSError as error:
            self._rejects.count(f"connection: not accepted: {error.strerror}")
            return
        if len(self._connections) >= self._max_connections:
            opened.close()
            self._rejects.count(f"connection: above {self._max_connections}", address[0])
            return
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a sender that lost power must not hold a place
            if context is not None:
                opened = context.wrap_socket(opened, server_side=True, do_handshake_on_connect=False)
        except OSError as error:
            # It is gone already, as a port scanner is: no reason to close on those that stay.
            opened.close()
            self._count_broken(error, address[0])
            return
        connection = _Connection(opened, str(address[0]), self._make_frames())
        self._connections.add(connection)
        self._selector.register(opened, selectors.EVENT_READ, connection)

    def _read(self, connection: _Connection) -> None:
        found, is_open, error = connection.messages()
        if error is not None:
            # A reset, or a handshake that failed: this sender's concern alone.
            self._count_broken(error, connection.peer)
        self._waiting.extend(Datagram(connection.peer, message) for message in found)
        if not is_open:
            self._drop(connection)

    def _count_broken(self, error: OSError, peer: str) -> None:
        reason = getattr(error, "reason", None) or error.strerror
        self._rejects.count(f"connection: broke: {reason}", peer)

    def _drop(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._selector.unregister(connection.socket)
        connection.socket.close()

    def close(self) -> None:
        """Close every socket."""
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
