"""Samples of a running agent's own source, for a trial: a port or a device that only one program can read.

The trial's program listens on a socket in the agent's state folder and asks for samples; the agent's main thread finds the
socket, copies what the source gives anyway, and answers. Nothing is written to disk; a trial that ends is forgotten.
"""

import contextlib
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_agent.capture.pump import SourcePump, Tap
from edge_agent.errors import AgentError
from edge_agent.sources.api import SampleBatch
from edge_agent.trial.asking import TAP_PREFIX, TAP_SUFFIX
from edge_agent.trial.reading import SourceCounts, make_trial
from edge_agent.trial.result import Trial

MAX_SAMPLES = 10_000

_MAX_BYTES = 64 * 1024 * 1024
_ANSWER_S = 2.0


class TapRequest(msgspec.Struct, frozen=True):
    """Samples of the source of this name, at most so many, that come within so many seconds."""

    source: str
    samples: int
    wait_s: float


class NotRunningError(AgentError):
    """The running agent has no such source, or does not answer: read it another way."""


@dataclass(slots=True)
class _Asking:
    connection: socket.socket
    request: TapRequest
    source: SourcePump
    until_s: float


class TapServer:
    """The agent's side; used by its main thread alone.

    Args:
        folder: the state folder.
        sources: those that run now.
        now_s: monotonic time.
    """

    def __init__(self, folder: Path, sources: Callable[[], Sequence[SourcePump]], now_s: Callable[[], float]) -> None:
        self._folder = folder
        self._sources = sources
        self._now_s = now_s
        self._asking: list[_Asking] = []
        self._seen: set[str] = set()

    def serve(self) -> None:
        """Take up new requests and answer those that are done; never waits for long."""
        for path in sorted(self._folder.glob(f"{TAP_PREFIX}*{TAP_SUFFIX}")):
            if path.name not in self._seen:
                self._seen.add(path.name)
                self._take_up(path)
        self._asking = [asking for asking in self._asking if not self._is_done(asking)]
        if not self._asking and len(self._seen) > 1_000:
            self._seen.clear()

    def _take_up(self, path: Path) -> None:
        try:
            connection = _connected(path)
        except OSError:
            path.unlink(missing_ok=True)  # the trial is gone
            return
        try:
            connection.settimeout(_ANSWER_S)
            request = msgspec.json.decode(_line(connection), type=TapRequest)
            source = next((source for source in self._sources() if source.config.name == request.source), None)
            if source is None or any(asking.source is source for asking in self._asking):
                connection.close()
                return
            source.tap(max(1, min(request.samples, MAX_SAMPLES)))
            self._asking.append(_Asking(connection, request, source, self._now_s() + request.wait_s))
        except (OSError, msgspec.MsgspecError):
            connection.close()

    def _is_done(self, asking: _Asking) -> bool:
        source, tap = asking.source, asking.source.tapped()
        if tap is not None and not tap.is_full and self._now_s() < asking.until_s:
            return False
        source.untap()
        trial = _trial_of(source, tap)
        with contextlib.suppress(OSError), asking.connection:
            asking.connection.sendall(msgspec.json.encode(trial))
        asking.connection.close()
        return True


def _trial_of(source: SourcePump, tap: Tap | None) -> Trial:
    batches: list[SampleBatch] = [] if tap is None else list(tap.batches)
    counted = ({}, {}) if tap is None else tap.since(Counter(source.rejected()), Counter(source.left_out()))
    note = "copied from the running agent: its next samples, not its first"
    return make_trial(
        source.config,
        source.contract,
        batches,
        SourceCounts(*counted, source.left_out_names, source.matched, source.failing, (note,)),
    )


def ask_tap(folder: Path, request: TapRequest) -> Trial:
    """Ask the agent that runs in this state folder.

    Raises:
        NotRunningError: it has no such source, or does not answer.
        OSError: the folder cannot be written.
    """
    path = folder / f"{TAP_PREFIX}{os.getpid()}-{secrets.token_hex(4)}{TAP_SUFFIX}"
    with _listening(path) as listener:
        listener.settimeout(_ANSWER_S * 5)
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(request.wait_s + _ANSWER_S * 5)
                connection.sendall(msgspec.json.encode(request) + b"\n")
                body = b"".join(iter(lambda: connection.recv(65_536), b""))
            return msgspec.json.decode(body[:_MAX_BYTES], type=Trial)
        except (OSError, msgspec.MsgspecError) as error:
            raise NotRunningError("the running agent does not have this source as it is configured here") from error


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket under a path of any length; the agent may connect to it for any caller."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
            try:
                path.chmod(0o600)
                owner = path.parent.stat()
                if os.geteuid() == 0:
                    os.chown(path, owner.st_uid, owner.st_gid)
                listener.listen(1)
                yield listener
            finally:
                path.unlink(missing_ok=True)
    finally:
        os.close(folder)


def _connected(path: Path) -> socket.socket:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(_ANSWER_S)
        made.connect(f"/proc/self/fd/{folder}/{path.name}")
    except OSError:
        made.close()
        raise
    finally:
        os.close(folder)
    return made


def _line(connection: socket.socket) -> bytes:
    body = b""
    while not body.endswith(b"\n") and len(body) < 65_536:
        piece = connection.recv(65_536)
        if not piece:
            break
        body += piece
    return body
