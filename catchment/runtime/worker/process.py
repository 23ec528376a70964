"""The parent's side of a limited child process.

Children are started from one thread that lives as long as this process. The kernel's parent-death signal follows the *thread*
that made the child: a child started by a thread that ends soon would be killed with it. Never forks without exec: the child
inherits no lock, no thread and no memory.
"""

import dataclasses
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeAlias

from catchment.runtime.worker.limits import (
    ANSWER,
    HEAD,
    MAX_FRAME_BYTES,
    MAX_NOTE_BYTES,
    NO_MEMORY,
    NOTE,
    READY,
    REFUSED,
    REQUEST,
    WorkerLimits,
    decode_refusal,
)
from catchment.runtime.worker.outcome import Answered, Closed, Died, Gone, Outcome, OutOfMemory, Refused, TooLate

_SPAWN_TIMEOUT_S = 30.0
_PASSED_ON = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "TZ")
_ONE_THREAD = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VIPS_CONCURRENCY", "POLARS_MAX_THREADS", "MALLOC_ARENA_MAX",
    "PYTHONDONTWRITEBYTECODE",
)  # fmt: skip


_Order: TypeAlias = tuple[list[str], dict[str, str], bool, "Future[subprocess.Popen[bytes]]"]


class _Spawner:
    """One daemon thread that runs `subprocess.Popen` for every other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[_Order] | None = None

    def spawn(self, command: list[str], environment: dict[str, str], *, is_trusted: bool) -> subprocess.Popen[bytes]:
        """Start a child.

        Raises:
            OSError: it cannot be started.
        """
        made: Future[subprocess.Popen[bytes]] = Future()
        with self._lock:
            if self._waiting is None:
                self._waiting = queue.SimpleQueue()
                threading.Thread(target=self._run, args=(self._waiting,), name="worker-spawner", daemon=True).start()
            self._waiting.put((command, environment, is_trusted, made))
        return made.result(_SPAWN_TIMEOUT_S)

    def forget(self) -> None:
        """Start over in a forked process, which has this object but not its thread."""
        self.__init__()  # type: ignore[misc]

    @staticmethod
    def _run(waiting: "queue.SimpleQueue[_Order]") -> None:
        while True:
            command, environment, is_trusted, made = waiting.get()
            try:
                made.set_result(_popen(command, environment, is_trusted=is_trusted))
            except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
                made.set_exception(error)


def _popen(command: list[str], environment: dict[str, str], *, is_trusted: bool) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if is_trusted else subprocess.DEVNULL,
        bufsize=0,
        close_fds=True,
        cwd=None if is_trusted else "/",
        env=environment,
        process_group=0,
    )


_SPAWNER = _Spawner()
os.register_at_fork(after_in_child=_SPAWNER.forget)


def spawn_python(
    module: str, arguments: Sequence[str], extra: Mapping[str, str], *, is_trusted: bool = False
) -> subprocess.Popen[bytes]:
    """Start `python -m module` with the modules this process sees, a stripped environment and two pipes.

    Args:
        module: module to run.
        arguments: its arguments.
        extra: variables beyond the others.
        is_trusted: whether it keeps this process's environment, standard error and working folder.

    Raises:
        OSError: it cannot be started.
    """
    environment = trusted_environment(extra) if is_trusted else worker_environment(extra)
    return _SPAWNER.spawn([sys.executable, "-P", "-m", module, *arguments], environment, is_trusted=is_trusted)


def worker_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a child: no secrets, no proxies, one thread for each numerical library."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**passed_on, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONPATH": _module_path(sys.path), **extra}


def trusted_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that runs our own code and needs what this process has: credentials, proxies, folders."""
    path = _module_path([*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path])
    return {**os.environ, "PYTHONPATH": path, **extra}


def _module_path(entries: Sequence[str]) -> str:
    return os.pathsep.join(dict.fromkeys(entry for entry in entries if os.path.isabs(entry)))  # noqa: PTH117  # of strings


_CHILD = "catchment.runtime.worker.child"
_READ_BYTES = 1024 * 1024
_MAX_CONTROL_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """The program of a child and its limits.

    Attributes:
        target: `package.module:factory`; see `catchment.runtime.worker.child`.
        options: handed to the factory.
        limits: what the child may use.
        environment: variables beyond the stripped ones.
        is_trusted: whether the child keeps its parent's environment, standard error and working folder: for code of our own
            that needs the credentials of its parent, never for what others wrote.
    """

    target: str
    options: bytes = b""
    limits: WorkerLimits = field(default_factory=WorkerLimits)
    environment: Mapping[str, str] = field(default_factory=dict)
    is_trusted: bool = False

    def __post_init__(self) -> None:
        module, _, name = self.target.partition(":")
        if not module or not name:
            raise ValueError(f"target {self.target!r} must be package.module:factory")


class _EndedError(Exception):
    """The child closed its pipe or broke the protocol."""


class WorkerProcess:
    """One child at a time. Any thread may call; requests are answered one after another.

    After an outcome of `Gone` or a `Refused` start there is no child until `start` is called again: whether and when to do
    that is the caller's decision.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self._busy = threading.Lock()
        self._reaping = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._is_closed = False
        self._note = b""

    @property
    def pid(self) -> int | None:
        """Process id of the child; None without one."""
        process = self._process
        return None if process is None else process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_ready(self) -> bool:
        """Whether a child is there that has started up."""
        return self._process is not None and self._is_ready

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way, or the child starts or ends."""
        return self._busy.locked()

    def peak_bytes(self) -> int:
        """Largest resident memory of the child so far; 0 without one."""
        with self._reaping:
            if self._process is None:
                return 0
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(found[0]) * 1024 if found else 0

    def spawn(self) -> None:
        """Start a child without waiting for it; nothing happens where there is one.

        Raises:
            OSError: it cannot be started.
        """
        with self._busy:
            self._spawn()

    def start(self) -> Outcome:
        """Start a child and wait until it is ready: `Answered` with an empty body then.

        Raises:
            OSError: it cannot be started.
        """
        with self._busy:
            self._spawn()
            return self._wait_ready()

    def wait_ready(self) -> Outcome | None:
        """Wait until the child that is there is ready: `Answered` with an empty body then; None if there is no child."""
        with self._busy:
            return None if self._process is None else self._wait_ready()

    def request(
        self, body: bytes, timeout_s: float, max_wait_s: float | None = None, *, notes_prolong: bool = False
    ) -> Outcome | None:
        """Have the child answer one request.

        Args:
            body: the request.
            timeout_s: wall time the child may take; it is killed after that.
            max_wait_s: how long to wait for requests of other threads; None: for all of them.
            notes_prolong: whether the time begins again with each note of the handler.

        Returns:
            The outcome; None if other requests took longer than `max_wait_s`, or there is no child.
        """
        if len(body) > min(self.spec.limits.max_request_bytes, MAX_FRAME_BYTES):
            return Refused("RequestTooLarge", f"a request of {len(body)} bytes is above {self.spec.limits.max_request_bytes}")
        if not self._busy.acquire(timeout=-1 if max_wait_s is None else max(0.0, max_wait_s)):
            return None
        try:
            if self._is_closed:
                return Closed()
            if self._process is None:
                return None
            started = self._wait_ready()
            if not isinstance(started, Answered):
                return started
            return self._exchange(body, timeout_s, notes_prolong=notes_prolong)
        finally:
            self._busy.release()

    def close(self, grace_s: float = 0.0) -> None:
        """End the child now, also in the middle of a request of another thread. `start` opens it again.

        Args:
            grace_s: how long a child without a request may take to end by itself, and to remove what it made.
        """
        self._is_closed = True
        if grace_s and self._busy.acquire(blocking=False):
            try:
                self._end_input(grace_s)
            finally:
                self._busy.release()
        self._kill()
        with self._busy:
            self._reap()
            self._is_closed = False

    # -- with the lock held -----------------------------------------------------------------------------------------

    def _spawn(self) -> None:
        if self._process is not None and self._has_ended():
            self._reap()  # it ended between two requests: neither is to blame
        if self._process is not None:
            return
        settings = {
            "target": self.spec.target,
            "limits": dataclasses.asdict(self.spec.limits),
            "parent_pid": os.getpid(),
            "prints": self.spec.is_trusted,
        }
        process = spawn_python(_CHILD, [json.dumps(settings)], self.spec.environment, is_trusted=self.spec.is_trusted)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        with self._reaping:
            self._process, self._is_ready = process, False
            self._at_loss = weakref.finalize(self, _end, process)  # the caller may forget to close

    def _wait_ready(self) -> Outcome:
        if self._is_ready:
            return Answered(b"")
        outcome = self._exchange(self.spec.options, self.spec.limits.start_timeout_s, READY)
        self._is_ready = isinstance(outcome, Answered)
        if isinstance(outcome, Refused):
            self._kill()
            self._reap()
        return outcome

    def _end_input(self, grace_s: float) -> None:
        if self._process is not None and self._is_ready and self._process.stdin is not None:
            self._process.stdin.close()
            self._wait_end(grace_s)

    def _exchange(self, body: bytes, timeout_s: float, expected: bytes = ANSWER, *, notes_prolong: bool = False) -> Outcome:
        self._note = b""
        until_s = time.monotonic() + timeout_s
        try:
            self._write(HEAD.pack(REQUEST, len(body)), until_s)
            self._write(body, until_s)
            while True:
                kind, frame = self._read_frame(until_s)
                if kind == NOTE:
                    self._note = frame
                    until_s = time.monotonic() + timeout_s if notes_prolong else until_s
                elif kind == expected:
                    return Answered(frame)
                elif kind == REFUSED:
                    return Refused(*decode_refusal(frame))
                else:
                    return self._gone(OutOfMemory(self._memory_limit) if kind == NO_MEMORY else None)
        except TimeoutError:
            return self._gone(TooLate(timeout_s))
        except (OSError, _EndedError):
            return self._gone(None)

    def _read_frame(self, until_s: float) -> tuple[bytes, bytes]:
        kind, length = HEAD.unpack(self._read(HEAD.size, until_s))
        allowed = {ANSWER: self.spec.limits.max_answer_bytes, NOTE: MAX_NOTE_BYTES}.get(kind, _MAX_CONTROL_BYTES)
        if length > allowed:
            raise _EndedError
        return kind, self._read(length, until_s)

    def _read(self, count: int, until_s: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        body = bytearray()
        while len(body) < count:
            _wait(descriptor, select.POLLIN, until_s)
            part = os.read(descriptor, min(count - len(body), _READ_BYTES))
            if not part:
                raise _EndedError
            body += part
        return bytes(body)

    def _write(self, body: bytes, until_s: float) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        descriptor = self._process.stdin.fileno()
        view = memoryview(body)
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                _wait(descriptor, select.POLLOUT, until_s)

    def _gone(self, outcome: OutOfMemory | TooLate | None) -> Gone | Closed:
        """Kill and collect the child, and say how it ended."""
        if outcome is None:
            self._wait_end(1.0)  # its pipe ended, so it is about to: its own exit code says more than our SIGKILL
        self._kill()
        code = self._reap()
        if self._is_closed:
            return Closed()
        if outcome is not None:
            return dataclasses.replace(outcome, note=self._note)
        number = -code if code < 0 else 0
        if number == signal.SIGXCPU:
            return TooLate(self.spec.limits.cpu_s, self._note)
        return Died(number, max(0, code), self._note)

    @property
    def _memory_limit(self) -> int:
        limits = self.spec.limits
        return min(filter(None, (limits.memory_bytes, limits.address_bytes)), default=0)

    def _wait_end(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while not self._has_ended() and time.monotonic() < until_s:
            time.sleep(0.005)

    def _has_ended(self) -> bool:
        assert self._process is not None
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True  # something else in this program collected it

    def _kill(self) -> None:
        with self._reaping:
            if self._process is not None and not self._has_ended():
                os.kill(self._process.pid, signal.SIGKILL)  # not collected yet, so the number is still its own

    def _reap(self) -> int:
        with self._reaping:
            process, self._process, self._is_ready = self._process, None, False
            if process is None:
                return 0
            if self._at_loss is not None:
                self._at_loss.detach()
            return _end(process)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Kill a child that lives, collect it, and close its pipes. Its exit code."""
    process.kill()
    code = process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    return code


def _wait(descriptor: int, event: int, until_s: float) -> None:
    remaining_s = until_s - time.monotonic()
    poll = select.poll()
    poll.register(descriptor, event)
    # Checked before the poll, too: a child that never stops sending is late like one that never starts.
    if remaining_s <= 0 or not poll.poll(remaining_s * 1_000):
        raise TimeoutError
