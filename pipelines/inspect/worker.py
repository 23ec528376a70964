"""Keeps the process that runs a user's function: started when needed, killed when late, given up on when it keeps failing."""

import os
import select
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import structlog

from pipelines.errors import RefusedError
from pipelines.inspect.child import receive, send
from pipelines.inspect.errors import InterruptedInspectionError, UninspectableError

log = structlog.get_logger(__name__)

MAX_KILLS = 3
START_S = 30.0
MAX_ANSWER_BYTES = 16 * 1024 * 1024
_BUDGETS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VIPS_CONCURRENCY", "POLARS_MAX_THREADS")
_PASSED_ON = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "TZ")


@dataclass(slots=True)
class UserWorker:
    """One user's function in a process of its own.

    Args:
        name: of the inspector, for messages.
        source: the path of its file, or a module's name.
        function: the function or class in it.
        options: what it is told.
        max_ms: how long one sample may take.
        max_memory_mib: its address space.
    """

    name: str
    source: str
    function: str
    options: dict[str, Any]
    max_ms: int
    max_memory_mib: int
    kills: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _to: int = -1
    _from: int = -1
    _wants_row: bool = False

    @property
    def is_suspended(self) -> bool:
        """Whether it was killed too often in a row to be asked again by this process."""
        return self.kills >= MAX_KILLS

    def heed(self, *, is_suspended: bool) -> None:
        """Take over what the lake's book says: not to ask any more, or to try again."""
        if is_suspended:
            self.kills = max(self.kills, MAX_KILLS)
        elif self.is_suspended:
            self.kills = 0

    @property
    def wants_row(self) -> bool:
        """Whether its answer depends on the row's columns, too.

        Raises:
            RefusedError: it does not load.
        """
        self._started()
        return self._wants_row

    def ask(self, payload: bytes | None, row: dict[str, Any]) -> dict[str, Any]:
        """The columns it gives for one sample.

        Raises:
            UninspectableError: it failed; killed or suspended, it is an InterruptedInspectionError.
            RefusedError: it does not load.
        """
        if self.is_suspended:
            raise InterruptedInspectionError(f"{self.name} is suspended: killed {MAX_KILLS} times in a row")
        self._started()
        try:
            send(self._to, {"payload": payload, "row": row if self._wants_row else {}})
            answer = self._answer(self.max_ms / 1_000)
        except TimeoutError as error:
            self._kill("late")
            raise InterruptedInspectionError(f"{self.name} took longer than {self.max_ms} ms") from error
        except (OSError, EOFError) as error:
            self._kill("died")
            raise InterruptedInspectionError(f"{self.name} died on it (memory limit {self.max_memory_mib} MiB)") from error
        self.kills = 0
        if "error" in answer:
            raise UninspectableError(f"{self.name}: {answer['error']}")
        if not isinstance(answer.get("columns"), dict):
            raise UninspectableError(f"{self.name}: the function must return a dict of columns")
        columns: dict[str, Any] = answer["columns"]
        return columns

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            os.close(self._to)
            os.close(self._from)
            self._process = None

    def _started(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it ended between two samples: neither is to blame
        if self._process is not None:
            return
        read_child, self._to = os.pipe()
        self._from, write_child = os.pipe()
        passed_on = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        environment = passed_on | dict.fromkeys((*_BUDGETS, "PYTHONDONTWRITEBYTECODE"), "1")
        command = [sys.executable, "-m", "pipelines.inspect.child", str(read_child), str(write_child)]
        self._process = subprocess.Popen(
            command, pass_fds=(read_child, write_child), env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        os.close(read_child)
        os.close(write_child)
        request = {"source": self.source, "function": self.function, "options": self.options}
        try:
            send(self._to, {**request, "max_memory": self.max_memory_mib * 1024 * 1024})
            answer = self._answer(START_S)
        except (OSError, EOFError, TimeoutError) as error:
            self.close()
            raise RefusedError(f"inspector {self.name} does not start; does it load within its memory limit?") from error
        if "error" in answer:
            self.close()
            raise RefusedError(f"inspector {self.name} does not load: {answer['error']}")
        self._wants_row = bool(answer["wants_row"])

    def _answer(self, seconds: float) -> dict[str, Any]:
        """One frame, all of it within the time."""
        until = time.monotonic() + seconds

        def wait() -> None:
            if not select.select([self._from], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError

        answer: dict[str, Any] = receive(self._from, wait, MAX_ANSWER_BYTES)
        return answer

    def _kill(self, why: str) -> None:
        self.kills += 1
        self.close()
        log.warning("inspector_killed", inspector=self.name, why=why, kills=self.kills)
        if self.is_suspended:
            log.error("inspector_suspended", inspector=self.name, kills=self.kills)
