"""Where a bridge goes on whose landing folder is new: at the number that the runs wait for, read from their newest plan."""

from pathlib import Path

import msgspec

from pipelines.errors import CorruptLakeError
from pipelines.lake.layout import RUNS, plan_path


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
