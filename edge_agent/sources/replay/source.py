"""A source that replays a table: CSV, JSON lines or a Zeek log, plain or gzip, as fast as asked.

kind = "replay"
path = "telemetry.csv"          # .csv, .jsonl, .log; .gz too
format = "auto"                 # csv | jsonl | zeek
rate_hz = 100.0                 # 0: as fast as it goes
rename = { can_speed_mps = "speed_mps" }
time_column = "t_s"             # auto: event_time, ts, timestamp or time, whichever the file has; else the time of reading
time_unit = "auto"              # s | ms | us | ns | rfc3339; auto: RFC 3339 text, or numbers by their size
time_zone = "Europe/Berlin"     # of times that tell none; time_format, decimal and thousands: see edge_agent.sources.options
time_start = "2024-05-01T00:00:00Z"   # the first row's event time, the others keep their distance; "now" is one, too
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError, SourceEndedError, SourceError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.files.lines import check_encoding, head_mark, open_lines
from edge_agent.sources.options import EventTimes, RowOptions, is_same_path, read_options, time_column_of, unreadable
from edge_agent.sources.rows.cells import CellError, start_time_us
from edge_agent.sources.rows.mapping import NO_COLUMN, ColumnMapper, MappedRows, keep_rows, unfilled_columns
from edge_agent.sources.rows.tables import CONN_RENAME, CsvReader, JsonlReader, RawChunk, TablePosition, TableReader, ZeekReader
from schemas.contract import Contract

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("path",)

_HEAD_ROWS = 1_000
# A control character may be a separator or a slip. So many, or the head of an archive, are no text.
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_MOST_CONTROLS = 5
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ")
_ARRAY = re.compile(rb"\[\s*(?:\{|\]|\Z)")
_READERS: dict[str, Callable[[Path, TablePosition, int, Rejects], TableReader]] = {
    "csv": CsvReader,
    "jsonl": JsonlReader,
    "zeek": ZeekReader,
}


class ReplayOptions(RowOptions, frozen=True, forbid_unknown_fields=True):
    """The options of a replay; the module's docstring shows each."""

    path: str
    format: Literal["auto", "csv", "jsonl", "zeek"] = "auto"
    rate_hz: float = 0.0
    time_start: str = ""
    max_line_bytes: int = 4 * 1024 * 1024


class ReplayPosition(msgspec.Struct, frozen=True):
    """The position of a replay.

    `head` tells a replaced file, `shift_us` keeps shifted times in step across a restart, `time_us` is the last time read.
    """

    path: str
    head: int
    offset: int
    header_offset: int
    row: int
    shift_us: int | None
    time_us: int | None = None


class ReplaySource(MappedRows):
    """Replays one file; see the module.

    Attributes:
        rejected: reason -> rows that became no sample, and cells that became null.
        unfilled: required columns that nothing in the file fills.
    """

    def __init__(self, options: ReplayOptions, contract: Contract, clock: Clock, position: bytes | None) -> None:
        self._options = options
        self._clock = clock
        self._path = Path(options.path)
        self._rejects = Rejects(f"replay {self._path.name}")
        self._head = head_mark(self._path)
        form = options.format if options.format != "auto" else _guess(self._path)
        at = self._resume(position)
        self._reader = _READERS[form](
            self._path, TablePosition(at.offset, at.header_offset), options.max_line_bytes, self._rejects
        )
        self._row = at.row
        self._shift_us = at.shift_us
        self._contract = contract
        self._is_whole_header = form != "jsonl"
        unset = frozenset() if form == "zeek" else frozenset({""})
        self._mapper = ColumnMapper(contract, options.rename, unset, self._rejects, CONN_RENAME, options.numbers, options.times)
        self._event_times = EventTimes(options.times, self._rejects, at.time_us)
        self.unfilled: tuple[str, ...] = () if self._is_whole_header else self._unfilled_by_head()
        self._began_s = clock.monotonic_s()
        self._given = 0
        self._agent_clock = options.time_start == "now"

    def _unfilled_by_head(self) -> tuple[str, ...]:
        """Required columns that nothing in the first lines of JSON fills."""
        reader = JsonlReader(self._path, TablePosition(), self._options.max_line_bytes, Rejects("head", is_quiet=True))
        try:
            head = reader.read(_HEAD_ROWS)
        finally:
            reader.close()
        return () if head is None else unfilled_columns(self._contract, head.columns, self._options.rename, CONN_RENAME)

    def _resume(self, position: bytes | None) -> ReplayPosition:
        start = ReplayPosition(self._options.path, self._head, 0, 0, 0, None)
        if position is None:
            return start
        try:
            found = msgspec.json.decode(position, type=ReplayPosition)
        except msgspec.MsgspecError:
            self._rejects.count("file: its stored position is unreadable; replayed from the start")
            return start
        # Another file, or another content under the same name: its rows were never read.
        is_same = is_same_path(found.path, start.path) and found.head == start.head
        return found if is_same else start

    def read(self, max_samples: int) -> SampleBatch | None:
        """The next rows; None while the rate says to wait.

        Raises:
            SourceEndedError: the file is done.
            SourceError: the file cannot be read any more.
        """
        due = self._due(max_samples)
        if due <= 0:
            return None
        chunk = self._reader.read(due)
        if chunk is None:
            raise SourceEndedError(f"{self._path} is replayed to its end: {self._row} rows")
        if self._is_whole_header and chunk.rows:
            self.unfilled = unfilled_columns(self._contract, chunk.columns, self._options.rename, CONN_RENAME)
        first_row, self._row = self._row, self._row + chunk.rows
        self._given += chunk.rows
        time_column = time_column_of(chunk.columns, self._options.rename, self._options.time_column)
        chunk, times = keep_rows(chunk, self._times(chunk, first_row, time_column))
        read = {} if self._options.time_start or not time_column else {time_column: times}
        columns = self._mapper.convert(chunk, frozenset({time_column}), read)
        if times and not columns:
            # Another table, separator or format: samples that say nothing would look like measurements.
            self._rejects.count(NO_COLUMN, list(chunk.columns), times=len(times))
            return None
        return SampleBatch(times, columns, None, self._position(), self._agent_clock) if times else None

    def _due(self, max_samples: int) -> int:
        rate = self._options.rate_hz
        if rate <= 0:
            return max_samples
        passed_s = self._clock.monotonic_s() - self._began_s
        return min(max_samples, int(passed_s * rate) + 1 - self._given)

    def _times(self, chunk: RawChunk, first_row: int, name: str) -> list[int | None]:
        now_us = self._clock.now_ms() * 1000
        if name and name not in chunk.columns and chunk.rows:
            raise ConfigError(f"source 'replay': time_column {name!r} is not in {self._path} ({', '.join(chunk.columns)})")
        if name:
            times = self._read_times(chunk.columns.get(name, ()))
        elif self._options.time_start:
            step_us = 1e6 / (self._options.rate_hz or 1.0)
            times = [round((first_row + index) * step_us) for index in range(chunk.rows)]
        else:
            self._agent_clock = True
            return [now_us] * chunk.rows
        return self._shifted(times, now_us) if self._options.time_start else times

    def _read_times(self, cells: Sequence[object]) -> list[int | None]:
        """The times of a chunk. Where a setting would make them readable, the file waits for it instead of being used up."""
        is_first = self._event_times.after_us is None
        times = self._event_times.read(cells)
        needs = self._event_times.needs
        is_none_read = is_first and len(times) > 1 and not any(time is not None for time in times)
        if "time_zone" in needs or (needs and is_none_read):
            raise ConfigError(f"{unreadable('replay', needs, self._event_times.example)}; nothing of {self._path} is skipped")
        return times

    def _shifted(self, times: list[int | None], now_us: int) -> list[int | None]:
        if self._shift_us is None:
            first = next((time for time in times if time is not None), None)
            if first is None:
                return times
            start = self._options.time_start
            self._shift_us = (now_us if start == "now" else start_time_us(start, self._options.times.zone)) - first
        shift_us = self._shift_us
        return [None if time is None else time + shift_us for time in times]

    def _position(self) -> bytes:
        at = self._reader.position
        return msgspec.json.encode(
            ReplayPosition(
                path=self._options.path,
                head=self._head,
                offset=at.offset,
                header_offset=at.header_offset,
                row=self._row,
                shift_us=self._shift_us,
                time_us=self._event_times.after_us,
            )
        )

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: the file stays as it is."""

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


def _guess(path: Path) -> str:
    with open_lines(path) as file:
        head = file.read(64)
    check_encoding(path, head)
    if head.startswith(_ARCHIVES) or len(_CONTROLS.findall(head)) > _MOST_CONTROLS:
        raise SourceError(f"{path} is no text, nor packed by gzip, zstd, bzip2 or xz; unpack it, or correct `path`")
    head = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if _ARRAY.match(head):
        raise SourceError(f"{path} is one JSON array; write one object a line: jq -c '.[]'")
    if head.startswith(b"#separator"):
        return "zeek"
    return "jsonl" if head.startswith(b"{") else "csv"


def check(options: Mapping[str, object], contract: Contract) -> ReplayOptions:
    """The options of a replay.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("replay", options, ReplayOptions, contract)
    if chosen.time_start not in ("", "now"):
        try:
            start_time_us(chosen.time_start)
        except CellError as error:
            raise ConfigError(
                f"source 'replay': time_start = {chosen.time_start!r} is {error}; write 2024-05-01T00:00:00Z"
            ) from error
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> ReplaySource:
    """Build a replay.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: the file cannot be read.
    """
    return ReplaySource(check(options, contract), contract, clock, position)
