"""Cuts slides in limited child processes: what a slide takes or breaks, it takes or breaks there."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import structlog

from catchment.runtime.worker.limits import WorkerLimits
from catchment.runtime.worker.outcome import Answered, Closed, Died, Outcome, OutOfMemory, Refused, TooLate
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from pipelines.errors import CorruptLakeError, RetryLaterError
from pipelines.imaging.store import ChipFile, discard
from pipelines.imaging.work import SlideTask, as_id, encode_task, read_result, save_result

MAX_KILLS = 3
_CORRUPT = frozenset({"CorruptLakeError", "BadReferenceError"})
_DEADLY_SIGNALS = frozenset({4, 6, 7, 8, 11, 31})  # SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGSYS: the slide's own doing

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CutLimits:
    """What cutting may take.

    Attributes:
        max_pixels: the largest image.
        processes: how many slides are cut at once.
        worker_memory_bytes: what one process may take.
        band_timeout_s: how long one band of a slide, or its header, may take.
    """

    max_pixels: int
    processes: int = 1
    worker_memory_bytes: int = 2 * 1024**3
    band_timeout_s: float = 120.0


class CutterPool:
    """Some child processes, each started when it is needed. A slide that ends one is refused; the next has a new one.

    Args:
        limits: what they may take.
    """

    def __init__(self, limits: CutLimits) -> None:
        self.limits = limits
        self.deaths = 0
        self._threads = ThreadPoolExecutor(limits.processes, thread_name_prefix="cutter")
        self._mine = threading.local()
        self._workers: list[WorkerProcess] = []
        self._is_closed = False
        self._spec = WorkerSpec(
            target="pipelines.imaging.child:open_cutter",
            # It writes chips of any size into the lake; the rest of the core's work goes first.
            limits=WorkerLimits(memory_bytes=limits.worker_memory_bytes, file_bytes=1 << 50, niceness=19, start_timeout_s=120.0),
        )

    def cut_all(self, tasks: Sequence[SlideTask]) -> Iterator[ChipFile]:
        """What became of each slide, in their order; a slide that an earlier try has finished is not looked at again.

        Raises:
            CorruptLakeError: the bytes of a slide are not where its row says.
            RetryLaterError: the processes cannot be started, or are killed from outside again and again.
        """
        yield from self._threads.map(self.cut, tasks)

    def cut(self, task: SlideTask) -> ChipFile:
        """Cut one slide, as `cut_all`."""
        return read_result(task) or self._cut(task)

    def close(self) -> None:
        """End all processes, also in the middle of a slide."""
        self._is_closed = True
        for worker in list(self._workers):
            worker.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _cut(self, task: SlideTask) -> ChipFile:
        for _ in range(MAX_KILLS):
            outcome = self._request(encode_task(task))
            if isinstance(outcome, Answered):
                return msgspec.json.decode(outcome.body, type=ChipFile, dec_hook=as_id)
            reason = self._reason(outcome)
            if reason:
                discard(task.lake, task.place)
                refused = ChipFile(task.slide.key, task.slide.spec.name, "", 0, 0, reason)
                save_result(task, refused)
                return refused
        raise RetryLaterError(f"cutting slides: {outcome}, {MAX_KILLS} times: killed from outside, or the machine lacks memory")

    def _request(self, body: bytes) -> Outcome | None:
        worker: WorkerProcess | None = getattr(self._mine, "worker", None)
        if worker is None:
            worker = self._mine.worker = WorkerProcess(self._spec)
            self._workers.append(worker)
        if self._is_closed:
            return Closed()
        try:
            worker.spawn()
        except OSError as error:
            raise RetryLaterError(f"cutting slides: a process cannot be started ({error})") from error
        return worker.request(body, self.limits.band_timeout_s, notes_prolong=True)

    def _reason(self, outcome: Outcome | None) -> str:
        """Why the slide is refused; empty where it is not to blame, and is tried again from the band that is next.

        Raises:
            CorruptLakeError: its bytes are gone.
            RetryLaterError: the disk refused, or the pool was closed.
        """
        match outcome:
            case Died(signal_number=number) if number not in _DEADLY_SIGNALS:
                self.deaths += 1
                log.warning("cutter_killed", reason=str(outcome), after=outcome.note.decode("utf-8", "replace"))
                return ""
            case Died() | OutOfMemory() | TooLate():
                self.deaths += 1
                after = outcome.note.decode("utf-8", "replace") or "the start"
                return f"cannot be cut within its limits: after {after}, {outcome}"
            case Refused(kind=kind) if kind in _CORRUPT:
                raise CorruptLakeError(str(outcome))
            case Refused(kind="OSError"):
                raise RetryLaterError(f"cutting slides: the disk refuses ({outcome})")
            case Refused():
                return f"internal error while it was cut: {outcome.kind}: {outcome}"
            case _:
                raise RetryLaterError("cutting slides: stopped; the next start goes on with the band that is next")
