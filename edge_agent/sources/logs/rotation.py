"""Find the files of a rotated log: how they are called, which exist, in which order they were written; the options for it."""

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from catchment.runtime.beneath import RefusedFileError, status_beneath
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.files.watched import RefusedEntries
from edge_agent.sources.logs.file import LogFile, place_of
from edge_agent.sources.logs.marks import DoneFile, Sum, head_of
from edge_agent.sources.options import RowOptions

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
