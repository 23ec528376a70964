"""What the children of the worker tests run: a factory whose requests say what is to happen."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


def obedient(options: bytes, note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Does what a request names."""

    def handle(request: bytes) -> bytes:
        verb, _, rest = request.partition(b" ")
        return _VERBS[verb](rest, options, note)

    return handle


def failing(_options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    raise ValueError("no such thing to load")


def hanging(_options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    while True:
        time.sleep(1)


def hungry(_options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    _KEPT.append(bytearray(400 * 1024 * 1024))
    raise AssertionError("400 MiB were allowed")


_KEPT: list[bytearray] = []


def _environment(_rest: bytes, _options: bytes, _note: object) -> bytes:
    return "\n".join(sorted(os.environ)).encode()


def _descriptors(_rest: bytes, _options: bytes, _note: object) -> bytes:
    found = list(Path("/proc/self/fd").iterdir())
    return "\n".join(str(path.readlink()) for path in found if path.is_symlink()).encode()


def _allocate(rest: bytes, _options: bytes, _note: object) -> bytes:
    body = bytearray(int(rest))
    body[::4096] = b"x" * len(body[::4096])
    return b"allocated"


def _leak(rest: bytes, _options: bytes, _note: object) -> bytes:
    _KEPT.append(bytearray(int(rest)))
    return b"kept"


def _kill(rest: bytes, _options: bytes, _note: object) -> bytes:
    os.kill(os.getpid(), int(rest))
    return b"alive"


def _segfault(_rest: bytes, _options: bytes, _note: object) -> bytes:
    ctypes.string_at(8)
    return b"alive"


def _spin(_rest: bytes, _options: bytes, _note: object) -> bytes:
    while True:
        pass


def _chatter(_rest: bytes, _options: bytes, note: Callable[[bytes], None]) -> bytes:
    while True:
        note(b"still here")


def _write(rest: bytes, _options: bytes, _note: object) -> bytes:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    Path(rest.decode()).write_bytes(b"x" * 10)
    return b"written"


def _print(_rest: bytes, _options: bytes, _note: object) -> bytes:
    sys.stdout.write("noise " * 10_000)
    sys.stdout.flush()
    os.write(1, b"more noise")
    return b"printed:" + sys.stdin.read().encode()


def _raise(rest: bytes, _options: bytes, _note: object) -> bytes:
    raise KeyError(rest.decode())


def _note_then_die(_rest: bytes, _options: bytes, note: Callable[[bytes], None]) -> bytes:
    note(b"first")
    note(b"second")
    os.kill(os.getpid(), signal.SIGSEGV)
    return b""


def _raw(rest: bytes, _options: bytes, _note: object) -> bytes:
    """Break the protocol: whatever descriptor is the pipe gets these bytes."""
    for path in list(Path("/proc/self/fd").iterdir()):
        if int(path.name) > 2 and path.is_symlink():
            try:
                os.write(int(path.name), bytes.fromhex(rest.decode()))
            except OSError:
                continue
    time.sleep(30)
    return b""


def _notes(rest: bytes, _options: bytes, note: Callable[[bytes], None]) -> bytes:
    """Take a while, and say so on the way."""
    for _ in range(int(rest)):
        time.sleep(0.2)
        note(b"still here")
    return b"done"


def parting(options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Leaves a file when it ends by itself."""
    import atexit

    atexit.register(Path(options.decode()).touch)
    return lambda request: request


def _sleep(seconds: float) -> bytes:
    time.sleep(seconds)
    return b"slept"


_VERBS: dict[bytes, Callable[[bytes, bytes, Callable[[bytes], None]], bytes]] = {
    b"notes": _notes,
    b"echo": lambda rest, options, _note: options + rest,
    b"environment": _environment,
    b"descriptors": _descriptors,
    b"allocate": _allocate,
    b"leak": _leak,
    b"kill": _kill,
    b"segfault": _segfault,
    b"exit": lambda rest, _options, _note: os._exit(int(rest)),
    b"sleep": lambda rest, _options, _note: _sleep(float(rest)),
    b"spin": _spin,
    b"chatter": _chatter,
    b"write": _write,
    b"print": _print,
    b"raise": _raise,
    b"note": _note_then_die,
    b"raw": _raw,
    b"size": lambda rest, _options, _note: str(len(rest)).encode(),
    b"large": lambda rest, _options, _note: b"x" * int(rest),
    b"pid": lambda _rest, _options, _note: str(os.getpid()).encode(),
    b"nice": lambda _rest, _options, _note: str(os.nice(0)).encode(),
    b"modules": lambda _rest, _options, _note: "\n".join(sys.modules).encode(),
}
