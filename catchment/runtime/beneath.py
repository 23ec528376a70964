"""Open files beneath a folder that others may write to: no link is followed below it, only plain files are read.

The folder itself is named by the configuration and may be a link. Below it each part of the name is opened by the folder
above it (`openat` with O_NOFOLLOW), so that no part can be exchanged between the check and the use.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

# A folder that may be searched but not listed can be opened so; systems without it open it for reading.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
# Without waiting: a named pipe must not hold up its reader, and a terminal must not become the process's own.
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
IS_LINK = "a link; links are not followed here"
IS_FOLDER = "a folder, not a file"
EXCHANGED = "exchanged for another file while it was opened"
_KINDS = {
    stat.S_IFDIR: IS_FOLDER,
    stat.S_IFIFO: "a named pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
    stat.S_IFLNK: IS_LINK,
}


class RefusedFileError(OSError):
    """The name leads out of the folder or through a link, or what it names is not a plain file; `strerror` says which."""

    def __init__(self, reason: str, path: Path) -> None:
        super().__init__(errno.ELOOP, reason, str(path))


def why_refused(seen: os.stat_result) -> str:
    """Return the reason why a file of this status is not read; empty for a plain file."""
    return "" if stat.S_ISREG(seen.st_mode) else _KINDS.get(stat.S_IFMT(seen.st_mode), "not a plain file")


def inner_parts(name: str) -> tuple[str, ...]:
    """The parts of a name that stays below its folder.

    Raises:
        ValueError: it is empty or absolute, has a part `.` or `..`, an empty part or a NUL.
    """
    parts = tuple(name.split("/"))
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError("not a plain path below the folder")
    return parts


def open_beneath(root: Path, name: str) -> int:
    """Open a plain file below a folder for reading, and return its descriptor.

    Args:
        root: the folder; it may be a link, what lies below it may not.
        name: path of the file, relative to `root`, parts separated by `/`.

    Raises:
        RefusedFileError: the name leads out of `root` or through a link, the file is not a plain one, or it was exchanged
            for another one meanwhile.
        OSError: it cannot be opened.
    """
    path = root / name
    with _holding(root, name) as (folder, last):
        seen = _status(folder, last, path)
        _refuse_unless_plain(seen, path)
        descriptor = _opened(last, _FILE, folder, path)
    try:
        now = os.fstat(descriptor)
        _refuse_unless_plain(now, path)
        _refuse_unless_same(now, seen, path)
        os.set_blocking(descriptor, True)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def binary_beneath(root: Path, name: str) -> BinaryIO:
    """Open a plain file below a folder as a file object; its name is the path. Raises as `open_beneath`."""
    _checked(name, root / name)
    return open(str(root / name), "rb", opener=lambda _path, _flags: open_beneath(root, name))


def status_beneath(root: Path, name: str) -> os.stat_result:
    """The status of a plain file below a folder.

    Raises:
        RefusedFileError: the name leads out of `root` or through a link, or the file is not a plain one.
        OSError: it is missing, or its folder cannot be searched.
    """
    path = root / name
    with _holding(root, name) as (folder, last):
        seen = _status(folder, last, path)
    _refuse_unless_plain(seen, path)
    return seen


@contextmanager
def folder_beneath(root: Path, name: str = "") -> Iterator[int]:
    """A descriptor of `root`, or of a folder below it, for calls with `dir_fd`.

    Raises:
        RefusedFileError: the name leads out of `root` or through a link, or is not a folder.
        OSError: it cannot be opened.
    """
    parts = _checked(name, root / name) if name else ()
    folder = os.open(root, _FOLDER)
    try:
        walked = root
        for part in parts:
            walked = walked / part
            inner = _opened(part, _FOLDER | os.O_NOFOLLOW, folder, walked)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def rooted(path: Path, watched: Path) -> tuple[Path, str]:
    """A configured path as a root and a name below it: below the watched folder where it lies there, else itself.

    What lies in the watched folder may be exchanged by its writers, even where the configuration names it.
    """
    inside = PurePath(os.path.normpath(path))
    folder = PurePath(os.path.normpath(watched))
    if inside != folder and inside.is_relative_to(folder):
        return watched, inside.relative_to(folder).as_posix()
    return path, ""


@contextmanager
def _holding(root: Path, name: str) -> Iterator[tuple[int, str]]:
    *above, last = _checked(name, root / name)
    with folder_beneath(root, "/".join(above)) as folder:
        yield folder, last


def _checked(name: str, path: Path) -> tuple[str, ...]:
    try:
        return inner_parts(name)
    except ValueError as error:
        raise RefusedFileError(f"{error}", path) from error


def _status(folder: int, name: str, path: Path) -> os.stat_result:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        error.filename = str(path)
        raise


def _opened(name: str, flags: int, folder: int, path: Path) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        error.filename = str(path)
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            # Both mean a link here, or (ENOTDIR alone) a file where a folder should be.
            is_link = stat.S_ISLNK(_status(folder, name, path).st_mode)
            raise RefusedFileError(IS_LINK if is_link else "not a folder", path) from error
        raise


def _refuse_unless_plain(seen: os.stat_result, path: Path) -> None:
    reason = why_refused(seen)
    if reason:
        raise RefusedFileError(reason, path)


def _refuse_unless_same(now: os.stat_result, seen: os.stat_result, path: Path) -> None:
    if not os.path.samestat(now, seen):
        raise RefusedFileError(EXCHANGED, path)
