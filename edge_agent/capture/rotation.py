"""Log files under rotation: each is known by how it begins, whatever it is called and whether it is packed by now."""

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from catchment.runtime.beneath import RefusedFileError, status_beneath
from edge_agent.capture.folder_scan import Refused
from edge_agent.capture.lines import unpacked
from edge_agent.capture.rejects import Rejects
from edge_agent.errors import SourceError
from edge_agent.watched import open_watched

HEAD_BYTES = 1_024
_PACKED_WITHIN_MS = 600_000
# How a file begins: so many bytes, and their CRC-32.
Head = tuple[int, int]


@dataclass(frozen=True, slots=True)
class RotatedFile:
    """A file that may have been the log once."""

    path: Path
    modified_ns: int
    begins: bytes

    @property
    def head(self) -> Head:
        """Its mark as a finished file."""
        return head_of(self.begins)

    def is_continued(self, head: Head) -> bool:
        """Whether this file begins as one that was read in part."""
        return len(self.begins) >= head[0] and head_of(self.begins[: head[0]]) == head


def head_of(begins: bytes) -> Head:
    """The mark of a file that begins so."""
    return len(begins[:HEAD_BYTES]), zlib.crc32(begins[:HEAD_BYTES])


def place_of(log: Path, path: Path) -> tuple[Path, str]:
    """The folder below which no link is followed, and the name of a file in it.

    That is the log's folder, or the one above it that a pattern names by leading `..` parts.
    """
    parts = path.relative_to(log.parent).parts
    above = next((index for index, part in enumerate(parts) if part != ".."), len(parts) - 1)
    return log.parent.joinpath(*parts[:above]), "/".join(parts[above:])


def open_log(log: Path, path: Path) -> BinaryIO:
    """The log, or a file that it was rotated to, for reading; unpacked where it is gzip.

    Raises:
        RefusedFileError: a link, or no plain file.
        OSError: it cannot be opened.
    """
    return unpacked(open_watched(*place_of(log, path)))


def rotated_files(
    log: Path, patterns: Sequence[str], since_ns: int, now_ms: int, rejects: Rejects, refused: Refused
) -> list[RotatedFile]:
    """The files that match, are not the log itself and were written since, oldest first. Links are refused and counted.

    Raises:
        SourceError: one cannot be read now.
    """
    found: list[RotatedFile] = []
    refused.begin()
    try:
        log_inode = log.stat().st_ino if log.exists() else 0
        for path in sorted({path for pattern in patterns for path in log.parent.glob(pattern)}):
            try:
                stat = status_beneath(*place_of(log, path))
                if stat.st_mtime_ns <= since_ns or stat.st_ino == log_inode:
                    continue
                with open_log(log, path) as file:
                    found.append(RotatedFile(path, stat.st_mtime_ns, file.read(HEAD_BYTES)))
            except RefusedFileError as error:
                refused.add(str(path), str(error.strerror))
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                if not is_settled(stat.st_mtime_ns, now_ms):
                    raise SourceError(
                        f"{path} cannot be unpacked ({error}); it is tried again, perhaps it is packed now"
                    ) from error
                rejects.count("file: cannot be unpacked", path)
    except OSError as error:
        raise SourceError(f"rotated logs beside {log} cannot be listed: {error}; they are listed again") from error
    return sorted(found, key=lambda file: (file.modified_ns, file.path.name))


def is_settled(modified_ns: int, now_ms: int) -> bool:
    """Whether a file was left alone for so long that nobody is still packing it."""
    return abs(now_ms - modified_ns // 1_000_000) > _PACKED_WITHIN_MS


def default_patterns(log: Path) -> tuple[str, ...]:
    """How rotated files are called: conn.2024-05-01-12-00-00.log, conn-24-05-01_12.00.00.log, conn.log.1; with .gz, too."""
    stem = log.name.removesuffix(".log")
    return (f"{stem}.[0-9]*", f"{stem}-[0-9]*", f"{stem}_[0-9]*", f"{log.name}.[0-9]*")
