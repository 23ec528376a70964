"""A source that replays a table: CSV, JSON lines or a Zeek log, plain or gzip, as fast as asked.

kind = "replay"
path = "telemetry.csv"          # .csv, .jsonl, .log; .gz too
format = "auto"                 # csv | jsonl | zeek
rate_hz = 100.0                 # 0: as fast as it goes
rename = { can_speed_mps = "speed_mps" }
time_column = "t_s"             # auto: event_time, ts, timestamp or time, whichever the file has; else the time of reading
time_unit = "auto"              # s | ms | us | ns | rfc3339; auto: RFC 3339 text, or seconds
time_start = "2024-05-01T00:00:00Z"   # the first row's event time, the others keep their distance; "now" is one, too
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from edge_agent.capture.batch import SampleBatch
from edge_agent.capture.cells import CellError, to_time_us
from edge_agent.capture.lines import head_mark, open_lines
from edge_agent.capture.mapping import TIME_NAMES, ColumnMapper, keep_rows, read_times
from edge_agent.capture.options import check_rename, read_options
from edge_agent.capture.rejects import Rejects
from edge_agent.capture.tables import CsvReader, JsonlReader, RawChunk, TablePosition, TableReader, ZeekReader
from edge_agent.capture.zeek import CONN_RENAME
from edge_agent.clock import Clock
from edge_agent.errors import ConfigError, SourceEndedError
from edge_agent.option_paths import is_same_path
from schemas.contract import Contract

NO_COLUMN = "row: none of its columns is one of the contract's; are path, format and rename right?"
_READERS: dict[str, Callable[[Path, TablePosition, int, Rejects], TableReader]] = {
    "csv": CsvReader,
    "jsonl": JsonlReader,
    "zeek": ZeekReader,
}


class ReplayOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a replay; the module's docstring shows each."""

    path: str
    format: Literal["auto", "csv", "jsonl", "zeek"] = "auto"
    rate_hz: float = 0.0
    rename: dict[str, str] = {}
    time_column: str = ""
    time_unit: Literal["auto", "s", "ms", "us", "ns", "rfc3339"] = "auto"
    time_start: str = ""
    max_line_bytes: int = 4 * 1024 * 1024


class ReplayPosition(msgspec.Struct, frozen=True):
    """Where a replay goes on. `head` tells a replaced file, `shift_us` keeps shifted times in step across a restart."""

    path: str
    head: int
    offset: int
    header_offset: int
    row: int
    shift_us: int | None


class ReplaySource:
    """Replays one file; see the module.

    Attributes:
        rejected: reason -> rows that became no sample, and cells that became null.
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
        unset = frozenset() if form == "zeek" else frozenset({""})
        self._mapper = ColumnMapper(contract, {**CONN_RENAME, **options.rename}, unset, self._rejects)
        self._began_s = clock.monotonic_s()
        self._given = 0
        self._agent_clock = options.time_start == "now"

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many rows or cells were refused since the source was built."""
        return dict(self._rejects.counts)

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
        first_row, self._row = self._row, self._row + chunk.rows
        self._given += chunk.rows
        chunk, times = keep_rows(chunk, self._times(chunk, first_row))
        columns = self._mapper.convert(chunk, frozenset({self._options.time_column, *TIME_NAMES}))
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

    def _times(self, chunk: RawChunk, first_row: int) -> list[int | None]:
        name = self._options.time_column or next((name for name in TIME_NAMES if name in chunk.columns), "")
        now_us = self._clock.now_ms() * 1000
        if name and name not in chunk.columns and chunk.rows:
            raise ConfigError(f"source 'replay': time_column {name!r} is not in {self._path} ({', '.join(chunk.columns)})")
        if name:
            times = read_times(chunk.columns.get(name, ()), self._options.time_unit, self._rejects)
        elif self._options.time_start:
            step_us = 1e6 / (self._options.rate_hz or 1.0)
            times = [round((first_row + index) * step_us) for index in range(chunk.rows)]
        else:
            self._agent_clock = True
            return [now_us] * chunk.rows
        return self._shifted(times, now_us) if self._options.time_start else times

    def _shifted(self, times: list[int | None], now_us: int) -> list[int | None]:
        if self._shift_us is None:
            first = next((time for time in times if time is not None), None)
            if first is None:
                return times
            start = self._options.time_start
            self._shift_us = (now_us if start == "now" else to_time_us(start)) - first
        shift_us = self._shift_us
        return [None if time is None else time + shift_us for time in times]

    def _position(self) -> bytes:
        at = self._reader.position
        return msgspec.json.encode(
            ReplayPosition(self._options.path, self._head, at.offset, at.header_offset, self._row, self._shift_us)
        )

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: the file stays as it is."""

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()


def _guess(path: Path) -> str:
    with open_lines(path) as file:
        head = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"#separator"):
        return "zeek"
    return "jsonl" if head.startswith(b"{") else "csv"


def check(options: Mapping[str, object], contract: Contract) -> ReplayOptions:
    """The options of a replay.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("replay", options, ReplayOptions)
    check_rename("replay", chosen.rename, contract)
    if chosen.time_start not in ("", "now"):
        try:
            to_time_us(chosen.time_start)
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
