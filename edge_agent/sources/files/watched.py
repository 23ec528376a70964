"""Files that others put where the agent reads: opened without following links, and known again if they are exchanged.

The folder that the configuration names may be a link; what lies in it may not be one. A second name (hard link) of a file that
is private to its owner, or belongs to somebody else than the folder, is refused, too: it may be a key of the agent's own.
"""

import errno
import os
import stat
from pathlib import Path, PosixPath
from typing import BinaryIO, Self

from catchment.runtime.beneath import IS_FOLDER, RefusedFileError, binary_beneath, status_beneath, why_refused

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
    """The path of a payload too large for memory: whoever opens it gets the file that was found, or an error.

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
