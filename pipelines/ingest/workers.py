"""The worker pool: warm child processes that settle work items, one per core. A body that crashes its decoder crashes a worker.

Each worker is a `catchment.runtime.worker` that runs `pipelines.ingest.worker_main`. A worker that dies (a fault of the
processor, too much memory, no end of it) is replaced, and the item done again carefully: the worker then names each message
before it opens it, and the one it dies of is refused (`Work.poison`) instead of opened.
"""

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec
import structlog

from catchment.runtime.worker.limits import MAX_FRAME_BYTES, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Died, Outcome, OutOfMemory, Refused, TooLate
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from pipelines.ingest.work import AWAY, FAULT, Failure, ItemResult, Work

ITEM_TIMEOUT_S = 900.0
MESSAGE_TIMEOUT_S = 120.0
START_TIMEOUT_S = 300.0
MAX_POISON = 1_000
MAX_UNEXPLAINED = 4
_DEADLY = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_GRACE_S = 1.0
# Our own code: it needs the credentials of the storage, writes large files, and limits its memory item by item.
_SPEC = WorkerSpec(
    target="pipelines.ingest.worker_main:open_settler",
    limits=WorkerLimits(
        file_bytes=1 << 50,
        open_files=1 << 20,
        niceness=0,
        start_timeout_s=START_TIMEOUT_S,
        max_request_bytes=MAX_FRAME_BYTES,
        max_answer_bytes=MAX_FRAME_BYTES,
    ),
    # A worker has one core; more threads of each would only wait for one another.
    environment={"POLARS_MAX_THREADS": os.environ.get("POLARS_MAX_THREADS", "1")},
    is_trusted=True,
)

log = structlog.get_logger(__name__)


class PoolWorkerDiedError(Exception):
    """A worker ended in the middle of an item; `place` is the message it had named last. Never leaves this module."""

    def __init__(self, code: int, place: tuple[int, int] | None, text: str = "") -> None:
        super().__init__(text or f"a worker process ended with {code}")
        self.code = code
        self.place = place
        self.took_too_long = bool(text)

    @property
    def is_of_the_item(self) -> bool:
        """Whether the item itself may be the cause: a fault of the processor, or no end of it."""
        return self.took_too_long or -self.code in _DEADLY


class Worker:
    """One child process, used by one thread.

    Raises:
        PoolWorkerDiedError: it cannot be started.
    """

    def __init__(self) -> None:
        self._process = WorkerProcess(_SPEC)
        try:
            self._process.spawn()
        except OSError as error:
            raise PoolWorkerDiedError(1, None) from error
        self.pid = self._process.pid or 0

    def wait_ready(self) -> None:
        """Wait until it has imported all it needs, which takes longer than many an item.

        Raises:
            PoolWorkerDiedError: it ended, or was not heard of in time.
        """
        if not self._process.is_ready:
            self._take(self._process.wait_ready())

    def settle(self, work: Work) -> ItemResult:
        """Hand an item over and wait for its result.

        Raises:
            PoolWorkerDiedError: it ended, or was not heard of in time.
        """
        self.wait_ready()
        timeout_s = MESSAGE_TIMEOUT_S if work.careful else ITEM_TIMEOUT_S
        body = self._take(self._process.request(msgspec.json.encode(work), timeout_s, notes_prolong=True))
        return msgspec.json.decode(body, type=ItemResult)

    def end(self) -> None:
        """Let it end by itself, or kill it, and collect it."""
        self._process.close(_GRACE_S)

    def _take(self, outcome: Outcome | None) -> bytes:
        if isinstance(outcome, Answered):
            return outcome.body
        self.end()
        match outcome:
            case Died():
                raise PoolWorkerDiedError(-outcome.signal_number or outcome.exit_code, _place(outcome.note))
            case TooLate():
                reason = f"nothing heard of it for {outcome.timeout_s:g} s"
                raise PoolWorkerDiedError(-signal.SIGKILL, _place(outcome.note), reason)
            case OutOfMemory():
                raise PoolWorkerDiedError(1, _place(outcome.note))
            case Refused():
                log.error("worker_failed", kind=outcome.kind, reason=outcome.reason)
                raise PoolWorkerDiedError(1, None)
            case _:
                raise PoolWorkerDiedError(-signal.SIGKILL, None)


def _place(note: bytes) -> tuple[int, int] | None:
    return msgspec.json.decode(note, type=tuple[int, int]) if note else None


class WorkerPool:
    """Some workers, each started when first needed and replaced when it dies.

    Args:
        size: how many items are settled at once.
    """

    def __init__(self, size: int) -> None:
        self.deaths = 0
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="worker")
        self._mine = threading.local()
        self._workers: set[Worker] = set()
        self._starting: list[Future[None]] = []
        self._lock = threading.Lock()

    def start(self, size: int) -> None:
        """Start workers ahead of the first item, without waiting for them."""
        gate = threading.Barrier(size + 1)
        self._starting = [self._threads.submit(self._start, gate) for _ in range(size)]
        gate.wait()

    def wait_ready(self) -> None:
        """Wait until the workers that `start` started can take an item. One that dies is replaced with its first item."""
        for started in self._starting:
            started.result()

    def warm(self, size: int) -> None:
        """Start workers, and wait until they can take an item."""
        self.start(size)
        self.wait_ready()

    @property
    def pids(self) -> list[int]:
        """The process ids of the live workers."""
        with self._lock:
            return [worker.pid for worker in self._workers]

    def settle_all(self, works: Sequence[Work]) -> Iterator[ItemResult]:
        """The results of all items, in their order."""
        yield from self._threads.map(self._settle, works)

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            workers, self._workers = self._workers, set()
        for worker in workers:
            worker.end()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _settle(self, work: Work) -> ItemResult:
        search = _Search()
        while True:
            try:
                return self._worker().settle(msgspec.structs.replace(work, careful=search.careful, poison=tuple(search.poison)))
            except PoolWorkerDiedError as error:
                self._forget()
                log.error("worker_died", run=work.run, item=work.item, code=error.code, at=error.place)  # noqa: TRY400  # not a fault of this process
                failure = search.died(error)
                if failure is not None:
                    return ItemResult(work.item, (), (), failure)

    def _start(self, gate: threading.Barrier) -> None:
        gate.wait()  # one thread, one worker: none may take the start of two
        try:
            self._worker().wait_ready()
        except PoolWorkerDiedError as error:
            self._forget()
            log.error("worker_died", code=error.code)  # noqa: TRY400  # not a fault of this process

    def _worker(self) -> Worker:
        worker: Worker | None = getattr(self._mine, "worker", None)
        if worker is None:
            worker = self._mine.worker = Worker()
            with self._lock:
                self._workers.add(worker)
        return worker

    def _forget(self) -> None:
        self.deaths += 1
        worker, self._mine.worker = self._mine.worker, None
        with self._lock:
            self._workers.discard(worker)


@dataclass(slots=True)
class _Search:
    """Finds messages of an item that end their reader. After a death the item is done carefully; once one is known, plainly."""

    poison: list[tuple[int, int]] = field(default_factory=list)
    suspects: Counter[tuple[int, int]] = field(default_factory=Counter)
    careful: bool = False
    unexplained: int = 0

    def died(self, error: PoolWorkerDiedError) -> Failure | None:
        """Take a death in: what to answer, or None to try the item again."""
        if not self.careful or error.place is None:
            self.unexplained += not error.is_of_the_item or (self.careful and error.place is None)
            self.careful = True
            if self.unexplained > MAX_UNEXPLAINED:
                return Failure(AWAY, f"{error}, again and again: killed from outside, or the machine is short of memory")
            return None
        self.suspects[error.place] += 1
        # Killed from outside in the middle of a message says little of that message; twice in the same one says enough.
        if error.is_of_the_item or self.suspects[error.place] > 1:
            self.poison.append(error.place)
            self.careful = False
        if len(self.poison) > MAX_POISON:
            return Failure(FAULT, f"{error}: more than {MAX_POISON} messages of one item each ended a worker")
        return None
