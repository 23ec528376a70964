"""Bring a model that the signing keys vouch for: files in pieces over MQTT, checked by a limited process.

Several pieces are in flight, each requested again when it is late. Which files are needed, and whether they are right, the
process decides (`edge_agent.models.trust`); nothing is believed before it has.
"""

import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import msgspec

from catchment.runtime.worker.limits import MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from edge_agent.errors import ModelError, ModelUnfitError, UntrustedModelError
from edge_agent.models.config import Distrusted, FileNeeded, TrustAnswer, TrustOptions, TrustRequest, Vouched
from edge_agent.uplink.downlink import ModelRequest
from schemas.envelope import Properties
from schemas.errors import SchemaError
from schemas.model import ModelSpec
from schemas.rollout import (
    MAX_PIECE_BYTES,
    STATUS_MISSING,
    STATUS_OK,
    STATUS_PROPERTY,
    TOTAL_PROPERTY,
    Desired,
    PieceRequest,
    encode_piece_request,
)

_TARGET = "edge_agent.models.trust:open_trust"
_CHECK_TIMEOUT_S = 120.0
_MEMORY_BYTES = 128 * MIB
_METADATA_BYTES = 64 * MIB
_MAX_ROUNDS = 200
# The verified bytes are copied once from where they came in.
_COPIES = 2
_SPARE_BYTES = 1024 * 1024

Held: TypeAlias = Callable[[int, str], Path | None]
Check: TypeAlias = Callable[[TrustRequest], FileNeeded | Vouched]


class FetchError(ModelError):
    """Try again later: a file of the repository did not come."""


class NotInRepositoryError(FetchError):
    """The model server does not have this file."""


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


class PieceFetcher:
    """Fetches `metadata/…` and `targets/…` of the core's repository.

    Args:
        send_request: publishes a request to the model server; may fail silently, it is asked again.
        window: pieces in flight.
        piece_bytes: bytes of one piece; below the broker's maximum packet size.
        timeout_s: how long a piece may be under way before it is asked for again.
        tries: how often each is asked for.
    """

    def __init__(
        self,
        send_request: Callable[[ModelRequest], None],
        window: int = 8,
        piece_bytes: int = 128 * 1024,
        timeout_s: float = 5.0,
        tries: int = 6,
    ) -> None:
        self._send = send_request
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

    def fetch(self, path: str, limit: int, into: Path) -> bool:
        """Write a file of the repository, at most `limit` of its bytes; whether the repository has it.

        Raises:
            FetchError: it did not come, or nobody waits for it any more.
            OSError: the disk refuses.
        """
        with into.open("wb") as file:
            try:
                for body in self._pieces(path, limit):
                    file.write(body)
            except NotInRepositoryError:
                return False
            except SchemaError as error:
                raise FetchError(f"{path}: {error}") from error
        return True

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
                    raise FetchError(f"{path} changed while it was fetched")
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
                    raise FetchError(f"{piece.request.path}: no answer to {piece.tries} requests")
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
                raise FetchError("the agent stops" if self._closed else "it is not wanted any more")
            return piece.is_here

    def _forget(self, piece: _Piece) -> None:
        with self._arrived:
            for correlation in piece.correlations:
                self._by_correlation.pop(correlation, None)


def _checked(piece: _Piece) -> bytes:
    request = piece.request
    if piece.status == STATUS_MISSING:
        raise NotInRepositoryError(f"{request.path} is not in the repository")
    if piece.status != STATUS_OK or piece.total < 0:
        raise FetchError(f"{request.path}: the model server answered {piece.status[:80]!r}")
    expected = min(request.length, max(0, piece.total - request.offset))
    if len(piece.body) != expected:
        raise FetchError(f"{request.path}: {len(piece.body)} bytes at {request.offset} where {expected} were asked for")
    return piece.body


@contextmanager
def trust_process(options: TrustOptions) -> Iterator[Check]:
    """Run the process that checks, for as long as one model is fetched.

    Raises:
        ModelError: it does not start.
    """
    limits = WorkerLimits(
        memory_bytes=_MEMORY_BYTES,
        cpu_s=round(_CHECK_TIMEOUT_S),
        file_bytes=max(options.max_bytes, _METADATA_BYTES),
        start_timeout_s=_CHECK_TIMEOUT_S,
    )
    with WorkerProcess(WorkerSpec(target=_TARGET, options=msgspec.msgpack.encode(options), limits=limits)) as worker:
        try:
            outcome = worker.start()
        except OSError as error:
            raise ModelError(f"no process to check signatures can be started: {error}") from error
        if not isinstance(outcome, Answered):
            raise ModelError(f"the process that checks signatures does not start: {outcome}")

        def check(request: TrustRequest) -> FileNeeded | Vouched:
            outcome = worker.request(msgspec.msgpack.encode(request), _CHECK_TIMEOUT_S)
            if not isinstance(outcome, Answered):
                raise ModelError(f"the signatures could not be checked: {outcome}")
            answer: TrustAnswer = msgspec.msgpack.decode(outcome.body, type=TrustAnswer)
            if isinstance(answer, Distrusted):
                kinds = {kind.__name__: kind for kind in (UntrustedModelError, ModelUnfitError)}
                raise kinds.get(answer.kind, ModelError)(answer.reason)
            return answer

        yield check


@dataclass(frozen=True, slots=True)
class TrustedModel:
    """A model's bytes on disk that the keys vouch for, and what they say it is."""

    path: Path
    digest: str
    spec: ModelSpec


class ModelFetcher:
    """Brings the bytes of a model that the keys vouch for.

    Args:
        pieces: the way to the repository.
        options: what the check needs.
        open_check: starts the check of one model.
        preflight: refuses a model by its signed description, before its bytes are fetched.
    """

    def __init__(
        self,
        pieces: PieceFetcher,
        options: TrustOptions,
        open_check: Callable[[TrustOptions], AbstractContextManager[Check]] = trust_process,
        preflight: Callable[[ModelSpec], None] = lambda _spec: None,
    ) -> None:
        self._preflight = preflight
        self._pieces = pieces
        self._options = options
        self._open_check = open_check
        self._fetched = Path(options.fetched)
        shutil.rmtree(self._fetched, ignore_errors=True)  # of a fetch that a kill ended

    def fetch(self, desired: Desired, into: Path, held: Held) -> TrustedModel:
        """Bring the desired model's bytes into a file.

        Args:
            desired: which model.
            into: where they go.
            held: where the bytes of a version with a digest are already, whole; then they are not fetched.

        Raises:
            UntrustedModelError: tampered, rolled back, foreign, or signed as another model.
            ModelUnfitError: too large for this device, or it needs what is not here.
            ModelError: the repository cannot be reached or is expired by this device's clock, or the disk refuses.
        """
        files: dict[str, str] = {}
        try:
            self._fetched.mkdir(parents=True, exist_ok=True)
            with self._open_check(self._options) as check:
                vouched = self._ask(check, TrustRequest(desired, files))
                self._preflight(vouched.spec)
                path = held(vouched.spec.version, vouched.digest)
                if path is None:
                    vouched = self._ask(check, TrustRequest(desired, files, str(into.absolute())))
        except (FetchError, OSError) as error:
            raise ModelError(f"{desired.target} cannot be fetched: {error}") from error
        finally:
            shutil.rmtree(self._fetched, ignore_errors=True)
        return TrustedModel(path or into, vouched.digest, vouched.spec)

    def _ask(self, check: Check, request: TrustRequest) -> Vouched:
        """Fetch what the check needs, file by file, until it is done. `request.files` grows by each."""
        for _ in range(_MAX_ROUNDS):
            answer = check(request)
            if isinstance(answer, Vouched):
                return answer
            if request.into:
                self._demand_room(request.desired, answer.max_bytes)
            name = f"{len(request.files)}"
            # One byte more than is allowed shows that a file is too long.
            is_there = self._pieces.fetch(answer.path, answer.max_bytes + 1, self._fetched / name)
            request.files[answer.path] = name if is_there else ""
        raise ModelError(f"{request.desired.target} needs more than {_MAX_ROUNDS} files")

    def _demand_room(self, desired: Desired, size_bytes: int) -> None:
        needed = _COPIES * size_bytes + _SPARE_BYTES
        free = shutil.disk_usage(self._fetched).free
        if free < needed:
            raise ModelError(f"disk: {desired.target} needs {needed:,} bytes while it is fetched, and {free:,} are free")
