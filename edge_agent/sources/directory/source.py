"""A source that watches a folder: each file that settles there is a sample, its bytes the payload.

    kind = "directory"
    path = "/var/spool/camera"
    pattern = ["*.jpg", "*.png"]     # default: files of the media types that the contract takes
    done = "delete"                  # keep | delete | move (into <path>/done)
    sidecars = "labels"              # <name>.json or <stem>.json here; default: next to the picture
    masks = "masks"                  # <stem>.png becomes the column mask
    attributes = "index.csv"         # a table with a row per file
    rename = { bsd_type = "label" }
    time = "mtime"                   # or the key of sidecar or table that tells the event time
    time_start = "2024-05-01T00:00:00Z"  # with a `time` that counts from 0
    columns = { camera = "line-3" }  # the same for every sample
    settle_ms = 500                  # a file must stay unchanged for so long
    max_settle_s = 30.0              # a picture without its end must stay unchanged for so long
    part_threshold_bytes = 1048576   # above: handed on as a path, never read into memory
    end_when_idle = false

A file is the same as long as name, inode, size and modification time are: chmod, chown and links do not make it new, a
rewrite does. With `keep` another name does not make it new either, and across a restart name, size and modification time are
enough. Nothing depends on clocks: `keep` remembers every file that it captured and that is still there, in 19 bytes each.

A picture whose format says that its end is missing waits by itself; one that stays so for `max_settle_s` is captured with
`payload_complete` false.
"""

import contextlib
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from catchment.runtime.beneath import folder_beneath
from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.directory.files import FileSamples
from edge_agent.sources.directory.picture_formats import has_end
from edge_agent.sources.files.watched import (
    FoundFile,
    RefusedEntries,
    Remembered,
    Settling,
    is_unchanged,
    look,
    open_watched,
    second_name,
)
from edge_agent.sources.options import WrittenOptions, read_options
from edge_agent.sources.rows.cells import CellError, start_time_us
from schemas.contract import Contract

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("path", "pattern")

# Which settled pictures have their end: one without it waits, alone, until it is whole or was left alone for long.
_Key = tuple[str, int, int, int]


class PictureEnds:
    """Looks at each settled file once, and again when it changed.

    Args:
        folder: where the files are.
        max_settle_s: a picture without its end that stays as it is for so long is let through.
    """

    def __init__(self, folder: Path, max_settle_s: float) -> None:
        self._folder = folder
        self._max_settle_s = max_settle_s
        self._ends: dict[_Key, bool | None] = {}
        self._since: dict[_Key, float] = {}

    def complete(self, settled: Sequence[FoundFile], here: Sequence[FoundFile], now_s: float) -> list[FoundFile]:
        """The settled files, less the pictures whose end may still come; `here` are all files that are not captured yet."""
        known = {file.identity for file in here}
        self._since = {key: since for key, since in self._since.items() if key in known}
        self._ends = {key: end for key, end in self._ends.items() if key in known}
        return [file for file in settled if self._may_go(file, now_s)]

    def take(self, file: FoundFile) -> bool | None:
        """Whether a file that was let through has its end; None where its format does not tell."""
        return self._ends.pop(file.identity, None)

    def _may_go(self, file: FoundFile, now_s: float) -> bool:
        key = file.identity
        since_s = self._since.get(key)
        if since_s is None:
            self._ends[key] = self._look(file)
            if self._ends[key] is not False:
                return True
            since_s = self._since[key] = now_s
        return now_s - since_s >= self._max_settle_s

    def _look(self, file: FoundFile) -> bool | None:
        try:
            with open_watched(self._folder, file.name) as opened:
                return has_end(opened, file.size, file.name)
        except OSError:
            return None  # the reading of the file meets this again, and counts it


# Media type -> the names of such files.
_NAMES = {
    "image/jpeg": ("*.jpg", "*.jpeg"),
    "image/png": ("*.png",),
    "image/tiff": ("*.tif", "*.tiff", "*.svs"),
    "image/gif": ("*.gif",),
    "image/bmp": ("*.bmp",),
    "image/webp": ("*.webp",),
    "video/mp4": ("*.mp4",),
}
MAX_BATCH_BYTES = 16 * 1024 * 1024
# Of a look that takes longer than this, at most a tenth of the time is spent looking.
_LONG_LOOK_S = 0.25
_LOOK_SHARE = 10
DONE = "done"


class DirectoryOptions(WrittenOptions, frozen=True, forbid_unknown_fields=True):
    """The options of a watched folder; the module's docstring shows each."""

    path: str
    pattern: str | tuple[str, ...] = ()
    done: Literal["keep", "delete", "move"] = "keep"
    sidecars: str = ""
    masks: str = ""
    attributes: str = ""
    time: str = "mtime"
    time_start: str = ""
    rename: dict[str, str] = {}  # noqa: RUF012 # msgspec gives each its own
    columns: dict[str, str | int | float | bool] = {}  # noqa: RUF012 # msgspec gives each its own
    settle_ms: int = 500
    max_settle_s: float = 30.0
    poll_ms: int = 200
    part_threshold_bytes: int = 1024 * 1024
    end_when_idle: bool = False


class DirectoryPosition(msgspec.Struct, frozen=True):
    """The position in the folder.

    `given`: what the files captured and still there are known by (keep), or fingerprints of those that may not be moved away
    yet (delete, move). It only grows at its end, so that the spool rewrites little. `is_whole`: all of them. An earlier agent
    kept the last 1,024 fingerprints alone, and in `mark` the last file given out.
    """

    given: list[str] = []
    is_whole: bool = False
    mark: tuple[int, str] = (0, "")


class DirectorySource:
    """Watches one folder; see the module.

    Attributes:
        rejected: reason -> files and cells refused.
    """

    def __init__(self, options: DirectoryOptions, contract: Contract, clock: Clock, position: bytes | None) -> None:
        self._options = options
        self._clock = clock
        self._folder = Path(options.path)
        self._rejects = Rejects(f"directory {self._folder.name}")
        self._refused = RefusedEntries(self._rejects)
        self._samples = FileSamples(options, contract, self._rejects)
        forms = (options.pattern,) if isinstance(options.pattern, str) else options.pattern or patterns_of(contract)
        self._patterns = [pattern.lower() for pattern in forms]
        self._settling = Settling(options.settle_ms / 1000)
        self._ends = PictureEnds(self._folder, options.max_settle_s)
        self._ready: deque[FoundFile] = deque()
        self._waiting = True  # whether files were seen that have not settled
        self._next_look_s = clock.monotonic_s()
        self._done: set[tuple[str | int, ...]] = set()
        self._remembered = Remembered()
        self._pending: deque[tuple[bytes, list[FoundFile]]] = deque()
        self._resume(position)

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many files or cells were refused since the source was built."""
        return dict(self._rejects.counts)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names in the source that fill no column."""
        return tuple(sorted(self._samples.left_out))

    @property
    def matched(self) -> dict[str, str]:
        """Column -> the source's name for it."""
        return self._samples.matched

    def _resume(self, position: bytes | None) -> None:
        try:
            at = DirectoryPosition() if position is None else msgspec.json.decode(position, type=DirectoryPosition)
        except msgspec.MsgspecError:
            self._rejects.count("file: the stored position is unreadable; the folder is read from its start")
            at = DirectoryPosition()
        here = look(self._folder, self._patterns, self._refused)
        if self._options.done == "keep":
            if at.is_whole:
                captured = self._remembered.resume(at.given, here)
            else:
                recent = set(at.given)
                captured = [file for file in here if file.mark <= at.mark or file.fingerprint in recent]
                self._remembered.add(captured)
            self._done = {self._key(file) for file in captured}
            return
        given = set(at.given)
        self._put_away([file for file in here if file.fingerprint in given])

    def read(self, max_samples: int) -> SampleBatch | None:
        """The next files, at most so many and about 16 MiB; None when none has settled.

        Raises:
            SourceEndedError: `end_when_idle` is set and nothing is left to read.
            SourceError: the folder cannot be read any more.
        """
        if not self._ready and not self._look():
            if self._options.end_when_idle and not self._waiting:
                raise SourceEndedError(f"{self._folder} holds nothing more")
            return None
        taken: list[FoundFile] = []
        size = 0
        while self._ready and len(taken) < max_samples and size < MAX_BATCH_BYTES:
            file = self._ready.popleft()
            taken.append(file)
            size += file.size if file.size <= self._options.part_threshold_bytes else 0
        batch, captured = self._samples.read(taken, [self._ends.take(file) for file in taken])
        self._done.update(self._key(file) for file in taken)
        self._remembered.add(captured)
        return None if batch is None else self._give(captured, batch)

    def _look(self) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s < self._next_look_s:
            return False
        here = look(self._folder, self._patterns, self._refused)
        # A folder of very many files takes long to look through: that must not become all that the device does.
        took_s = self._clock.monotonic_s() - now_s
        rest_s = took_s * _LOOK_SHARE if took_s > _LONG_LOOK_S else 0.0
        self._next_look_s = now_s + max(self._options.poll_ms / 1000, rest_s)
        self._done.intersection_update([self._key(file) for file in here])
        files = [file for file in here if self._key(file) not in self._done]
        settled = self._ends.complete(self._settling.settled(files, now_s), files, now_s)
        self._waiting = len(settled) < len(files)
        self._ready.extend(settled)
        self._samples.refresh()
        return bool(settled)

    def _give(self, captured: list[FoundFile], batch: SampleBatch) -> SampleBatch:
        keep = self._options.done == "keep"
        waiting = [file for _, files in self._pending for file in files] + captured
        given = self._remembered.memories if keep else [file.fingerprint for file in waiting]
        position = msgspec.json.encode(DirectoryPosition(given, is_whole=keep))
        if not keep:
            self._pending.append((position, captured))
        return replace(batch, position=position)

    def stored(self, batch: SampleBatch) -> None:
        """The batch is durable: its files, and those of batches before it, are moved away or deleted."""
        if not any(position == batch.position for position, _ in self._pending):
            return
        while self._pending:
            position, files = self._pending.popleft()
            self._put_away(files)
            if position == batch.position:
                return

    def _key(self, file: FoundFile) -> tuple[str | int, ...]:
        return file.content if self._options.done == "keep" else file.identity

    def _put_away(self, files: list[FoundFile]) -> None:
        for file in files:
            self._done.discard(self._key(file))
            if is_unchanged(self._folder, file):  # else it is another file by now, which was not captured
                for name in self._samples.names(file.name):
                    self._put_away_one(name, file)

    def _put_away_one(self, name: str, file: FoundFile) -> None:
        try:
            with folder_beneath(self._folder) as folder:
                if self._options.done == "delete":
                    os.unlink(name, dir_fd=folder)
                else:
                    self._move_away(folder, name, file)
        except FileNotFoundError:
            return  # a sidecar shared by two pictures went with the first
        except OSError as error:
            raise SourceError(
                f"{self._folder / name} cannot be moved away ({error.strerror}); let the agent write to {self._folder}"
            ) from error

    def _move_away(self, folder: int, name: str, file: FoundFile) -> None:
        """Move a file into `done`, which must be a folder: through a link it would land where somebody else chose."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(DONE, dir_fd=folder)
        with folder_beneath(self._folder, DONE) as done:
            target = second_name(name, file.changed_ns) if _is_there(name, done) else name
            os.rename(name, target, src_dir_fd=folder, dst_dir_fd=done)

    def close(self) -> None:
        """Nothing is held open."""


def _is_there(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def patterns_of(contract: Contract) -> tuple[str, ...]:
    """Names of the files that a contract takes; of pictures of all kinds, where it names no media type."""
    types = contract.payload.media_types if contract.payload is not None else ()
    wanted = [type_ for type_ in types or _NAMES if type_ in _NAMES]
    return tuple(pattern for type_ in wanted for pattern in _NAMES[type_])


def check(options: Mapping[str, object], contract: Contract) -> DirectoryOptions:
    """The options of a watched folder.

    Raises:
        ConfigError: an option is unknown, missing or wrong, or the contract has no payload.
    """
    chosen = read_options("directory", options, DirectoryOptions, contract)
    if contract.payload is None:
        raise ConfigError(f"source 'directory': contract {contract.name} has no payload; files need one that has")
    if not chosen.pattern and not patterns_of(contract):
        types = ", ".join(contract.payload.media_types)
        raise ConfigError(
            f"source 'directory': pattern is missing: no file names are known for {types} of contract {contract.name}"
        )
    if chosen.time_start:
        try:
            start_time_us(chosen.time_start)
        except CellError as error:
            raise ConfigError(f"source 'directory': time_start = {chosen.time_start!r} is {error}") from error
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> DirectorySource:
    """Build a watched folder.

    Raises:
        ConfigError: an option is unknown, missing or wrong, or the contract has no payload.
        SourceError: the folder cannot be read.
    """
    return DirectorySource(check(options, contract), contract, clock, position)
