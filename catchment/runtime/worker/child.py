"""The child's side: applies its limits, imports its target, then answers requests one after another until its input ends.

Run as `python -m catchment.runtime.worker.child SETTINGS`. Standard input and output are the pipes to the parent; the
target sees neither. A target is `package.module:factory`; `factory(options, note)` returns the handler of requests.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from catchment.runtime.worker.limits import (
    ANSWER,
    HEAD,
    MAX_NOTE_BYTES,
    NO_MEMORY,
    NOTE,
    READY,
    REFUSED,
    WorkerLimits,
    allow_cpu,
    apply_limits,
    encode_refusal,
    end_with_parent,
)

Note: TypeAlias = Callable[[bytes], None]
Handler: TypeAlias = Callable[[bytes], bytes]
Factory: TypeAlias = Callable[[bytes, Note], Handler]
_READ_BYTES = 1024 * 1024
_NO_MEMORY_FRAME = HEAD.pack(NO_MEMORY, 0)  # made before memory is short


class _Pipes:
    """Frames to and from the parent."""

    def __init__(self, incoming: int, outgoing: int, max_request_bytes: int) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._max_request_bytes = max_request_bytes

    def receive(self) -> bytes | None:
        """Read the next request; None when the parent has closed the pipe."""
        head = self._exactly(HEAD.size)
        if head is None:
            return None
        _kind, length = HEAD.unpack(head)
        if length > self._max_request_bytes:
            return None
        return self._exactly(length)

    def send(self, kind: bytes, body: bytes) -> None:
        self.send_raw(HEAD.pack(kind, len(body)))
        self.send_raw(body)

    def send_raw(self, body: bytes) -> None:
        view = memoryview(body)
        while view:
            view = view[os.write(self._outgoing, view) :]

    def note(self, body: bytes) -> None:
        """Tell the parent how far the handler is, for the case that it does not return."""
        self.send(NOTE, body[:MAX_NOTE_BYTES])

    def _exactly(self, count: int) -> bytes | None:
        parts: list[bytes] = []
        missing = count
        while missing:
            part = os.read(self._incoming, min(missing, _READ_BYTES))
            if not part:
                return None
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def main() -> None:
    """Serve until standard input ends."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    if not end_with_parent(settings["parent_pid"]):
        return
    # These reach the parent's whole group; the parent decides when its child ends, by closing the pipe or by SIGKILL.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    limits = WorkerLimits(**settings["limits"])
    pipes = _Pipes(*_own_pipes(prints=settings["prints"]), limits.max_request_bytes)
    options = pipes.receive()
    if options is None:
        return

    def open_target() -> Handler:
        apply_limits(limits)
        if limits.cpu_s:
            allow_cpu(max(limits.cpu_s, int(limits.start_timeout_s)))
        return _factory(settings["target"])(options, pipes.note)

    handler = _guarded(pipes, open_target)
    if handler is None:
        return
    pipes.send(READY, b"")
    _serve(pipes, handler, limits.cpu_s)


def _serve(pipes: _Pipes, handler: Handler, cpu_s: int) -> None:
    while (request := pipes.receive()) is not None:
        if cpu_s:
            allow_cpu(cpu_s)
        answer = _guarded(pipes, lambda body=request: handler(body))  # type: ignore[misc]
        if answer is not None:
            pipes.send(ANSWER, answer)


def _guarded(pipes: _Pipes, step: Callable[[], Any]) -> Any:
    """The step's result; None after its exception was sent. Out of memory, nothing in this process can be relied on."""
    try:
        return step()
    except MemoryError:
        pipes.send_raw(_NO_MEMORY_FRAME)
        os._exit(1)
    except Exception as error:  # noqa: BLE001  # the caller decides what it means
        pipes.send(REFUSED, encode_refusal(error))
    return None


def _own_pipes(*, prints: bool) -> tuple[int, int]:
    """Standard input and output moved away, so that nothing a library prints or reads gets between the frames.

    Args:
        prints: whether what is printed goes to standard error instead of nowhere.
    """
    incoming, outgoing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2 if prints else nothing, 1)
    os.close(nothing)
    return incoming, outgoing


def _factory(target: str) -> Factory:
    module, _, name = target.partition(":")
    factory: Factory = getattr(importlib.import_module(module), name)
    return factory


if __name__ == "__main__":
    main()
