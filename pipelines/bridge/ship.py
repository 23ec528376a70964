"""Bring segments and objects to a remote lake before anyone is told that they are durable.

The disk thread tries again on OSError and keeps the messages meanwhile; a storage that is unavailable is the same to it.
A bridge whose landing folder is new goes on at the number that the runs wait for, read from one of their plans.
"""

from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from pipelines.bridge.segment import segment_number
from pipelines.errors import ConflictError, CorruptLakeError, PipelineError, RetryLaterError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, LANDING, OBJECTS, RUNS, plan_path
from pipelines.lake.store import Store

_MAX_ABSENT = 10_000

log = structlog.get_logger(__name__)


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


class Away(Protocol):
    """The interface to the place where sealed segments go on to."""

    def next_number(self) -> int:
        """The first number that is free there.

        Raises:
            OSError: not to be had for now.
        """
        ...

    def ship(self, sealed: Path) -> None:
        """Bring a sealed segment there; the file here goes with it.

        Raises:
            OSError: not for now.
        """
        ...


class StoredObjects:
    """The objects of a lake.

    Args:
        store: files of the lake.
        folder: folder of the objects, with a slash at its end; empty for that of the store itself.
    """

    def __init__(self, store: Store, folder: str = f"{OBJECTS}/") -> None:
        self._store, self._folder = store, folder
        self._absent: set[str] = set()

    def size(self, digest: str) -> int | None:
        """The bytes of an object; None if it is not there.

        Raises:
            OSError: the storage is unavailable.
        """
        if digest in self._absent:
            return None  # the usual case: the next part of what was not there a moment ago
        try:
            found = self._store.size(f"{self._folder}{digest}")
        except RetryLaterError as error:
            raise OSError(str(error)) from error
        if found is None and self._store.looks_per_listing > 1:
            if len(self._absent) >= _MAX_ABSENT:
                self._absent.clear()
            self._absent.add(digest)
        return found

    def settle(self, path: Path, whole: Path) -> None:
        """Put a finished file in its place, durable; it is gone from where it was.

        Raises:
            OSError: the storage is unavailable, or the disk refused.
        """
        try:
            self._store.move_in(path, f"{self._folder}{whole.name}")
        except RetryLaterError as error:
            raise OSError(str(error)) from error
        self._absent.discard(whole.name)


class RemoteLanding:
    """One bridge's segments in a remote lake."""

    def __init__(self, lake: Lake, bridge: str) -> None:
        self._lake = lake
        self._folder = f"{LANDING}/{bridge}"

    def next_number(self) -> int:
        """The first number that is free there: an empty disk must not start at 1 again.

        Nor may it where the landed segments were deleted: what lies below the runs' cursor would never be read.

        Raises:
            OSError: the storage is away.
        """
        try:
            landed = self._lake.files(self._folder)
            cursor = number_not_run(self._lake, self._folder.rsplit("/", 1)[-1])
        except PipelineError as error:
            raise OSError(str(error)) from error
        return max(cursor, (segment_number(Path(landed[-1].name)) or 0) + 1 if landed else 1)

    def ship(self, sealed: Path) -> None:
        """Bring a sealed segment away.

        Raises:
            OSError: the storage is away, or has another segment of this number.
        """
        name = self._lake.name_of(sealed)
        try:
            self._lake.store.create(name, sealed)
        except ConflictError as error:
            # Two disks have been this bridge. Its messages are not acknowledged: nothing is lost, but somebody must decide.
            log.exception("segment_number_taken", name=name, hint="give this bridge a new bridge.id and an empty `lake` folder")
            raise OSError(str(error)) from error
        except RetryLaterError as error:
            raise OSError(str(error)) from error
        sealed.unlink()
