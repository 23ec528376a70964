"""How a failure leaves a worker: as a value in the result, for each runner hands exceptions back in its own form.

Only the family of an error matters to the loop: wait (`away`), look at the lake (`corrupt`), correct the rules (`refused`),
or report a fault of our own (`fault`). The last one is never retried for long: the same bytes give the same fault.
"""

import traceback
from collections.abc import Sequence

import msgspec

from pipelines.errors import CorruptLakeError, FaultError, PipelineError, RefusedError, RetryLaterError
from pipelines.ingest.work import Failure, ItemResult
from pipelines.lake.lake import Lake
from pipelines.lake.layout import failed_path
from pipelines.lake.quarantined import kind_of

AWAY, CORRUPT, REFUSED, FAULT = "away", "corrupt", "refused", "fault"
_MAX_TRACE_CHARS = 20_000
_RAISED: dict[str, type[PipelineError]] = {AWAY: RetryLaterError, CORRUPT: CorruptLakeError, REFUSED: RefusedError}


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
            # The disk or the machine is short of something: that may pass, and nothing of ours can mend it.
            return Failure(AWAY, f"{type(error).__name__}: {error}", trace)
        case _:
            return Failure(FAULT, f"{type(error).__name__}: {kind_of(str(error))}", trace)


def _trace(error: Exception) -> str:
    """Where it happened. What an exception says may quote a value of a row, and this is kept in a file."""
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
