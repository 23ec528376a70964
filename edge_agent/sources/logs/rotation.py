"""Find the files of a rotated log, and know each again: how they are called, which exist, in which order they were written.

A mark says how a file begins, and what stands just before a place in it. A copy, a packed copy and a renamed file hold the mark
of what they were made of; a log that was emptied and written again does not. Marks are pure; never a name or an inode decides.
"""

import glob
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from catchment.runtime.beneath import RefusedFileError, status_beneath
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.files.watched import RefusedEntries
from edge_agent.sources.logs.file import LogFile, place_of
from edge_agent.sources.options import RowOptions

HEAD_BYTES = 1_024
TAIL_BYTES = 1_024
# So much of a file's beginning is compared: a wide header alone can be a kilobyte.
MARKED_BYTES = 8_192
_FIRST_PRINT_BYTES = 64
# So many bytes, and their CRC-32.
Sum = tuple[int, int]


def sum_of(content: bytes) -> Sum:
    """The length and CRC-32 of some bytes."""
    return len(content), zlib.crc32(content)


def head_of(content: bytes) -> Sum:
    """The sum of a file's first kilobyte."""
    return sum_of(content[:HEAD_BYTES])


def prints_of(content: bytes) -> tuple[int, ...]:
    """The CRC-32 of the first 64, 128, 256 … 8,192 bytes, as far as there are so many."""
    prints: list[int] = []
    size = _FIRST_PRINT_BYTES
    while size <= min(len(content), MARKED_BYTES):
        prints.append(zlib.crc32(content[:size]))
        size *= 2
    return tuple(prints)


class Mark(msgspec.Struct, frozen=True):
    """A place in a log.

    Attributes:
        head: sum of the first kilobyte of content, as far as it lies before the place.
        size: offset of the place, in unpacked bytes.
        tail: sum of the bytes just before the place; (0, 0): unknown, as earlier agents did not keep it.
        prints: see `prints_of`, as far as the bytes lie before the place.
    """

    head: Sum
    size: int
    tail: Sum = (0, 0)
    prints: tuple[int, ...] = ()

    def fits(self, content: bytes) -> bool:
        """Whether a file that begins with this content begins as the marked one."""
        count = self.head[0]
        return (
            len(content) >= count
            and sum_of(content[:count]) == self.head
            and prints_of(content)[: len(self.prints)] == self.prints
        )

    def may_be_longer_than(self, content: bytes, size: int) -> bool:
        """Whether a file of this size could be a copy of the marked one that ends before the place."""
        prints = prints_of(content)
        return size < self.size and bool(prints) and self.prints[: len(prints)] == prints


class DoneFile(msgspec.Struct, frozen=True, array_like=True):
    """A file read to its end: how it begins, when it, or its packed copy, was last written, and where it ended.

    `size`: -1 where only the beginning was looked at.
    """

    head: Sum
    modified_ns: int
    size: int = -1
    tail: Sum = (0, 0)
    prints: tuple[int, ...] = ()

    @property
    def mark(self) -> Mark:
        """Its end."""
        return Mark(self.head, self.size, self.tail, self.prints)


class LogPosition(msgspec.Struct, frozen=True):
    """The position of a followed log.

    Attributes:
        head, offset, tail, prints: mark of the place in the file that is being read; head (0, 0): nothing of it was read yet.
        header_offset: where the header in force begins; -1: in an earlier file.
        done: the last files read to their end.
        since_ns: files not written since were read before those, or are not wanted.
        inode: of the log when it was last read where it is written; it tells a log that was cut from one that was renamed.
        form: how the rows are written: zeek, jsonl, csv or plain.
        header: the text of the header in force.
        lead: the beginning of a line whose end went into the next file.
    """

    head: Sum = (0, 0)
    offset: int = 0
    header_offset: int = 0
    done: tuple[DoneFile, ...] = ()
    since_ns: int = 0
    tail: Sum = (0, 0)
    prints: tuple[int, ...] = ()
    inode: int = 0
    form: str = ""
    header: str = ""
    lead: bytes = b""

    @property
    def mark(self) -> Mark:
        """The place."""
        return Mark(self.head, self.offset, self.tail, self.prints)


_PACKED_WITHIN_MS = 600_000
_PACKED_NAME = re.compile(r"\.(gz|zst|bz2|xz)$")
_NUMBER = re.compile(r"\.(\d{1,6})(?:\.[a-z]+)?$")


class LogOptions(RowOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of a followed log: its path and rotated files, the start, and the longest line."""

    path: str
    rotated: tuple[str, ...] = ()
    start: Literal["begin", "end", "rotated"] = "begin"
    settle_ms: int = 2_000
    max_line_bytes: int = 4 * 1024 * 1024


def check_rotated(kind: str, patterns: Sequence[str]) -> None:
    """Check the patterns of rotated files.

    Raises:
        ConfigError: one is empty or absolute.
    """
    for pattern in patterns:
        if not pattern or pattern.startswith("/"):
            raise ConfigError(f"source {kind!r}: rotated = {pattern!r} must be relative to the log's folder; ../ leads out of it")


@dataclass(frozen=True, slots=True)
class RotatedFile:
    """A file that may have been the log once. `begins`: its first bytes, unpacked."""

    path: Path
    modified_ns: int
    begins: bytes

    @property
    def head(self) -> Sum:
        """The mark of its beginning, as earlier agents stored it."""
        return head_of(self.begins)

    @property
    def is_packed(self) -> bool:
        """Whether its name says that it is packed."""
        return _PACKED_NAME.search(self.path.name) is not None

    @property
    def order(self) -> tuple[int, int, str]:
        """Oldest first; of one moment the higher number first, as logrotate counts, then the name."""
        found = _NUMBER.search(_PACKED_NAME.sub("", self.path.name))
        return self.modified_ns, -int(found.group(1)) if found else 0, self.path.name

    def was_read(self, done: DoneFile, log: Path) -> bool:
        """Whether it is the file that was read to its end there, under whatever name and packed or not.

        Args:
            done: read to its end.
            log: that is written now.

        Raises:
            OSError: it cannot be read.
        """
        if done.size < 0:
            return self.head == done.head
        if not done.mark.fits(self.begins):
            return False
        if self.modified_ns == done.modified_ns:
            return True
        with LogFile(log, self.path) as file:
            size = file.size()
            return (size == done.size and file.holds(done.mark)) or (bool(file.broken) and size < done.size)


class RotatedFiles:
    """The rotated files of one log.

    Args:
        log: the log that is written now.
        patterns: of rotated files, relative to the log's folder.
        rejects: where files are counted that cannot be unpacked.
    """

    def __init__(self, log: Path, patterns: Sequence[str], rejects: Rejects) -> None:
        self._log = log
        self._patterns = patterns
        self._rejects = rejects
        self._refused = RefusedEntries(rejects)
        self._unreadable: set[tuple[Path, int]] = set()

    def look(self, since_ns: int, now_ms: int) -> list[RotatedFile]:
        """The files that match, hold something, are not the log itself and were written since, oldest first. Links are counted.

        Raises:
            SourceError: one cannot be read now.
        """
        found: list[RotatedFile] = []
        self._refused.begin()
        try:
            log = self._log.stat() if self._log.exists() else None
            for path in sorted({path for pattern in self._patterns for path in self._log.parent.glob(pattern)}):
                try:
                    stat = status_beneath(*place_of(self._log, path))
                    is_log = log is not None and os.path.samestat(stat, log)
                    begins = b"" if stat.st_mtime_ns <= since_ns or is_log else self._begins(path, stat, now_ms)
                except RefusedFileError as error:
                    self._refused.add(str(path), str(error.strerror))
                    continue
                if begins:
                    found.append(RotatedFile(path, stat.st_mtime_ns, begins))
        except OSError as error:
            raise SourceError(f"rotated logs next to {self._log} cannot be listed: {error}; they are listed again") from error
        return sorted(found, key=lambda file: file.order)

    def _begins(self, path: Path, stat: os.stat_result, now_ms: int) -> bytes:
        with LogFile(self._log, path) as file:
            begins = file.begins()
            if file.broken and not begins:
                self._refuse(path, stat.st_mtime_ns, now_ms, file.broken)
            return begins

    def _refuse(self, path: Path, modified_ns: int, now_ms: int, reason: str) -> None:
        if not is_settled(modified_ns, now_ms):
            raise SourceError(f"{path} cannot be unpacked ({reason}); it is tried again, perhaps it is packed now")
        if (path, modified_ns) not in self._unreadable:
            self._unreadable.add((path, modified_ns))
            self._rejects.count("file: cannot be unpacked", path)


def is_settled(modified_ns: int, now_ms: int) -> bool:
    """Whether a file was left alone for so long that nobody is still packing it."""
    return abs(now_ms - modified_ns // 1_000_000) > _PACKED_WITHIN_MS


def default_patterns(log: Path) -> tuple[str, ...]:
    """Patterns of rotated names: conn.2024-05-01-12-00-00.log, conn-24-05-01_12.00.00.log, conn.log.1; with .gz, too.

    Of logs that are not called .log, a number behind the stem says little (sensor-2.csv may be another sensor's): a date does.
    """
    name, stem = glob.escape(log.name), glob.escape(log.name.removesuffix(".log"))
    by_name = [f"{name}{sign}[0-9]*" for sign in ".-_"]
    if log.suffix in ("", ".log"):
        by_stem = [f"{stem}{sign}[0-9]*" for sign in ".-_"]
    else:
        by_stem = [f"{glob.escape(log.stem)}{sign}[0-9][0-9][0-9][0-9]*{log.suffix}*" for sign in ".-_"]
    return tuple(dict.fromkeys((*by_stem, *by_name)))
