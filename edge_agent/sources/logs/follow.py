"""Follows one log across rotation: which file is read, from where, and which comes next.

Rotation is either by name (the log is renamed and a new one begun) or by copy (the log is copied, then cut to nothing while its
writer goes on). After a cut the rest is read from the copy, which is known by its content; the header of the file before holds
on, and a line that was torn by the cut is put together again.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from catchment.runtime.clock import Clock
from edge_agent.errors import SourceError
from edge_agent.sources.api import Rejects
from edge_agent.sources.files.lines import check_encoding
from edge_agent.sources.files.watched import what_to_do
from edge_agent.sources.logs.file import GrowingLines, LogFile
from edge_agent.sources.logs.forms import (
    CSV,
    JSONL,
    MAX_HEADER_CHARS,
    PLAIN,
    ZEEK,
    CsvLines,
    is_header,
    is_only_header,
    is_whole,
    joins,
    make_reader,
    one_row,
    recognise,
)
from edge_agent.sources.logs.marks import MARKED_BYTES, DoneFile, LogPosition, Mark, head_of, prints_of, sum_of
from edge_agent.sources.logs.rotation import RotatedFile, RotatedFiles, is_settled
from edge_agent.sources.rows.tables import RawChunk, TablePosition, TableReader

_REMEMBERED = 32
# More of a torn line is not kept in the position.
_MAX_LEAD_BYTES = 64 * 1024
GONE = "file: the log that was being read is gone; rows at its end may be missing"
CUT = "file: the log was cut and no copy of it is found; rows at its end may be missing"
BETWEEN = "file: rows were written after the log was copied and before it was cut; they are lost"
TORN = "row: torn where the log was cut; its other half is lost"
BROKEN = "file: cut short or broken; rows at its end are missing"


class FollowedLog:
    """A log and its rotated files, read as one.

    Args:
        path: of the log that is written now.
        patterns: of rotated files, relative to the log's folder.
        forms: how its rows may be written; see `follow_forms`.
        settle_s: so long after a rotation was noticed the old file may still grow.
        max_line_bytes: a longer line is refused.
        clock: monotonic.
        rejects: where refused lines and lost files are counted.
    """

    def __init__(
        self,
        path: Path,
        patterns: Sequence[str],
        forms: Sequence[str],
        settle_s: float,
        max_line_bytes: int,
        clock: Clock,
        rejects: Rejects,
    ) -> None:
        self._path = path
        self._forms = forms
        self._settle_s = settle_s
        self._max_line_bytes = max_line_bytes
        self._clock = clock
        self._rejects = rejects
        self._rotated = RotatedFiles(path, patterns, rejects)
        self._done: list[DoneFile] = []
        self._since_ns = 0
        self._file: LogFile | None = None
        self._lines: GrowingLines | None = None
        self._reader: TableReader | None = None
        self._start = TablePosition()
        self._rotated_s: float | None = None
        self._was_empty = False
        self._touched_ns = 0
        self._look_until_s = 0.0
        # What outlives a file: the log's inode, how rows are written, the header, a torn line, where the content before ended.
        self._inode = 0
        self._form = ""
        self._header = ""
        self._lead = b""
        self._seen_rest = b""
        self._ended_at: int | None = None

    def begin(self, start: str) -> None:
        """Begin for the first time: at the log's `begin` or `end`, or with what is `rotated` already."""
        if os.path.lexists(self._path):
            self._inode = self._path.stat(follow_symlinks=False).st_ino
        if start != "rotated":
            known = self._look(since_ns=-1)
            self._done = [DoneFile(file.head, file.modified_ns) for file in known[-_REMEMBERED:]]
            self._since_ns = known[-_REMEMBERED - 1].modified_ns if len(known) > _REMEMBERED else 0
        if start == "end" and os.path.lexists(self._path):
            self._open(self._path, TablePosition(), is_live=True)
            while self.read(10_000) is not None:
                continue

    def resume(self, at: LogPosition) -> None:
        """Go on where it was left, whatever the file is called by now."""
        self._done, self._since_ns = list(at.done), at.since_ns
        self._inode, self._form, self._header, self._lead = at.inode, at.form, at.header, at.lead
        if self._done and self._done[-1].size >= 0:
            self._ended_at = self._done[-1].size
        if at.head[0]:
            self._find(at.mark, TablePosition(at.offset, at.header_offset), GONE)

    @property
    def position(self) -> LogPosition:
        """The position after the chunks read so far."""
        known = LogPosition(
            done=tuple(self._done),
            since_ns=self._since_ns,
            inode=self._inode,
            form=self._form,
            header=_kept(self._header),
            lead=self._lead if len(self._lead) <= _MAX_LEAD_BYTES else b"",
        )
        if self._file is None or self._reader is None or self._lines is None:
            return known
        at = self._reader.position
        is_at_line = at.offset == self._lines.offset
        before = self._lines.before if is_at_line else self._file.before(at.offset)
        content = self._file.begins()[: max(0, at.offset - self._file.start)]
        return LogPosition(
            head_of(content),
            at.offset,
            at.header_offset,
            known.done,
            known.since_ns,
            sum_of(before) if content else (0, 0),
            prints_of(content),
            known.inode,
            known.form,
            _kept(self._reader.header or self._header),
            known.lead,
        )

    @property
    def has_header(self) -> bool:
        """Whether a header names all columns; JSON names in each row those that it has."""
        return self._form in (ZEEK, CSV)

    def read(self, max_rows: int) -> RawChunk | None:
        """The next rows; None where there are none now.

        Raises:
            SourceError: a file cannot be read, or is no log of these forms.
        """
        if self._file is None and not self._open_next():
            return None
        self._look_behind()
        chunk = None
        if self._reader is not None or self._make_reader():
            try:
                chunk = self._read_rows(max_rows)
            except SourceError:
                assert self._file is not None
                if self._file.is_live or not is_settled(self._file.stat().st_mtime_ns, self._clock.now_ms()):
                    raise  # perhaps it is still being packed
                self._rejects.count(BROKEN, self._file.path)
                self._finish()
                return None
        if chunk is None and self._file is not None:
            self._after_end()
        return chunk

    def close(self) -> None:
        """Close the file; its header holds on."""
        if self._reader is not None:
            self._header = self._reader.header or self._header
        if self._file is not None:
            self._file.close()
        self._file = self._reader = self._lines = None

    def _look_behind(self) -> None:
        """No row of the log was read yet: rows that were written to it and rotated away meanwhile come first.

        A log that is cut and given the same header again looks as it did before.
        """
        if self._file is None or not self._file.is_live or self._has_given_rows():
            return
        is_filled = self._was_empty and bool(self._file.begins())
        if is_filled or self._was_touched(self._file):
            self._was_empty = self._was_empty and not is_filled
            self._open_rotated()

    def _has_given_rows(self) -> bool:
        """Whether more than a header of the open file was read."""
        if self._reader is None or self._file is None:
            return False
        read = self._file.begins()[: max(0, self._reader.position.offset - self._file.start)]
        return bool(read) and not (len(read) < MARKED_BYTES and is_only_header(self._form, read, self._reader.header))

    def _was_touched(self, log: LogFile) -> bool:
        """Whether a log without rows may have had some and was cut: perhaps nothing more is ever written to it."""
        touched_ns, now_s = log.stat().st_ctime_ns, self._clock.monotonic_s()
        if touched_ns != self._touched_ns:
            self._touched_ns, self._look_until_s = touched_ns, now_s + self._settle_s  # times of files are coarse
        return now_s <= self._look_until_s

    def _read_rows(self, max_rows: int) -> RawChunk | None:
        assert self._reader is not None
        assert self._lines is not None
        if self._lead:
            first = self._lines.peek()
            # The end of the torn line may still be written.
            row = None if first is None else self._place_lead(first)
            if first is None or row is not None:
                return row
        return self._reader.read(max_rows)

    def _place_lead(self, first: bytes) -> RawChunk | None:
        """Put a line that was torn by a cut together with its other half; where that is not there, the line stands alone."""
        assert self._lines is not None
        lead, self._lead = self._lead, b""
        first = first.lstrip(b"\0")
        is_begun_anew = is_header(self._form, first, self._header)
        if not is_begun_anew and joins(self._form, self._header, lead, first):
            self._lines.join(lead)
        elif is_begun_anew and is_whole(self._form, self._header, lead):
            return one_row(self._form, self._header, lead, self._rejects)
        else:
            self._rejects.count(TORN, lead[:80])
        return None

    def _after_end(self) -> None:
        """Nothing more in this file now: see what has become of the log."""
        assert self._file is not None
        if self._lines is not None and self._lines.is_final:
            self._finish()
            return
        if not self._file.is_live:
            if not self._may_grow():
                self._end_rotated()
            return
        if self._is_cut():
            self._leave_cut()
            return
        if self._is_the_log():
            self._rotated_s = None
            return
        now_s = self._clock.monotonic_s()
        self._rotated_s = now_s if self._rotated_s is None else self._rotated_s
        if now_s - self._rotated_s >= self._settle_s:
            self._set_final()

    def _end_rotated(self) -> None:
        """A rotated file is read to its end: its last line ends there, unless the log was cut and its writer went on."""
        rest = self._unfinished()
        if not self._may_have_been_cut() or not rest or (self._form == JSONL and is_whole(JSONL, "", rest)):
            self._set_final()
            return
        self._lead = self._seen_rest if self._seen_rest.startswith(rest) else rest
        self._finish()

    def _may_have_been_cut(self) -> bool:
        """Whether the other half of this file's last line may stand in the next one. Forms other than plain tell by content.

        A plain log that was the log itself was renamed, and is whole; but inode numbers are given again.
        """
        assert self._file is not None
        try:
            log_inode = self._path.stat(follow_symlinks=False).st_ino
        except FileNotFoundError:
            return False
        return self._form != PLAIN or log_inode == self._inode or self._file.stat().st_ino != self._inode

    def _unfinished(self) -> bytes:
        """Return the bytes read of an incomplete row."""
        if self._lines is None:
            return b""
        torn = self._reader.torn if isinstance(self._reader, CsvLines) else b""
        return torn + self._lines.rest

    def _set_final(self) -> None:
        if self._lines is None and not self._make_reader(is_final=True):
            self._finish()  # it was never written to
        elif self._lines is not None:
            self._lines.is_final = True

    def _finish(self) -> None:
        if self._file is not None and self._file.begins():
            size = self._file.size()
            mark = self._file.mark(size)
            self._remember(DoneFile(mark.head, self._file.stat().st_mtime_ns, size, mark.tail, mark.prints))
            self._ended_at = size
        self._seen_rest = b""
        self.close()

    def _leave_cut(self) -> None:
        """The log was emptied where it stands: its rest is in the copy, if there is one."""
        at = self.position
        self._seen_rest = self._unfinished()
        self.close()
        if at.head[0] and not self._find(at.mark, TablePosition(at.offset, at.header_offset), CUT):
            self._lead, self._seen_rest = self._seen_rest, b""
            self._ended_at = at.offset

    def _find(self, mark: Mark, start: TablePosition, lost: str) -> bool:
        """Open the file that holds a place, there; False, and counted, where there is none.

        A copy that ends before the place was read in full, from the log itself: it is remembered as read.
        """
        if os.path.lexists(self._path):
            self._open(self._path, start, is_live=True)
            if self._holds(mark):
                return True
            self.close()
        rotated = self._look(self._since_ns) or self._look(-1)
        for file in sorted(rotated, key=self._likelihood):
            if mark.fits(file.begins) and not any(done.size >= 0 and file.was_read(done, self._path) for done in self._done):
                self._open(file.path, start, is_live=False)
                if self._holds(mark):
                    return True
                self.close()
        for file in reversed(rotated):
            if self._is_shorter_copy(file, mark):
                return False
        self._rejects.count(lost, self._path)
        return False

    def _likelihood(self, file: RotatedFile) -> tuple[bool, int, bool]:
        """Order of rotated files that may hold a place: those that were there before the log was first read come last."""
        was_there = any(done.size < 0 and (done.head, done.modified_ns) == (file.head, file.modified_ns) for done in self._done)
        return was_there, -file.modified_ns, file.is_packed

    def _is_shorter_copy(self, rotated: RotatedFile, mark: Mark) -> bool:
        if any(rotated.was_read(done, self._path) for done in self._done):
            return False
        with LogFile(self._path, rotated.path) as file:
            size = file.size()
            if not mark.may_be_longer_than(rotated.begins, size):
                return False
            end = file.mark(size)
        self._remember(DoneFile(end.head, rotated.modified_ns, size, end.tail, end.prints))
        return True

    def _holds(self, mark: Mark) -> bool:
        """Whether the open file holds a place. If so, its reader is made at once: the log could be cut before the next look."""
        assert self._file is not None
        try:
            return self._file.holds(mark) and self._make_reader()
        except OSError as error:
            raise SourceError(f"{self._file.path} cannot be read ({error.strerror or error}); it is tried again") from error

    def _remember(self, file: DoneFile) -> None:
        self._done.append(file)
        # Files are read oldest first: what is yet to be read is no older than this one, but may be of the very same time.
        while len(self._done) > _REMEMBERED and self._done[0].modified_ns < file.modified_ns:
            self._since_ns = max(self._since_ns, self._done.pop(0).modified_ns)

    def _open_next(self) -> bool:
        if self._open_rotated():
            return True
        if not os.path.lexists(self._path):
            return False
        self._open(self._path, TablePosition(), is_live=True)
        return True

    def _open_rotated(self) -> bool:
        try:
            found = self._next_rotated()
        except OSError as error:
            raise SourceError(f"rotated logs next to {self._path} cannot be read: {error}; they are tried again") from error
        if found is not None:
            self._open(*found, is_live=False)
        return found is not None

    def _next_rotated(self) -> tuple[Path, TablePosition] | None:
        """The oldest rotated file that was not read, and where to begin in it."""
        for file in self._look(self._since_ns):
            if self._was_read(file) or self._is_still_the_log(file):
                continue
            grown = next((done for done in reversed(self._done) if done.size > 0 and done.mark.fits(file.begins)), None)
            if grown is not None:
                with LogFile(self._path, file.path) as opened:
                    grown = grown if opened.holds(grown.mark) else None
            return file.path, TablePosition() if grown is None else TablePosition(grown.size)
        return None

    def _was_read(self, file: RotatedFile) -> bool:
        found = False
        for index, done in enumerate(self._done):
            if file.was_read(done, self._path):
                found = True
                # Packing writes a new file: from then on it counts by that time, and need not be unpacked to be known.
                self._done[index] = DoneFile(
                    done.head, max(done.modified_ns, file.modified_ns), done.size, done.tail, done.prints
                )
        return found

    def _is_still_the_log(self, rotated: RotatedFile) -> bool:
        """Whether all of it stands in the log, too: a copy, and the log is not cut yet. It is read there."""
        try:
            with LogFile(self._path, self._path) as log:
                if not log.begins().startswith(rotated.begins):
                    return False
                with LogFile(self._path, rotated.path) as file:
                    return log.holds(file.mark(file.size()))
        except FileNotFoundError:
            return False

    def _open(self, path: Path, start: TablePosition, *, is_live: bool) -> None:
        self.close()
        try:
            self._file = LogFile(self._path, path, is_live=is_live)
            if is_live:
                self._inode = self._file.stat().st_ino
        except OSError as error:
            act = what_to_do(error, "let the agent's user read it")
            raise SourceError(f"{path} cannot be read ({error.strerror}); {act}") from error
        self._start, self._rotated_s = start, None
        self._was_empty = is_live and not self._file.begins()
        if start.offset == 0 and self._ended_at is not None and self._file.start > self._ended_at:
            # A writer with a place of its own goes on there: that is how long the log was when it was cut.
            self._rejects.count(BETWEEN, f"{self._file.start - self._ended_at} bytes of {path}")
            self._lead = b""

    def _make_reader(self, *, is_final: bool = False) -> bool:
        """A reader that fits the file; False while too little is written in it."""
        assert self._file is not None
        begins = self._file.begins()
        if not begins:
            return False
        check_encoding(self._file.path, begins)
        known = "" if self._form == ZEEK and "#fields" not in self._header else self._form
        form = recognise(begins, self._forms) or known or self._form_of_earlier(begins)
        if not form:
            if self._file.is_live:
                raise SourceError(
                    f"{self._path} is no Zeek log: it begins with neither #separator nor {{, and no rotated file has its header"
                )
            self._rejects.count("file: no Zeek log", self._file.path)
            self._finish()
            return False
        if form == CSV and not (b"\n" in begins or len(begins) >= MARKED_BYTES or is_final):
            return False  # its first line may be the header
        self._form = form
        header = "" if form == ZEEK and begins.startswith(b"#") else self._header
        self._reader = make_reader(form, self._path, self._start, self._max_line_bytes, self._rejects, self._open_lines, header)
        return True

    def _form_of_earlier(self, begins: bytes) -> str:
        """The form of a log whose beginning does not tell it: it was cut before it was first read."""
        if b"\n{" in begins and JSONL in self._forms:
            return JSONL
        for file in reversed(self._look(since_ns=-1) if ZEEK in self._forms else []):
            header = b"".join(line for line in file.begins.splitlines(keepends=True) if line.startswith(b"#")).decode(
                errors="replace"
            )
            first = begins.partition(b"\n")[0] if file.begins.startswith(b"#") else b""
            if first and is_whole(ZEEK, header, first):
                self._header = header
                return ZEEK
        return CSV if CSV in self._forms else ""

    def _open_lines(self, _: Path, offset: int, max_line_bytes: int, rejects: Rejects) -> GrowingLines:
        assert self._file is not None
        self._lines = GrowingLines(self._file, offset, max_line_bytes, rejects)
        return self._lines

    def _is_cut(self) -> bool:
        """Whether the log was emptied where it stands, perhaps written to since."""
        assert self._file is not None
        if self._lines is not None:
            return self._file.is_cut or self._file.stat().st_size < self._lines.offset + len(self._lines.rest)
        return False

    def _may_grow(self) -> bool:
        """Whether a rotated file was written to just now: it may be a copy under way. A packed one says itself where it ends."""
        assert self._file is not None
        age_s = abs(self._clock.now_ms() / 1000 - self._file.stat().st_mtime)
        return age_s < self._settle_s and not self._file.is_packed

    def _is_the_log(self) -> bool:
        assert self._file is not None
        try:
            return os.path.samestat(self._path.stat(follow_symlinks=False), self._file.stat())
        except FileNotFoundError:
            return False

    def _look(self, since_ns: int) -> list[RotatedFile]:
        return self._rotated.look(since_ns, self._clock.now_ms())


def _kept(header: str) -> str:
    """A header as it is kept in a position: whole or not at all."""
    return header if len(header) <= MAX_HEADER_CHARS else ""
