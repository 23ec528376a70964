"""The file of consecutive internal errors: there only while there are any."""

import msgspec

from pipelines.errors import CorruptLakeError
from pipelines.ingest.fault_breaker import FaultStreak
from pipelines.lake.lake import Lake
from pipelines.lake.layout import faults_path


def read_faults(lake: Lake) -> FaultStreak:
    """Read the consecutive faults; none where there is no file.

    Raises:
        CorruptLakeError: it is not what was written.
        RetryLaterError: the storage is away.
    """
    path = faults_path(lake.root)
    try:
        return msgspec.json.decode(lake.read(path), type=FaultStreak)
    except FileNotFoundError:
        return FaultStreak()
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{path}: not what the run loop writes ({error}); delete it") from error


def keep_faults(lake: Lake, before: FaultStreak, after: FaultStreak) -> None:
    """Keep the consecutive faults, durable, if they have changed.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    if after == before:
        return
    if after == FaultStreak():
        lake.delete(faults_path(lake.root))
    else:
        lake.put(faults_path(lake.root), msgspec.json.encode(after))
