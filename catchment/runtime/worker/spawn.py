"""Starts child processes from one thread that lives as long as this process.

The kernel's parent-death signal follows the *thread* that made the child: a child started by a thread that ends soon would be
killed with it. Never forks without exec: the child inherits no lock, no thread and no memory.
"""

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TypeAlias

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
