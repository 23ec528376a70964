"""Find the files of a folder that are new and no longer being written.

Files are taken in the order of their inode change time, which a copy that keeps the old modification time cannot put
into the past, and only once two looks, `settle_s` apart, have seen the same size and times.
"""

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from catchment.runtime.beneath import IS_FOLDER
from edge_agent.errors import SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.files.watched import why_unread

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
        """Its name as text: what of it is no UTF-8 (an older camera's, a Windows share's) is told by its hexadecimal digits."""
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


class Refused:
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


def look(folder: Path, patterns: Sequence[str], refused: Refused) -> list[FoundFile]:
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


def _found(entry: os.DirEntry[str], folder_owner: int, refused: Refused) -> FoundFile | None:
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
