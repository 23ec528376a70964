"""Files that others put where the agent reads: found once they are no longer written, opened without following links.

The folder that the configuration names may be a link; what lies in it may not be one. A second name (hard link) of a file that
is private to its owner, or belongs to somebody else than the folder, is refused, too: it may be a key of the agent's own.

Files are taken in the order of their inode change time, which a copy that keeps the old modification time cannot put
into the past, and only once two looks, `settle_s` apart, have seen the same size and times.
"""

import base64
import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PosixPath
from typing import BinaryIO, Self

from catchment.runtime.beneath import IS_FOLDER, RefusedFileError, binary_beneath, status_beneath, why_refused
from edge_agent.errors import SourceError
from edge_agent.sources.api import Rejects

IS_SECOND_NAME = "a second name (hard link) of a file that is private or another user's"
CHANGED = "changed since it was found; it is read again when it settles"


def why_unread(seen: os.stat_result, folder_owner: int) -> str:
    """Return the reason why a file found in a watched folder is not read; empty where it is.

    Args:
        seen: its status, of the link itself where it is one.
        folder_owner: user id that owns the folder.
    """
    reason = why_refused(seen)
    if reason or seen.st_nlink < 2:
        return reason
    is_private = not stat.S_IMODE(seen.st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
    return IS_SECOND_NAME if is_private or seen.st_uid != folder_owner else ""


def open_watched(folder: Path, name: str) -> BinaryIO:
    """Open a file below a folder that others may write to.

    Raises:
        RefusedFileError: a link, no plain file, a second name of a private file, or the name leads out of the folder.
        OSError: it cannot be read.
    """
    file = binary_beneath(folder, name)
    try:
        _refuse_second_name(os.fstat(file.fileno()), folder / name)
    except BaseException:
        file.close()
        raise
    return file


def _refuse_second_name(seen: os.stat_result, path: Path) -> None:
    reason = why_unread(seen, path.parent.stat().st_uid)
    if reason:
        raise RefusedFileError(reason, path)


def open_named(path: Path) -> BinaryIO:
    """Open a file that the configuration names: its folder may be a link, the file itself may not. Raises as `open_watched`."""
    return open_watched(path.parent, path.name)


def what_to_do(error: OSError, otherwise: str) -> str:
    """The reader's next act where a file that the configuration names cannot be read."""
    return "name the file itself in the configuration" if isinstance(error, RefusedFileError) else otherwise


def is_there(folder: Path, name: str) -> bool:
    """Whether there is something of that name below the folder, other than a folder; it may be refused when it is opened."""
    try:
        status_beneath(folder, name)
    except RefusedFileError as error:
        return error.strerror != IS_FOLDER
    except OSError:
        return False
    return True


class WatchedFile(PosixPath):
    """The path of a payload too large for memory: its reader gets the file that was found, or an error.

    It is a Path, as sources of other packages hand on; a path made from it by other means is an ordinary one.
    """

    _folder: Path | None = None
    _found = (0, 0, 0)

    @classmethod
    def found(cls, folder: Path, name: str, seen: os.stat_result) -> Self:
        """The path of a file below a watched folder.

        Args:
            folder: the watched folder.
            name: path of the file below it.
            seen: its status when it was found.
        """
        path = cls(folder / name)
        path._folder = folder
        path._found = _content(seen)
        return path

    def open(self, mode: str = "rb", buffering: int = -1) -> BinaryIO:  # type: ignore[override]  # for bytes, and to read alone
        """Open it for reading.

        Raises:
            OSError: it cannot be read, or is not the file that was found; `filename` is its path.
        """
        if mode != "rb":
            raise ValueError(f"{mode}: a watched file is read as bytes")
        if self._folder is None:
            return open(str(self), "rb", buffering)  # noqa: PTH123
        file = open_watched(self._folder, str(self.relative_to(self._folder)))
        if _content(os.fstat(file.fileno())) != self._found:
            file.close()
            raise OSError(errno.ESTALE, CHANGED, str(self))
        return file

    def read_bytes(self) -> bytes:
        """Its content. Raises as `open`."""
        with self.open() as file:
            return file.read()


def _content(seen: os.stat_result) -> tuple[int, int, int]:
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


_MAX_NAME_BYTES = 255


@dataclass(frozen=True, slots=True, order=True)
class FoundFile:
    """A file as one look saw it. Ordered by change time, then name."""

    changed_ns: int
    name: str
    modified_ns: int
    size: int
    inode: int = 0

    @property
    def identity(self) -> tuple[str, int, int, int]:
        """The part of the status that stays the same when only rights, owner or links of the file change."""
        return self.name, self.modified_ns, self.size, self.inode

    @property
    def fingerprint(self) -> str:
        """The identity in eight characters, for a position that must stay small."""
        return _short(self.identity)

    @property
    def content(self) -> tuple[int, int, int]:
        """The part of the status that stays the same when the file gets another name, too."""
        return self.modified_ns, self.size, self.inode

    @property
    def memory(self) -> str:
        """The two halves by which a captured file is recognised later: under any name, and by its name alone.

        The second is for file systems without inodes of their own, which give others each time they are mounted.
        """
        return _short(self.content) + _short((self.name, self.modified_ns, self.size))

    @property
    def shown(self) -> str:
        """Its name as text: what of it is no UTF-8 (an older camera's, a Windows share's) is shown as hexadecimal digits."""
        return os.fsencode(self.name).decode(errors="backslashreplace")

    @property
    def mark(self) -> tuple[int, str]:
        """The sort key."""
        return self.changed_ns, self.shown


def _short(what: tuple[object, ...]) -> str:
    return base64.b85encode(hashlib.blake2b(repr(what).encode(), digest_size=6).digest()).decode()


class Remembered:
    """The files that were captured and are still in the folder, in the order they were; as small as they can be."""

    def __init__(self) -> None:
        self.memories: list[str] = []

    def add(self, files: Sequence[FoundFile]) -> None:
        """These were captured."""
        self.memories.extend(file.memory for file in files)

    def resume(self, memories: Sequence[str], here: Sequence[FoundFile]) -> list[FoundFile]:
        """Load the files that were captured before; forget those that no longer exist."""
        middle = len(_short(()))
        contents = {memory[:middle] for memory in memories}
        names = {memory[middle:] for memory in memories}
        known = {file: file.memory for file in here}
        captured = [file for file, memory in known.items() if memory[:middle] in contents or memory[middle:] in names]
        self.memories = [known[file] for file in captured]
        return captured


class RefusedEntries:
    """Entries of watched folders that are not read, each counted once, however often it is seen.

    Args:
        rejects: where they are counted.
    """

    def __init__(self, rejects: Rejects) -> None:
        self._rejects = rejects
        self._counted: set[tuple[str, str]] = set()
        self._seen: set[tuple[str, str]] = set()

    def begin(self) -> None:
        """Begin a look; entries that were not seen in the last one are forgotten."""
        self._counted &= self._seen
        self._seen = set()

    def add(self, name: str, reason: str) -> None:
        """Count an entry, unless an earlier look did. A folder is neither data nor an attack, so it is not counted."""
        if reason == IS_FOLDER:
            return
        entry = (name, reason)
        self._seen.add(entry)
        if entry not in self._counted:
            self._counted.add(entry)
            self._rejects.count(f"file: {reason}", name)


def look(folder: Path, patterns: Sequence[str], refused: RefusedEntries) -> list[FoundFile]:
    """The plain files of a folder that match one of the patterns and are not hidden, sorted.

    Raises:
        SourceError: the folder cannot be read.
    """
    found: list[FoundFile] = []
    refused.begin()
    try:
        owner = folder.stat().st_uid
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not any(fnmatchcase(entry.name.lower(), form) for form in patterns):
                    continue
                file = _found(entry, owner, refused)
                if file is not None:
                    found.append(file)
    except OSError as error:
        raise SourceError(f"{folder} cannot be read ({error.strerror}); create the folder or correct `path`") from error
    return sorted(found)


def _found(entry: os.DirEntry[str], folder_owner: int, refused: RefusedEntries) -> FoundFile | None:
    try:
        seen = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None  # it was renamed or removed between the two calls: the next look sees what became of it
    reason = why_unread(seen, folder_owner)
    if reason:
        refused.add(entry.name, reason)
        return None
    return FoundFile(seen.st_ctime_ns, entry.name, seen.st_mtime_ns, seen.st_size, seen.st_ino)


def second_name(name: str, number: int) -> str:
    """Another name for a file whose own is taken: with a number before its suffix, and no longer than a file's name may be."""
    stem, dot, suffix = name.rpartition(".")
    if not stem:
        stem, dot, suffix = name, "", ""
    end = os.fsencode(f".{number}{dot}{suffix}")[-_MAX_NAME_BYTES // 2 :]
    kept = os.fsencode(stem)[: _MAX_NAME_BYTES - len(end)]
    return os.fsdecode(kept + end)


def is_unchanged(folder: Path, file: FoundFile) -> bool:
    """Whether the file is still there with the content that was seen; rights and owner may have changed."""
    try:
        seen = (folder / file.name).stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (file.name, seen.st_mtime_ns, seen.st_size, seen.st_ino) == file.identity


class Settling:
    """Remembers when each file was first seen as it is now."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since: dict[FoundFile, float] = {}

    def settled(self, files: Sequence[FoundFile], now_s: float) -> list[FoundFile]:
        """The files, in order, up to the first that may still be written: a later one must not overtake it."""
        self._since = {file: self._since.get(file, now_s) for file in files}
        ready: list[FoundFile] = []
        for file in files:
            if now_s - self._since[file] < self._settle_s:
                break
            ready.append(file)
        return ready
