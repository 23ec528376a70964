"""Log files under rotation: each is known by how it begins, whatever it is called and whether it is packed by now."""

import gzip
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from edge_agent.capture.rejects import Rejects
from edge_agent.errors import SourceError

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


def open_log(path: Path) -> BinaryIO:
    """A log for reading, unpacked where it is gzip.

    Raises:
        OSError: it cannot be opened.
    """
    raw = path.open("rb")
    try:
        zipped = os.pread(raw.fileno(), 2, 0) == b"\x1f\x8b"
    except BaseException:
        raw.close()
        raise
    if not zipped:
        return raw
    raw.close()
    return cast("BinaryIO", gzip.open(path, "rb"))


def rotated_files(log: Path, patterns: Sequence[str], since_ns: int, now_ms: int, rejects: Rejects) -> list[RotatedFile]:
    """The files that match, are not the log itself and were written since, oldest first.

    Raises:
        SourceError: one cannot be read now.
    """
    found: list[RotatedFile] = []
    try:
        log_inode = log.stat().st_ino if log.exists() else 0
        for path in {path for pattern in patterns for path in log.parent.glob(pattern)}:
            stat = path.stat()
            if stat.st_mtime_ns <= since_ns or stat.st_ino == log_inode or not path.is_file():
                continue
            try:
                with open_log(path) as file:
                    found.append(RotatedFile(path, stat.st_mtime_ns, file.read(HEAD_BYTES)))
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
