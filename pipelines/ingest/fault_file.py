"""The file of consecutive internal errors: there only while there are any."""

from pathlib import Path

import msgspec

from pipelines.errors import CorruptLakeError
from pipelines.ingest.fault_breaker import FaultStreak
from pipelines.lake.copy import discard, keep, read_bytes
from pipelines.lake.layout import faults_path


def read_faults(root: Path) -> FaultStreak:
    """Read the consecutive faults; none where there is no file.

    Raises:
        CorruptLakeError: it is not what was written.
        RetryLaterError: the storage is away.
    """
    path = faults_path(root)
    try:
        return msgspec.json.decode(read_bytes(root, path), type=FaultStreak)
    except FileNotFoundError:
        return FaultStreak()
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{path}: not what the run loop writes ({error}); delete it") from error


def keep_faults(root: Path, before: FaultStreak, after: FaultStreak) -> None:
    """Keep the consecutive faults, durable, if they have changed.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    if after == before:
        return
    if after == FaultStreak():
        discard(root, faults_path(root))
    else:
        keep(root, faults_path(root), msgspec.json.encode(after))
