"""TUF's way to the repository: files asked for in pieces over MQTT, several in flight, each asked again when it is late."""

import secrets
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tuf.api.exceptions import DownloadError, DownloadHTTPError, DownloadLengthMismatchError
from tuf.ngclient.fetcher import FetcherInterface

from edge_agent.uplink.downlink import ModelRequest
from schemas.envelope import Properties
from schemas.errors import SchemaError
from schemas.rollout import (
    MAX_PIECE_BYTES,
    STATUS_MISSING,
    STATUS_OK,
    STATUS_PROPERTY,
    TOTAL_PROPERTY,
    PieceRequest,
    encode_piece_request,
)

BASE_URL = "catchment://models/"
_ENDLESS = 1 << 62


@dataclass(slots=True)
class _Piece:
    """One piece under way."""

    request: PieceRequest
    due_s: float = 0.0
    tries: int = 0
    correlations: set[bytes] = field(default_factory=set)
    body: bytes = b""
    total: int = 0
    status: str = ""

    @property
    def is_here(self) -> bool:
        return bool(self.status)


class PieceFetcher(FetcherInterface):
    """Fetches `metadata/…` and `targets/…` of the core's repository.

    Args:
        send_request: publishes a request to the model server; may fail silently, it is asked again.
        folder: where a download lies until it is verified; on the device's disk, never in a memory-backed /tmp.
        window: pieces in flight.
        piece_bytes: bytes of one piece; below the broker's maximum packet size.
        timeout_s: how long a piece may be under way before it is asked for again.
        tries: how often each is asked for.
    """

    def __init__(
        self,
        send_request: Callable[[ModelRequest], None],
        folder: Path,
        window: int = 8,
        piece_bytes: int = 128 * 1024,
        timeout_s: float = 5.0,
        tries: int = 6,
    ) -> None:
        self._send = send_request
        self._folder = folder
        self._window = window
        self._piece_bytes = min(piece_bytes, MAX_PIECE_BYTES)
        self._timeout_s = timeout_s
        self._tries = tries
        self._arrived = threading.Condition()
        self._by_correlation: dict[bytes, _Piece] = {}
        self._closed = False
        self._is_interrupted = False

    def on_piece(self, correlation: bytes, properties: Properties, body: bytes) -> None:
        """A piece came. One that nobody asked for, or that came twice, is skipped."""
        known = dict(properties)
        with self._arrived:
            piece = self._by_correlation.get(correlation)
            if piece is None or piece.is_here:
                return
            total = known.get(TOTAL_PROPERTY, "")
            piece.total = int(total) if total.isdecimal() and len(total) < 16 else -1
            piece.body = body
            piece.status = known.get(STATUS_PROPERTY, "(none)")
            self._arrived.notify_all()

    def begin(self) -> None:
        """Allow fetches again after `interrupt`."""
        with self._arrived:
            self._is_interrupted = False

    def interrupt(self) -> None:
        """End the fetch under way: its file is not wanted any more."""
        with self._arrived:
            self._is_interrupted = True
            self._arrived.notify_all()

    def close(self) -> None:
        """End every fetch: the agent stops."""
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As the interface says, but onto the device's own disk and never asking beyond `max_length` + 1 bytes."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            received = 0
            for body in self._guarded(url, max_length + 1):
                received += len(body)
                if received > max_length:
                    raise DownloadLengthMismatchError(f"{url}: more than the {max_length} bytes that the signed metadata allow")
                file.write(body)
            file.seek(0)
            yield file

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self._guarded(url, _ENDLESS)

    def _guarded(self, url: str, limit: int) -> Iterator[bytes]:
        if not url.startswith(BASE_URL):
            raise DownloadError(f"{url} is not of this repository")
        try:
            yield from self._pieces(url.removeprefix(BASE_URL), limit)
        except SchemaError as error:
            raise DownloadError(f"{url}: {error}") from error

    def _pieces(self, path: str, limit: int) -> Iterator[bytes]:
        """The file's bytes in order, at most `limit`. The first piece tells how long the file is."""
        first = self._ask(PieceRequest(path, 0, min(self._piece_bytes, limit)))
        yield self._wait(first)
        total = first.total
        window: deque[_Piece] = deque()
        offset = first.request.length
        try:
            while window or offset < min(total, limit):
                while len(window) < self._window and offset < min(total, limit):
                    length = min(self._piece_bytes, total - offset, limit - offset)
                    window.append(self._ask(PieceRequest(path, offset, length)))
                    offset += length
                piece = window.popleft()
                body = self._wait(piece)
                if piece.total != total:
                    raise DownloadError(f"{path} changed while it was fetched")
                yield body
        finally:
            for piece in window:
                self._forget(piece)

    def _ask(self, request: PieceRequest) -> _Piece:
        piece = _Piece(request)
        self._send_again(piece)
        return piece

    def _send_again(self, piece: _Piece) -> None:
        correlation = secrets.token_bytes(12)
        with self._arrived:
            piece.correlations.add(correlation)
            self._by_correlation[correlation] = piece
        piece.tries += 1
        piece.due_s = time.monotonic() + self._timeout_s
        self._send(ModelRequest(correlation=correlation, body=encode_piece_request(piece.request)))

    def _wait(self, piece: _Piece) -> bytes:
        try:
            while not self._has_come(piece):
                if piece.tries >= self._tries:
                    raise DownloadError(f"{piece.request.path}: no answer to {piece.tries} requests")
                self._send_again(piece)
        finally:
            self._forget(piece)
        return _checked(piece)

    def _has_come(self, piece: _Piece) -> bool:
        """Wait for a piece until it is late."""
        with self._arrived:
            is_over = lambda: piece.is_here or self._closed or self._is_interrupted  # noqa: E731
            self._arrived.wait_for(is_over, max(0.0, piece.due_s - time.monotonic()))
            if self._closed or self._is_interrupted:
                raise DownloadError("the agent stops" if self._closed else "it is not wanted any more")
            return piece.is_here

    def _forget(self, piece: _Piece) -> None:
        with self._arrived:
            for correlation in piece.correlations:
                self._by_correlation.pop(correlation, None)


def _checked(piece: _Piece) -> bytes:
    request = piece.request
    if piece.status == STATUS_MISSING:
        raise DownloadHTTPError(f"{request.path} is not in the repository", 404)
    if piece.status != STATUS_OK or piece.total < 0:
        raise DownloadError(f"{request.path}: the model server answered {piece.status[:80]!r}")
    expected = min(request.length, max(0, piece.total - request.offset))
    if len(piece.body) != expected:
        raise DownloadError(f"{request.path}: {len(piece.body)} bytes at {request.offset} where {expected} were asked for")
    return piece.body
