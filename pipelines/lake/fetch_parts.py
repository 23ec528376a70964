"""Fetch parts of objects into files, at the places they have in the object.

The storage library runs threads, which a fork does not take along: in a process that was forked after the library had run,
every request would wait forever. There a helper process, started from nothing, carries the requests out.
"""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import IO, Any, Literal

import msgspec

from pipelines.config import RemoteConfig
from pipelines.errors import PipelineError, RetryLaterError
from pipelines.lake.remote import Remote, is_lost_by_fork, store, translate_errors


class Parts(msgspec.Struct, frozen=True):
    """Bytes of an object and the file they go to; without `starts` the whole object, under its name once it is complete."""

    config: RemoteConfig
    name: str
    path: str
    starts: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()


class FetchOutcome(msgspec.Struct, frozen=True):
    """How a helper fared: the reason is empty where it did."""

    kind: Literal["done", "missing", "failed"]
    reason: str = ""


def fetch_parts(parts: Parts) -> None:
    """Fetch them.

    Raises:
        FileNotFoundError: there is no such object.
        RetryLaterError: the storage is unavailable, or the object is shorter.
        OSError: the disk refused.
    """
    if is_lost_by_fork():
        _helper(os.getpid()).fetch(parts)
    else:
        _fetch_here(parts)


def _fetch_here(parts: Parts) -> None:
    import obstore  # noqa: PLC0415  # an extra

    remote = Remote(parts.config)
    if not parts.starts:
        if not remote.fetch(parts.name, Path(parts.path)):
            raise FileNotFoundError(remote.where(parts.name))
        return
    bucket = store(parts.config)
    with translate_errors(remote.where(parts.name)):
        bodies = obstore.get_ranges(bucket, parts.name, starts=parts.starts, lengths=parts.lengths, coalesce=0)
    file = os.open(parts.path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for start, length, body in zip(parts.starts, parts.lengths, bodies, strict=True):
            view = memoryview(body)
            if len(view) != length:
                raise RetryLaterError(f"{remote.where(parts.name)}: {len(view)} of {length} bytes came; try again")
            while view:
                written = os.pwrite(file, view, start + length - len(view))
                view = view[written:]
    finally:
        os.close(file)


class _Helper:
    """A process that fetches what it reads of on its standard input; it ends when that is closed."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "pipelines.lake.fetch_parts"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock = Lock()

    def fetch(self, parts: Parts) -> None:
        """Have it fetch, and wait. Raises as `fetch_parts`."""
        with self._lock:
            wire: Any = self._process.stdin
            answers: Any = self._process.stdout
            try:
                wire.write(msgspec.json.encode(parts) + b"\n")
                wire.flush()
                outcome = msgspec.json.decode(answers.readline(), type=FetchOutcome)
            except (OSError, msgspec.DecodeError) as error:
                raise RetryLaterError(f"{parts.name}: the process that fetches it ended ({error}); try again") from error
        if outcome.kind == "missing":
            raise FileNotFoundError(outcome.reason)
        if outcome.kind == "failed":
            raise RetryLaterError(outcome.reason)


@lru_cache(maxsize=1)
def _helper(_pid: int) -> _Helper:
    """The helper of this process: one that was inherited by a fork belongs to another."""
    return _Helper()


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Carry out requests until there are no more."""
    for line in requests:
        try:
            _fetch_here(msgspec.json.decode(line, type=Parts))
            outcome = FetchOutcome("done")
        except FileNotFoundError as error:
            outcome = FetchOutcome("missing", str(error))
        except (PipelineError, OSError) as error:
            outcome = FetchOutcome("failed", str(error))
        answers.write(msgspec.json.encode(outcome) + b"\n")
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
