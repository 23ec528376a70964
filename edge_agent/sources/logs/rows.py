"""A source of a followed log's rows, whatever wrote them: `tail` and `zeek` are two ways to build it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.logs.follow import FollowedLog
from edge_agent.sources.logs.marks import LogPosition
from edge_agent.sources.logs.rotation import LogOptions, default_patterns
from edge_agent.sources.options import EventTimes, time_column_of, unreadable
from edge_agent.sources.rows.mapping import NO_COLUMN, ColumnMapper, MappedRows, keep_rows, unfilled_columns
from edge_agent.sources.rows.tables import CONN_RENAME, RawChunk
from schemas.contract import Contract


@dataclass(frozen=True, slots=True)
class FollowedKind:
    """What one kind of log is like.

    Attributes:
        name: of the kind, for messages.
        forms: how its rows may be written; see `edge_agent.sources.logs.forms`.
        empty: cells that mean nothing was measured.
        is_timed: whether every row has a time of its own; else rows without a time column have the time of reading.
    """

    name: str
    forms: tuple[str, ...]
    empty: frozenset[str]
    is_timed: bool


class LogRows(MappedRows):
    """Follows one log.

    Args:
        kind: what the log is like.
        options: its path and how it is read.
        contract: of the stream.
        clock: wall clock for the time of reading, monotonic for rotation.
        position: where it was left; None: at the first start.

    Attributes:
        unfilled: required columns that nothing in the log fills.

    Raises:
        SourceError: rotated logs cannot be listed.
    """

    def __init__(self, kind: FollowedKind, options: LogOptions, contract: Contract, clock: Clock, position: bytes | None) -> None:
        self._kind = kind
        self._options = options
        self._contract = contract
        self._clock = clock
        path = Path(options.path)
        self._rejects = Rejects(f"{kind.name} {path.name}")
        patterns = options.rotated or default_patterns(path)
        settle_s = options.settle_ms / 1000
        self._log = FollowedLog(path, patterns, kind.forms, settle_s, options.max_line_bytes, clock, self._rejects)
        self._mapper = ColumnMapper(
            contract, options.rename, kind.empty, self._rejects, CONN_RENAME, options.numbers, options.times
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
        chunk, times = keep_rows(chunk, self._times(chunk, name))
        columns = self._mapper.convert(chunk, frozenset({name}), {name: times} if name else None)
        if times and not columns and not self._kind.is_timed:
            # Another table, separator or format: samples that say nothing would look like measurements.
            self._rejects.count(NO_COLUMN, list(chunk.columns), times=len(times))
            return None
        return SampleBatch(times, columns, None, self.position, agent_clock=not name) if times else None

    def _times(self, chunk: RawChunk, name: str) -> Sequence[int | None]:
        if self._kind.is_timed:
            return self._event_times_of(chunk.columns.get(name, [None] * chunk.rows))
        if not name:
            return [self._clock.now_ms() * 1000] * chunk.rows
        if name not in chunk.columns:
            names = ", ".join(chunk.columns)
            raise ConfigError(f"source {self._kind.name!r}: time_column {name!r} is not in {self._options.path} ({names})")
        return self._event_times_of(chunk.columns[name])

    def _event_times_of(self, cells: Sequence[object]) -> list[int | None]:
        """The times of a chunk. Where they tell no zone the log waits for one instead of being used up."""
        times = self._event_times.read(cells)
        if "time_zone" in self._event_times.needs:
            needs = unreadable(self._kind.name, self._event_times.needs)
            raise ConfigError(f"{needs}; nothing of {self._options.path} is skipped")
        return times

    def stored(self, batch: SampleBatch) -> None:
        """Do nothing: the log belongs to its writer."""

    def close(self) -> None:
        """Close the file."""
        self._log.close()
