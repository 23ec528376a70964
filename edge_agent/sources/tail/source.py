"""A source that follows a log that still grows: CSV, JSON lines, plain lines or Zeek's tabs, across rotation.

    kind = "tail"
    path = "/var/log/press/press.csv"
    format = "auto"                # csv | jsonl | plain | zeek; auto: by how the log begins, plain never
    rotated = ["old/*.csv.gz"]     # relative to the log's folder; default: press.csv.1, press-20240501.csv and the like beside it
    start = "begin"                # begin | end of the log, or rotated: those already rotated first
    rename = { v = "speed_mps" }   # a plain line is called message
    time_column = "t"              # default: event_time, ts, timestamp or time, whichever is there; else the time of reading
    time_zone = "Europe/Berlin"    # and time_unit, time_format, decimal, thousands: see edge_agent.sources.options
    settle_ms = 2000               # so long after a rotation the old file may still grow

Rotation by name and by copy (logrotate's copytruncate) are both followed; see `edge_agent.sources.logs.follow`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.logs.follow import FollowedLog
from edge_agent.sources.logs.forms import CSV, JSONL, ZEEK
from edge_agent.sources.logs.marks import LogPosition
from edge_agent.sources.logs.rotation import LogOptions, check_rotated, default_patterns
from edge_agent.sources.options import EventTimes, read_options, time_column_of, unreadable
from edge_agent.sources.rows.mapping import NO_COLUMN, ColumnMapper, keep_rows, unfilled_columns
from edge_agent.sources.rows.tables import CONN_RENAME
from schemas.contract import Contract

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("path",)


class TailOptions(LogOptions, frozen=True, forbid_unknown_fields=True):
    """The options of a followed log; the module's docstring shows each."""

    format: Literal["auto", "csv", "jsonl", "plain", "zeek"] = "auto"


class TailSource:
    """Follows one log; see the module.

    Attributes:
        rejected: reason -> rows, cells and files refused.
        unfilled: required columns that nothing in the log fills.
    """

    def __init__(self, options: TailOptions, contract: Contract, clock: Clock, position: bytes | None) -> None:
        self._options = options
        self._contract = contract
        self._clock = clock
        path = Path(options.path)
        self._rejects = Rejects(f"tail {path.name}")
        forms = (ZEEK, JSONL, CSV) if options.format == "auto" else (options.format,)
        self._log = FollowedLog(
            path,
            options.rotated or default_patterns(path),
            forms,
            options.settle_ms / 1000,
            options.max_line_bytes,
            clock,
            self._rejects,
        )
        # In CSV an empty cell says nothing; JSON leaves unset fields out.
        self._mapper = ColumnMapper(
            contract, options.rename, frozenset({""}), self._rejects, CONN_RENAME, options.numbers, options.times
        )
        self._event_times = EventTimes(options.times, self._rejects)
        self.unfilled: tuple[str, ...] = ()
        at = self._decode(position)
        if at is None:
            self._log.begin(options.start)
        else:
            self._log.resume(at)

    @property
    def position(self) -> bytes:
        """The position; stored at the first start, so that a log that rotates before its first row is read is not missed."""
        return msgspec.json.encode(self._log.position)

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many rows, cells or files were refused since the source was built."""
        return dict(self._rejects.counts)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names in the log that fill no column."""
        return tuple(sorted(self._mapper.left_out))

    @property
    def matched(self) -> dict[str, str]:
        """Column -> the source's name for it."""
        return self._mapper.matched

    def _decode(self, position: bytes | None) -> LogPosition | None:
        if position is None:
            return None
        try:
            return msgspec.json.decode(position, type=LogPosition)
        except msgspec.MsgspecError:
            self._rejects.count("file: the stored position is unreadable; the log is read from its start")
            return None

    def read(self, max_samples: int) -> SampleBatch | None:
        """The next rows; None where none is written.

        Raises:
            SourceError: the log cannot be read.
            ConfigError: `time_column` is not in it, or its times tell no zone.
        """
        chunk = self._log.read(max_samples)
        if chunk is None or not chunk.rows:
            return None
        if self._log.has_header:
            self.unfilled = unfilled_columns(self._contract, chunk.columns, self._options.rename, CONN_RENAME)
        name = time_column_of(chunk.columns, self._options.rename, self._options.time_column)
        if name and name not in chunk.columns:
            raise ConfigError(f"source 'tail': time_column {name!r} is not in {self._options.path} ({', '.join(chunk.columns)})")
        chunk, times = keep_rows(chunk, self._times(chunk.columns[name]) if name else [self._clock.now_ms() * 1000] * chunk.rows)
        columns = self._mapper.convert(chunk, frozenset({name}), {name: times} if name else None)
        if times and not columns:
            # Another table, separator or format: samples that say nothing would look like measurements.
            self._rejects.count(NO_COLUMN, list(chunk.columns), times=len(times))
            return None
        return SampleBatch(times, columns, None, self.position, agent_clock=not name) if times else None

    def _times(self, cells: Sequence[object]) -> list[int | None]:
        """The times of a chunk. Where they tell no zone the log waits for one instead of being used up."""
        times = self._event_times.read(cells)
        if "time_zone" in self._event_times.needs:
            raise ConfigError(f"{unreadable('tail', self._event_times.needs)}; nothing of {self._options.path} is skipped")
        return times

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: the log is its writer's."""

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def check(options: Mapping[str, object], contract: Contract) -> TailOptions:
    """The options of a followed log.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("tail", options, TailOptions, contract)
    check_rotated("tail", chosen.rotated)
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> TailSource:
    """Follow a log.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: rotated logs cannot be listed.
    """
    return TailSource(check(options, contract), contract, clock, position)
