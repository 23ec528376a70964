"""Follows one log across rotation: which file is read, from where, and which comes next."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from edge_agent.capture.folder_scan import Refused
from edge_agent.capture.follow_lines import GrowingLines
from edge_agent.capture.rejects import Rejects
from edge_agent.capture.rotation import HEAD_BYTES, Head, RotatedFile, head_of, is_settled, open_log, rotated_files
from edge_agent.capture.tables import JsonlReader, RawChunk, TablePosition, TableReader, ZeekReader
from edge_agent.clock import Clock
from edge_agent.errors import SourceError
from edge_agent.watched import what_to_do

_REMEMBERED = 32
_GONE = "file: the log that was being read is gone; rows at its end may be missing"


class DoneFile(msgspec.Struct, frozen=True, array_like=True):
    """A file read to its end: how it begins, and when it, or its packed copy, was last written."""

    head: Head
    modified_ns: int


class LogPosition(msgspec.Struct, frozen=True):
    """Where following goes on.

    Attributes:
        head: how the file begins that is being read, as far as it was read; (0, 0): nothing of it yet.
        offset: unpacked bytes of it that were read.
        header_offset: where the header in force begins.
        done: the last files read to their end.
        since_ns: files not written since were read before those, or are not wanted.
    """

    head: Head = (0, 0)
    offset: int = 0
    header_offset: int = 0
    done: tuple[DoneFile, ...] = ()
    since_ns: int = 0


class FollowedLog:
    """A log and its rotated files, read as one.

    Args:
        path: of the log that is written now.
        patterns: of rotated files, relative to the log's folder.
        settle_s: so long after a rotation was noticed the old file may still grow.
        max_line_bytes: a longer line is refused.
        clock: monotonic.
        rejects: where refused lines and lost files are counted.
    """

    def __init__(
        self, path: Path, patterns: Sequence[str], settle_s: float, max_line_bytes: int, clock: Clock, rejects: Rejects
    ) -> None:
        self._path = path
        self._patterns = patterns
        self._settle_s = settle_s
        self._max_line_bytes = max_line_bytes
        self._clock = clock
        self._rejects = rejects
        self._refused = Refused(rejects)
        self._done: list[DoneFile] = []
        self._since_ns = 0
        self._file: BinaryIO | None = None
        self._lines: GrowingLines | None = None
        self._reader: TableReader | None = None
        self._start = TablePosition()
        self._is_live = False
        self._rotated_s: float | None = None
        self._begun = b""

    def begin(self, start: str) -> None:
        """Begin for the first time: at the log's `begin` or `end`, or with what is `rotated` already."""
        if start != "rotated":
            known = self._rotated(since_ns=-1)
            self._done = [DoneFile(file.head, file.modified_ns) for file in known[-_REMEMBERED:]]
            self._since_ns = known[-_REMEMBERED - 1].modified_ns if len(known) > _REMEMBERED else 0
        if start == "end" and os.path.lexists(self._path):
            self._open(self._path, TablePosition(), is_live=True)
            while self.read(10_000) is not None:
                continue

    def resume(self, at: LogPosition) -> None:
        """Go on where it was left, whatever the file is called by now."""
        self._done, self._since_ns = list(at.done), at.since_ns
        start = TablePosition(at.offset, at.header_offset)
        if not at.head[0]:
            return
        if os.path.lexists(self._path):
            self._open(self._path, start, is_live=True)
            begins = self._begins()
            if len(begins) >= at.head[0] and head_of(begins[: at.head[0]]) == at.head and self._size() >= at.offset:
                return
            self.close()
        for file in self._rotated(self._since_ns):
            if file.is_continued(at.head):
                self._open(file.path, start, is_live=False)
                return
        self._rejects.count(_GONE, self._path)

    @property
    def position(self) -> LogPosition:
        """Where to go on after the chunks given out so far."""
        done = tuple(self._done)
        if self._reader is None or self._lines is None:
            return LogPosition(done=done, since_ns=self._since_ns)
        at = self._reader.position
        return LogPosition(head_of(self._begins()[: at.offset]), at.offset, at.header_offset, done, self._since_ns)

    @property
    def has_header(self) -> bool:
        """Whether a header names all columns; JSON names in each row those that it has."""
        return isinstance(self._reader, ZeekReader)

    def read(self, max_rows: int) -> RawChunk | None:
        """The next rows; None where there are none now.

        Raises:
            SourceError: a file cannot be read, or is no Zeek log.
        """
        if self._file is None and not self._open_next():
            return None
        chunk = None
        if self._reader is not None or self._make_reader():
            assert self._reader is not None
            try:
                chunk = self._reader.read(max_rows)
            except SourceError:
                if self._is_live or not self._is_old():
                    raise  # perhaps it is still being packed
                self._rejects.count("file: cut short or broken; rows at its end are missing", self._path)
                self._finish()
                return None
        if chunk is None and self._file is not None:
            self._after_end()
        return chunk

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file = self._reader = self._lines = None

    def _after_end(self) -> None:
        """Nothing more in this file now: see what has become of the log."""
        if self._lines is not None and self._lines.is_final:
            self._finish()
            return
        if not self._is_live:
            if not self._may_grow():
                self._set_final()
            return
        if self._is_cut():
            at = self.position
            self.close()
            self.resume(at)  # its copy may be among the rotated files
            return
        if self._is_the_log():
            self._rotated_s = None
            return
        now_s = self._clock.monotonic_s()
        self._rotated_s = now_s if self._rotated_s is None else self._rotated_s
        if now_s - self._rotated_s >= self._settle_s:
            self._set_final()

    def _set_final(self) -> None:
        if self._lines is None:
            self._finish()  # it was never written to
        else:
            self._lines.is_final = True

    def _finish(self) -> None:
        begins = self._begins()
        if begins:
            self._remember(DoneFile(head_of(begins), os.fstat(self._descriptor()).st_mtime_ns))
        self.close()

    def _remember(self, file: DoneFile) -> None:
        self._done.append(file)
        # Files are read oldest first: what is yet to be read is no older than this one, but may be of the very same time.
        while len(self._done) > _REMEMBERED and self._done[0].modified_ns < file.modified_ns:
            self._since_ns = max(self._since_ns, self._done.pop(0).modified_ns)

    def _open_next(self) -> bool:
        waiting = self._rotated(self._since_ns)
        latest = {file.head: file.modified_ns for file in waiting}
        # Packing writes a file anew: from then on it counts by that time.
        self._done = [DoneFile(d.head, max(d.modified_ns, latest.get(d.head, 0))) for d in self._done]
        heads = {file.head for file in self._done}
        for file in waiting:
            if file.begins and file.head not in heads:
                self._open(file.path, TablePosition(), is_live=False)
                return True
        if not os.path.lexists(self._path):
            return False
        self._open(self._path, TablePosition(), is_live=True)
        return True

    def _open(self, path: Path, start: TablePosition, *, is_live: bool) -> None:
        self.close()
        try:
            self._file = open_log(self._path, path)
        except OSError as error:
            act = what_to_do(error, "let the agent's user read it")
            raise SourceError(f"{path} cannot be read ({error.strerror}); {act}") from error
        self._start, self._is_live, self._rotated_s, self._begun = start, is_live, None, b""

    def _make_reader(self) -> bool:
        """A reader that fits the file; False while nothing is written in it."""
        begins = self._begins()
        if not begins:
            return False
        assert self._file is not None
        if not begins.startswith((b"#", b"{")):
            if self._is_live:
                raise SourceError(f"{self._path} is no Zeek log: it begins with neither #separator nor {{")
            self._rejects.count("file: no Zeek log", self._file.name)
            self._finish()
            return False
        form = ZeekReader if begins.startswith(b"#") else JsonlReader
        self._reader = form(self._path, self._start, self._max_line_bytes, self._rejects, self._open_lines)
        return True

    def _open_lines(self, _: Path, offset: int, max_line_bytes: int, rejects: Rejects) -> GrowingLines:
        assert self._file is not None
        self._lines = GrowingLines(self._file, offset, max_line_bytes, rejects)
        return self._lines

    def _begins(self) -> bytes:
        """The first bytes of the file, as they were read: a cut does not change them."""
        if len(self._begun) < HEAD_BYTES:
            now = self._begins_now()
            self._begun = now if now.startswith(self._begun) else self._begun
        return self._begun

    def _begins_now(self) -> bytes:
        assert self._file is not None
        if not self._is_packed():
            return os.pread(self._descriptor(), HEAD_BYTES, 0)
        try:
            with open_log(self._path, Path(self._file.name)) as again:
                if not os.path.sameopenfile(again.fileno(), self._descriptor()):
                    raise SourceError(f"{self._file.name} was exchanged while it was read; it is looked for again")
                return again.read(HEAD_BYTES)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{self._file.name} cannot be unpacked: {error}") from error

    def _is_cut(self) -> bool:
        """Whether the log was emptied where it stands, perhaps written to since."""
        read_bytes = self._lines.offset if self._lines is not None else 0
        return self._size() < read_bytes or not self._begins_now().startswith(self._begun)

    def _is_old(self) -> bool:
        return is_settled(os.fstat(self._descriptor()).st_mtime_ns, self._clock.now_ms())

    def _may_grow(self) -> bool:
        """Whether a rotated file was written to just now: it may be a copy under way. A packed one says itself where it ends."""
        age_s = abs(self._clock.now_ms() / 1000 - os.fstat(self._descriptor()).st_mtime)
        return age_s < self._settle_s and not self._is_packed()

    def _is_packed(self) -> bool:
        return os.pread(self._descriptor(), 2, 0) == b"\x1f\x8b"

    def _descriptor(self) -> int:
        assert self._file is not None
        return self._file.fileno()

    def _size(self) -> int:
        return os.fstat(self._descriptor()).st_size

    def _is_the_log(self) -> bool:
        try:
            now = self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._descriptor())
        return (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)

    def _rotated(self, since_ns: int) -> list[RotatedFile]:
        return rotated_files(self._path, self._patterns, since_ns, self._clock.now_ms(), self._rejects, self._refused)
