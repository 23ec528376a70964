"""A user's code in inspect steps: files bound to a policy by their hash, and the process that runs their function."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from catchment.runtime.atomic_files import sync_folder
from catchment.runtime.worker.limits import MAX_FRAME_BYTES, MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Refused, TooLate
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from pipelines.errors import ConfigError, CorruptLakeError, InterruptedInspectionError, RefusedError, UninspectableError
from pipelines.inspect.child import WANTS_ROW, YES
from pipelines.lake.lake import Lake
from schemas.policy import InspectStep, Policy

log = structlog.get_logger(__name__)

MAX_CODE_BYTES = 512 * 1024 * 1024
MAX_KILLS = 3
START_S = 30.0
MAX_ANSWER_BYTES = 16 * 1024 * 1024
_TARGET = "pipelines.inspect.child:open_inspector"
# Beyond what every limited process is given: where the programs are that a user's function may call.
_PASSED_ON = ("PATH", "VIRTUAL_ENV")


def code_path(lake: Lake, digest: str) -> Path:
    """Return the path of a step's file in the lake."""
    return lake.root / "policies" / "code" / digest


def bind_code(policy: Policy, folder: Path) -> Policy:
    """The policy with the hash of each file that its steps name.

    Raises:
        ConfigError: a file cannot be read.
    """
    if not any(step.file for step in policy.inspect):
        return policy
    return msgspec.structs.replace(policy, inspect=tuple(_bound(step, folder) for step in policy.inspect))


def store_code(lake: Lake, policies: Iterable[Policy], folder: Path) -> None:
    """Copy the steps' files from next to the policies into the lake, each once.

    Raises:
        ConfigError: a file cannot be read, or is no longer what the policy was loaded with.
    """
    for step in (step for policy in policies for step in policy.inspect if step.code):
        path = code_path(lake, step.code)
        if lake.local(path).exists():
            continue
        body = _read(folder / step.file)
        if hashlib.sha256(body).hexdigest() != step.code:
            raise ConfigError(f"{folder / step.file}: changed while the policy was applied; apply it again")
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
        lake.put(path, body)


def checked_code(lake: Lake, step: InspectStep) -> Path:
    """The step's file in the lake, its bytes compared with its name.

    Raises:
        CorruptLakeError: it is gone, or holds something else.
    """
    path = lake.local(code_path(lake, step.code))
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptLakeError(f"{path}: inspector {step.use}'s code cannot be read ({error}); apply its policy again") from error
    if found != step.code:
        raise CorruptLakeError(f"{path}: its bytes do not match its name; delete it and apply the policy again")
    return path


def _bound(step: InspectStep, folder: Path) -> InspectStep:
    if not step.file:
        return step
    return msgspec.structs.replace(step, code=hashlib.sha256(_read(folder / step.file)).hexdigest())


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_CODE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CODE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); an inspector's file lies next to its policy") from error


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
    _worker: WorkerProcess | None = None
    _wants_row: bool = False

    @property
    def is_suspended(self) -> bool:
        """Whether it was killed too often in a row to be asked again by this process."""
        return self.kills >= MAX_KILLS

    def sync_suspension(self, *, is_suspended: bool) -> None:
        """Take over what the lake's book says: not to ask any more, or to try again."""
        if is_suspended:
            self.kills = max(self.kills, MAX_KILLS)
        elif self.is_suspended:
            self.kills = 0

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        return None if self._worker is None else self._worker.pid

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
        worker = self._started()
        sample = {"payload": payload, "row": row if self._wants_row else {}}
        outcome = worker.request(msgspec.msgpack.encode(sample), self.max_ms / 1_000)
        if isinstance(outcome, TooLate):
            self._kill("late")
            raise InterruptedInspectionError(f"{self.name} took longer than {self.max_ms} ms")
        if not isinstance(outcome, Answered):
            self._kill("died")
            raise InterruptedInspectionError(f"{self.name} died on it (memory limit {self.max_memory_mib} MiB)")
        answer: dict[str, Any] = msgspec.msgpack.decode(outcome.body)
        self.kills = 0
        if "error" in answer:
            raise UninspectableError(f"{self.name}: {answer['error']}")
        if not isinstance(answer.get("columns"), dict):
            raise UninspectableError(f"{self.name}: the function must return a dict of columns")
        columns: dict[str, Any] = answer["columns"]
        return columns

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _started(self) -> WorkerProcess:
        """The process, started if it is not there; one that ended between two samples is replaced, and neither is to blame."""
        is_new = self._worker is None
        worker = self._worker = self._worker or WorkerProcess(self._spec())
        try:
            outcome = worker.start()
        except OSError as error:
            raise RefusedError(f"inspector {self.name} does not start: {error}") from error
        if isinstance(outcome, Answered) and is_new:
            outcome = worker.request(WANTS_ROW, START_S) or outcome
            self._wants_row = isinstance(outcome, Answered) and outcome.body == YES
        if isinstance(outcome, Answered):
            return worker
        self.close()
        if isinstance(outcome, Refused):
            raise RefusedError(f"inspector {self.name} does not load: {outcome.reason}")
        raise RefusedError(f"inspector {self.name} does not start; does it load within its memory limit?")

    def _spec(self) -> WorkerSpec:
        options = {"source": self.source, "function": self.function, "options": self.options}
        limits = WorkerLimits(
            address_bytes=self.max_memory_mib * MIB,
            start_timeout_s=START_S,
            max_request_bytes=MAX_FRAME_BYTES,
            max_answer_bytes=MAX_ANSWER_BYTES,
        )
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return WorkerSpec(target=_TARGET, options=msgspec.msgpack.encode(options), limits=limits, environment=passed_on)

    def _kill(self, why: str) -> None:
        self.kills += 1
        self.close()
        log.warning("inspector_killed", inspector=self.name, why=why, kills=self.kills)
        if self.is_suspended:
            log.error("inspector_suspended", inspector=self.name, kills=self.kills)
