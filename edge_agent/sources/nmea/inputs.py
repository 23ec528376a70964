"""Bytes from a serial line or over TCP, read without waiting longer than asked."""

import os
import select
import socket
import termios
from typing import Protocol

from edge_agent.errors import SourceError
from edge_agent.sources.network.sockets import HostPort

_CHUNK_BYTES = 64 * 1024


class ByteInput(Protocol):
    """Where bytes come from."""

    def read(self, wait_s: float) -> bytes:
        """What has come; empty where nothing comes in time.

        Raises:
            SourceError: it is over.
        """
        ...

    def close(self) -> None:
        """Close it."""
        ...


class SerialInput:
    """A serial line: 8 data bits, no parity, one stop bit.

    Args:
        path: of the device.
        baud: bits per second, one of the kernel's own numbers.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(self, path: str, baud: int) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"{path} cannot be opened ({error.strerror}); may the agent's user read it?") from error
        try:
            _make_raw(self._fd, baud)
        except (OSError, termios.error) as error:
            os.close(self._fd)
            raise SourceError(f"{path} cannot be used as a serial line ({error.args[-1]}); is it one?") from error

    def read(self, wait_s: float) -> bytes:
        """What has come."""
        if not select.select([self._fd], [], [], wait_s)[0]:
            return b""
        try:
            piece = os.read(self._fd, _CHUNK_BYTES)
        except OSError as error:
            raise SourceError(f"{self._path} went away: {error.strerror}") from error
        if not piece:
            raise SourceError(f"{self._path} went away")
        return piece

    def close(self) -> None:
        """Close the device."""
        os.close(self._fd)


class TcpInput:
    """A connection to a server that talks by itself, or once it was greeted.

    Raises:
        SourceError: nobody answers.
    """

    def __init__(self, at: HostPort, greeting: bytes, timeout_s: float) -> None:
        self._name = f"{at.host} port {at.port}"
        try:
            self._socket = socket.create_connection((at.host, at.port), timeout_s)
        except OSError as error:
            raise SourceError(f"{self._name} does not answer ({error.strerror or error}); it is tried again") from error
        try:
            self._socket.sendall(greeting)
        except OSError as error:
            self._socket.close()
            raise SourceError(f"{self._name} does not answer ({error.strerror or error}); it is tried again") from error

    def read(self, wait_s: float) -> bytes:
        """What has come."""
        if not select.select([self._socket], [], [], wait_s)[0]:
            return b""
        try:
            piece = self._socket.recv(_CHUNK_BYTES)
        except OSError as error:
            raise SourceError(f"the connection to {self._name} broke: {error.strerror or error}") from error
        if not piece:
            raise SourceError(f"{self._name} closed the connection")
        return piece

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def speeds() -> dict[int, int]:
    """Bits per second -> the kernel's constant."""
    found = {name[1:]: value for name, value in vars(termios).items() if name.startswith("B") and name[1:].isdigit()}
    return {int(name): value for name, value in found.items() if int(name) > 0}


def _make_raw(fd: int, baud: int) -> None:
    mode = termios.tcgetattr(fd)
    speed = speeds()[baud]
    mode[0] = mode[1] = mode[3] = 0  # no translation, no flow control, no echo, no lines
    mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
    mode[4] = mode[5] = speed
    termios.tcsetattr(fd, termios.TCSANOW, mode)
