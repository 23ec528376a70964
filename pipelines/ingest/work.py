"""Work items, their results and their failures: what travels through the graph. Small references; rows never leave a step.

A failure is a value in the result, because each runner hands exceptions back in its own form. Only the family of an error
matters to the loop: wait (`away`), look at the lake (`corrupt`), correct the rules (`refused`), or report an internal error
(`fault`). The last one is never retried for long: the same bytes give the same fault.
"""

import traceback
from collections.abc import Sequence

import msgspec

from pipelines.config import RemoteConfig
from pipelines.errors import CorruptLakeError, FaultError, PipelineError, RefusedError, RetryLaterError
from pipelines.ingest.plan import SegmentRef
from pipelines.lake.files import NewFile
from pipelines.lake.lake import Lake
from pipelines.lake.layout import failed_path
from pipelines.lake.quarantined import kind_of

AWAY, CORRUPT, REFUSED, FAULT = "away", "corrupt", "refused", "fault"
_MAX_TRACE_CHARS = 20_000
_RAISED: dict[str, type[PipelineError]] = {AWAY: RetryLaterError, CORRUPT: CorruptLakeError, REFUSED: RefusedError}


class Limits(msgspec.Struct, frozen=True):
    """Size limits: one envelope unpacked, one row, one image to cut, one table before it is written.

    `worker_memory_bytes` is what a child process may have of memory of its own; 0: no limit.
    """

    max_envelope_bytes: int
    max_row_bytes: int
    max_image_pixels: int = 20_000_000_000
    flush_bytes: int = 256 * 1024 * 1024
    worker_memory_bytes: int = 0


class Unadmitted(msgspec.Struct, frozen=True):
    """A message, by its place in a work item, of which admission lets nothing or not all become rows.

    `spans` are the seqs to quarantine at `stage`; none: the whole message is, under no stream, and none of its seqs is settled.
    """

    segment: int
    message: int
    stage: str
    reason: str
    spans: tuple[tuple[int, int], ...] = ()


class Work(msgspec.Struct, frozen=True):
    """Some neighbouring segments of a plan, and which seqs of each of their messages are fresh.

    `verdicts[s][m]` belongs to message m of segment s, counted over its batches. `careful` asks that each message be named
    before it is opened; those at the places in `poison` are refused unopened: they ended the process that opened them.
    """

    root: str
    run: int
    at_us: int
    pins: str
    item: int
    segments: tuple[SegmentRef, ...]
    fresh_by_place: tuple[tuple[tuple[tuple[int, int], ...], ...], ...]
    limits: Limits
    careful: bool = False
    poison: tuple[tuple[int, int], ...] = ()
    remote: RemoteConfig | None = None
    unadmitted: tuple[Unadmitted, ...] = ()


class Settled(msgspec.Struct, frozen=True):
    """Counts of fresh samples of one device's stream that an item committed and quarantined."""

    device: str
    stream: str
    committed: int
    quarantined: int


class RefusalCount(msgspec.Struct, frozen=True):
    """The count of samples of one device's stream that an item refused for one kind of reason."""

    device: str
    stream: str
    reason: str
    count: int


class Failure(msgspec.Struct, frozen=True):
    """The reason why an item could not be settled. `kind` names what the reader does next: away, corrupt, refused or fault."""

    kind: str
    text: str
    trace: str = ""


class Faults(msgspec.Struct, frozen=True):
    """Messages refused whole because our own code failed on them: how many, of which devices, and one of the faults."""

    refused: int = 0
    devices: tuple[str, ...] = ()
    reason: str = ""


class ItemResult(msgspec.Struct, frozen=True):
    """The files an item wrote and its share of the books, or why it did not come to its end. `messages` have fresh seqs."""

    item: int
    files: tuple[NewFile, ...]
    settled: tuple[Settled, ...]
    failure: Failure | None = None
    messages: int = 0
    faults: Faults = Faults()
    refusals: tuple[RefusalCount, ...] = ()


class Prepared(msgspec.Struct, frozen=True):
    """All items of a run, done: from here on a run only commits."""

    run: int
    items: tuple[ItemResult, ...]

    def files(self) -> list[NewFile]:
        """Every file, by table and name."""
        return sorted((file for item in self.items for file in item.files), key=lambda file: (file.table, file.path))


def failure_of(error: Exception) -> Failure:
    """The run loop's reaction to an exception."""
    trace = _trace(error)[-_MAX_TRACE_CHARS:]
    match error:
        case CorruptLakeError():
            return Failure(CORRUPT, str(error))
        case RetryLaterError():
            return Failure(AWAY, str(error))
        case PipelineError():
            return Failure(REFUSED, str(error))
        case OSError() | MemoryError():
            # The disk or the machine is short of something: that may pass, and nothing of ours can repair it.
            return Failure(AWAY, f"{type(error).__name__}: {error}", trace)
        case _:
            return Failure(FAULT, f"{type(error).__name__}: {kind_of(str(error))}", trace)


def _trace(error: Exception) -> str:
    """Return the places of an error without its text, which may quote a value of a row and is kept in a file."""
    parts = traceback.format_exception(error)
    return "".join(part if part.startswith("  File") else kind_of(part) for part in parts)


def keep_failures(lake: Lake, run: int, results: Sequence[ItemResult]) -> None:
    """Leave a file that tells why the run did not prepare.

    Raises:
        OSError: the disk refused.
    """
    failed_path(lake.root, run).parent.mkdir(parents=True, exist_ok=True)
    lake.put(failed_path(lake.root, run), msgspec.json.encode(tuple(results)))


def raise_failures(lake: Lake, run: int) -> None:
    """Raise what the items of a run failed of, the gravest first; nothing if none failed.

    Raises:
        FaultError: a fault of our own.
        CorruptLakeError: the lake needs a hand.
        RefusedError: the rules do not fit.
        RetryLaterError: something was away.
    """
    try:
        results = msgspec.json.decode(lake.read(failed_path(lake.root, run)), type=tuple[ItemResult, ...])
    except FileNotFoundError:
        return
    except msgspec.MsgspecError as error:
        raise RetryLaterError(f"{failed_path(lake.root, run)}: torn ({error}); the run is tried again") from error
    failed = [(result.item, result.failure) for result in results if result.failure is not None]
    for kind in (FAULT, CORRUPT, REFUSED, AWAY):
        for item, failure in failed:
            if failure.kind == kind:
                raise _error(lake, run, item, failure)


def _error(lake: Lake, run: int, item: int, failure: Failure) -> PipelineError:
    text = f"run {run}, item {item}: {failure.text}"
    if failure.kind == FAULT:
        return FaultError(f"{text}; nothing was committed and nothing is lost. Report it with {failed_path(lake.root, run)}")
    return _RAISED[failure.kind](text)
