"""The landing folder of one bridge: one open segment, sealed by size or age, numbered without gaps, and brought to a remote lake.

The disk thread tries again on OSError and keeps the messages meanwhile; a storage that is unavailable is the same to it.
A bridge whose landing folder is new goes on at the number that the runs wait for, read from one of their plans.

After a crash every open segment is cut to its whole messages and sealed. A torn tail was never acknowledged (the ack follows
the sync), so the broker sends those messages again. It is still set aside rather than deleted: nothing that arrived
disappears without a trace.
"""

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import pyarrow as pa
import structlog

from catchment.runtime.atomic_files import sync_folder, write_atomic
from catchment.runtime.clock import Clock
from pipelines.bridge.rows import SEGMENT_SCHEMA, LandingRow, rows_to_batch
from pipelines.bridge.segment import (
    END_OF_STREAM,
    OPEN_SUFFIX,
    SEALED_SUFFIX,
    OpenSegment,
    map_file,
    sealed_path,
    segment_number,
    walk,
)
from pipelines.errors import ConfigError, ConflictError, CorruptLakeError, PipelineError, RetryLaterError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import COMMITS, LANDING, OBJECTS, RUNS, plan_path
from pipelines.lake.store import Store

log = structlog.get_logger(__name__)

_MAX_ABSENT = 10_000
TORN_FOLDER = "torn"

LOCK_NAME = ".lock"


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


@dataclass(frozen=True, slots=True)
class Recovered:
    """The result of recovering a segment: `sealed` is None where no whole message was in it and its number is free again."""

    number: int
    sealed: Path | None
    messages: int
    torn_bytes: int
    reason: str


def recover_folder(folder: Path) -> tuple[int, list[Recovered]]:
    """Bring a landing folder to a state from which writing can go on.

    Returns:
        The number of the next segment (above every one that exists), and what was found.

    Raises:
        OSError: the disk refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [number for path in folder.iterdir() if (number := segment_number(path)) is not None]
    highest = max(numbers, default=0)
    found = [
        _recover(folder, path, is_last=segment_number(path) == highest)
        for path in sorted(folder.glob(f"*{OPEN_SUFFIX}"))
        if segment_number(path) is not None
    ]
    sync_folder(folder)
    is_free = bool(found) and found[-1].number == highest and found[-1].sealed is None
    return (highest if is_free else highest + 1), found


def whole_prefix(path: Path) -> tuple[int, int, str]:
    """Return the length of the good part of an open segment.

    Returns:
        The byte behind the last whole batch (0 if there is none), the messages up to there, and what stood in the way of more.

    Raises:
        OSError: the file cannot be opened.
    """
    content = map_file(path)
    good_bytes = messages = 0
    try:
        for end, batch in walk(content):
            good_bytes, messages = end, messages + batch.num_rows
    except (OSError, pa.ArrowException) as error:
        return good_bytes, messages, str(error)
    return good_bytes, messages, ""


def _recover(folder: Path, path: Path, *, is_last: bool) -> Recovered:
    number = segment_number(path)
    assert number is not None, "the caller lists only segments"
    good_bytes, messages, reason = whole_prefix(path)
    torn_bytes = _move_to_corrupt(folder, path, number, good_bytes) if messages or reason else 0
    if messages:
        _end_at(path, good_bytes)
    elif is_last:
        path.unlink()
        return Recovered(number, None, 0, torn_bytes, reason)
    else:
        # Its number is given out and a gap would stop the reader: seal it empty.
        write_atomic(path, _empty_segment())
    sealed = sealed_path(folder, number)
    path.rename(sealed)
    return Recovered(number, sealed, messages, torn_bytes, reason)


def _move_to_corrupt(folder: Path, path: Path, number: int, good_bytes: int) -> int:
    """Keep what follows the whole batches as `torn/<number>-<offset>`, unless it is but the end-of-stream mark."""
    with path.open("rb") as file:
        file.seek(good_bytes)
        tail = file.read()
    if tail in (b"", END_OF_STREAM):
        return 0
    aside = folder / TORN_FOLDER
    aside.mkdir(exist_ok=True)
    write_atomic(aside / f"{number:012d}-{good_bytes}", tail)
    return len(tail)


def _end_at(path: Path, good_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(good_bytes)
        file.seek(good_bytes)
        file.write(END_OF_STREAM)
        file.flush()
        os.fsync(file.fileno())


def _empty_segment() -> bytes:
    return bytes(SEGMENT_SCHEMA.serialize()) + END_OF_STREAM


class Landing:
    """Appends rows durably and seals segments. One thread uses it; one process holds its folder.

    Args:
        folder: `<lake>/landing/<bridge>`.
        seal_bytes: seal once the open segment has grown to this.
        seal_ms: seal this long after the open segment's first message.
        clock: for the age.
        away: the remote lake, if there is one; then every append ends in a segment of its own, which is brought there.
        first_number: no segment gets a lower one, though the folder be empty.

    Raises:
        ConfigError: another process of this machine writes to the folder.
        OSError: the disk refused.
    """

    def __init__(
        self, folder: Path, seal_bytes: int, seal_ms: int, clock: Clock, away: Away | None = None, first_number: int = 1
    ) -> None:
        self.sealed = 0
        self.syncs = 0
        self._folder = folder
        self._seal_bytes = seal_bytes
        self._seal_s = seal_ms / 1000
        self._clock = clock
        self._first_message_s: float | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _hold(folder)
        self._away = away
        self._first_number = first_number
        self._open: OpenSegment | None = None
        self._next_number = self._recover()

    def append(self, rows: Sequence[LandingRow]) -> None:
        """Write rows and return when they are durable: on this disk, or, if the lake is remote, there.

        Raises:
            OSError: the disk refused; none of these rows may be acknowledged. `restart` before the next call.
        """
        segment = self._segment()
        segment.append(rows_to_batch(rows))
        segment.sync()
        self.syncs += 1
        if self._first_message_s is None:
            self._first_message_s = self._clock.monotonic_s()
        if self._away is not None:
            self.seal()

    def seal_if_due(self) -> Path | None:
        """Seal the open segment if it is large or old enough.

        Raises:
            OSError: the disk refused; `restart` before the next call.
        """
        segment = self._open
        if segment is None or self._first_message_s is None:
            return None
        is_old = self._clock.monotonic_s() - self._first_message_s >= self._seal_s
        return self.seal() if is_old or segment.durable_bytes >= self._seal_bytes else None

    def seal(self) -> Path | None:
        """Seal the open segment if it has a message.

        The next open segment is created first: the highest number then always exists, even after a run has taken
        every sealed segment away, and is never given out twice.

        Raises:
            OSError: the disk refused; `restart` before the next call.
        """
        segment = self._open
        if segment is None or segment.messages == 0:
            return None
        following = OpenSegment(self._folder, segment.number + 1)
        following.sync()
        sync_folder(self._folder)
        sealed = segment.seal()
        sync_folder(self._folder)
        self._open, self._next_number, self._first_message_s = following, following.number, None
        self.sealed += 1
        if self._away is not None:
            self._away.ship(sealed)
        return sealed

    def restart(self) -> None:
        """After the disk refused: keep what was durable, seal it, and start a new segment.

        Raises:
            OSError: it still refuses; try again later.
        """
        segment, self._open, self._first_message_s = self._open, None, None
        if segment is not None:
            segment.abandon()
        self._next_number = self._recover()

    def close(self) -> None:
        """Seal what is open and let the folder go.

        Raises:
            OSError: the disk refused; the next start recovers.
        """
        try:
            self.seal()
        finally:
            os.close(self._lock)

    def _segment(self) -> OpenSegment:
        if self._open is None:
            self._open = OpenSegment(self._folder, self._next_number)
            sync_folder(self._folder)
        return self._open

    def _recover(self) -> int:
        number, found = recover_folder(self._folder)
        for one in found:
            _tell(one)
        if self._away is None:
            return max(number, self._first_number)
        # In order and without gaps: what an earlier process sealed and did not bring away goes first.
        for left in sorted(self._folder.glob(f"*{SEALED_SUFFIX}")):
            self._away.ship(left)
        return max(number, self._away.next_number())


def _hold(folder: Path) -> int:
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(f"{folder}: another bridge writes here; give each bridge its own bridge.id") from error
    return descriptor


def _tell(one: Recovered) -> None:
    say = log.warning if one.torn_bytes else log.info
    say(
        "segment_recovered",
        number=one.number,
        sealed=one.sealed is not None,
        messages=one.messages,
        torn_bytes=one.torn_bytes,
        reason=one.reason,
    )
