"""A source that follows a Zeek log, tab separated or JSON, across rotation.

    kind = "zeek"
    path = "/opt/zeek/logs/current/conn.log"
    rotated = ["../*/conn.*.log.gz"]   # where it goes; relative to its folder; default: conn.<date>.log and the like beside it
    start = "begin"                    # begin | end of the log, or rotated: those already rotated first
    rename = { "local_orig" = "attributes" }
    settle_ms = 2000                   # so long after a rotation the old file may still grow

A file is known by what it contains, not by name or inode, so a position holds after the file was renamed, copied, cut or packed.
Rotated files that were not read, because the agent was down or two rotations came at once, are read in their order.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.logs.follow import FollowedLog
from edge_agent.sources.logs.forms import JSONL, ZEEK
from edge_agent.sources.logs.marks import LogPosition
from edge_agent.sources.logs.rotation import LogOptions, check_rotated, default_patterns
from edge_agent.sources.options import EventTimes, read_options, time_column_of, unreadable
from edge_agent.sources.rows.mapping import ColumnMapper, keep_rows, unfilled_columns
from edge_agent.sources.rows.tables import CONN_RENAME
from schemas.contract import Contract

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("path",)


class ZeekOptions(LogOptions, frozen=True, forbid_unknown_fields=True):
    """The options of a followed Zeek log; the module's docstring shows each."""

    time_column: str = "ts"


class ZeekSource:
    """Follows one log; see the module.

    Attributes:
        rejected: reason -> rows, cells and files refused.
        unfilled: required columns that nothing in the log fills.
    """

    def __init__(self, options: ZeekOptions, contract: Contract, clock: Clock, position: bytes | None) -> None:
        self._options = options
        path = Path(options.path)
        self._rejects = Rejects(f"zeek {path.name}")
        self._contract = contract
        # An unset mark is understood by the reader; JSON leaves unset fields out.
        self._mapper = ColumnMapper(
            contract, options.rename, frozenset(), self._rejects, CONN_RENAME, options.numbers, options.times
        )
        self._event_times = EventTimes(options.times, self._rejects)
        self.unfilled: tuple[str, ...] = ()
        patterns = options.rotated or default_patterns(path)
        self._log = FollowedLog(
            path, patterns, (ZEEK, JSONL), options.settle_ms / 1000, options.max_line_bytes, clock, self._rejects
        )
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
        """
        chunk = self._log.read(max_samples)
        if chunk is None:
            return None
        if self._log.has_header and chunk.rows:
            self.unfilled = unfilled_columns(self._contract, chunk.columns, self._options.rename, CONN_RENAME)
        time_column = time_column_of(chunk.columns, self._options.rename, self._options.time_column)
        chunk, times = keep_rows(chunk, self._times(chunk.columns.get(time_column, [None] * chunk.rows)))
        if not times:
            return None
        columns = self._mapper.convert(chunk, frozenset({time_column}), {time_column: times})
        return SampleBatch(times, columns, None, self.position)

    def _times(self, cells: Sequence[object]) -> list[int | None]:
        """The times of a chunk. Where they tell no zone the log waits for one instead of being used up."""
        times = self._event_times.read(cells)
        if "time_zone" in self._event_times.needs:
            raise ConfigError(f"{unreadable('zeek', self._event_times.needs)}; nothing of {self._options.path} is skipped")
        return times

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: the logs are Zeek's."""

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def check(options: Mapping[str, object], contract: Contract) -> ZeekOptions:
    """The options of a followed Zeek log.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("zeek", options, ZeekOptions, contract)
    check_rotated("zeek", chosen.rotated)
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> ZeekSource:
    """Follow a log.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: rotated logs cannot be listed.
    """
    return ZeekSource(check(options, contract), contract, clock, position)
