"""The process that runs a user's function: no secrets in its environment, limited memory, killed when it is late.

Spoken over two pipes: frames of a 4-byte big-endian length and msgpack. First what to load, then samples.
"""

import importlib
import importlib.machinery
import importlib.util
import inspect
import os
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

_LENGTH = struct.Struct(">I")
_WATCH_S = 1.0


def send(descriptor: int, message: Any) -> None:
    """Write one frame."""
    body = msgspec.msgpack.encode(message)
    view = memoryview(_LENGTH.pack(len(body)) + body)
    while view:
        view = view[os.write(descriptor, view) :]


def receive(descriptor: int, wait: Callable[[], None] | None = None, max_bytes: int = 1 << 32) -> Any:
    """Read one frame.

    Args:
        descriptor: the pipe.
        wait: called before each read; it may raise when the time is over.
        max_bytes: a longer frame is an error.

    Raises:
        EOFError: the other side is gone, or sends what is no frame.
    """
    (length,) = _LENGTH.unpack(_exactly(descriptor, _LENGTH.size, wait))
    if length > max_bytes:
        raise EOFError
    try:
        return msgspec.msgpack.decode(_exactly(descriptor, length, wait))
    except msgspec.DecodeError as error:
        raise EOFError from error


def _exactly(descriptor: int, count: int, wait: Callable[[], None] | None) -> bytes:
    parts: list[bytes] = []
    while count:
        if wait is not None:
            wait()
        part = os.read(descriptor, min(count, 1024 * 1024))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _load(source: str, name: str, options: dict[str, Any]) -> tuple[Callable[..., Any], bool]:
    """The function, and whether it wants the row."""
    if source.endswith(".py") or "/" in source:
        loader = importlib.machinery.SourceFileLoader("inspector", source)
        spec = importlib.util.spec_from_loader("inspector", loader)
        assert spec is not None, "a loader that is given makes a spec"
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    else:
        module = importlib.import_module(source)
    found: Any = getattr(module, name)
    if inspect.isclass(found):
        made: Any = found(**options)
        return made, "row" in inspect.signature(made).parameters
    return (lambda **given: found(**given, **options)), "row" in inspect.signature(found).parameters


def _end_with(parent: int) -> None:
    """End when the parent has: a function that never returns must not outlive a run that was killed."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)


def _limit_memory(wanted: int) -> None:
    """No more than wanted, and than the run's own worker may have."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    """Serve until the pipe closes."""
    incoming, outgoing = int(sys.argv[1]), int(sys.argv[2])
    request = receive(incoming)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    _limit_memory(request["max_memory"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it has nothing to write
    try:
        function, wants_row = _load(request["source"], request["function"], request["options"])
    except BaseException as error:  # noqa: BLE001  # whatever a user's module raises is told, not died of
        send(outgoing, {"error": f"{type(error).__name__}: {error}"[:500]})
        return
    send(outgoing, {"wants_row": wants_row})
    while True:
        try:
            sample = receive(incoming)
        except EOFError:
            return
        given = {"payload": sample["payload"]} | ({"row": sample["row"]} if wants_row else {})
        try:
            answer = {"columns": function(**given)}
            body = msgspec.msgpack.encode(answer)
        except Exception as error:  # noqa: BLE001  # likewise: one sample's error is that sample's
            body = msgspec.msgpack.encode({"error": f"{type(error).__name__}: {error}"[:500]})
        send(outgoing, msgspec.Raw(body))


if __name__ == "__main__":
    main()
