"""Where a bridge goes on whose landing folder is new: at the number that the runs wait for, read from a plan of theirs."""

from pathlib import Path

import msgspec

from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, RUNS, plan_path


class _Cursors(msgspec.Struct):
    next_numbers: dict[str, int]


def resume_number(lake: Path, bridge: str) -> int:
    """The number of this bridge's next segment that a run will ask for; what lands below it would never be read.

    Raises:
        CorruptLakeError: the newest plan cannot be read.
        OSError: the disk refused.
    """
    runs = [int(path.stem) for path in (lake / RUNS).glob("[0-9]*.json") if path.stem.isdigit()]
    if not runs:
        return 1
    path = plan_path(lake, max(runs))
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Cursors).next_numbers.get(bridge, 1)
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{path}: not a plan ({error}); restore it") from error


def number_not_run(lake: Lake, bridge: str) -> int:
    """The number of this bridge's next segment that no committed run has read; all below are rows, or may be deleted.

    Raises:
        CorruptLakeError: the plan of the last committed run is gone, or is not a plan.
        RetryLaterError: the storage is away.
    """
    from pipelines.lake.commit import committed_run  # noqa: PLC0415  # the table library, for a remote lake only

    run = committed_run(lake, COMMITS)
    if run == 0:
        return 1
    path = plan_path(lake.root, run)
    try:
        return msgspec.json.decode(lake.read(path), type=_Cursors).next_numbers.get(bridge, 1)
    except FileNotFoundError as error:
        raise CorruptLakeError(
            f"{lake.root}: run {run} is committed, its plan in runs/ is gone; restore it from a copy"
        ) from error
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{path}: not a plan ({error}); restore it") from error
