"""The interface of a source: batches of samples by column, the position after each, and counts of what was refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import structlog

from edge_agent.errors import SourceError

_MAX_REASONS = 256
# Reasons that are as things should be: counted, never a warning.
_QUIET = "report"

log = structlog.get_logger(__name__)

# One cell: a plain value, the items of a list or vector, or the fields of a struct.
Scalar: TypeAlias = str | int | float | bool | bytes | list[Any] | dict[str, Any] | None


class Rejects:
    """Counts by reason; each reason is logged when first met and then at every power of ten, never per row.

    Attributes:
        counts: reason -> how many. Reasons that begin with ``row`` are rows that became no sample, with ``cell`` single
            cells that became null, with ``file`` whole files left where they are, with ``report`` samples that said
            nothing new.
    """

    def __init__(self, source: str, *, is_quiet: bool = False) -> None:
        self._source = source
        self._is_quiet = is_quiet  # of a look ahead: the same rows are counted aloud when they are read
        self.counts: dict[str, int] = {}

    def count(self, reason: str, example: object = "", times: int = 1) -> None:
        """Count `times` more for that reason."""
        known = reason if reason in self.counts or len(self.counts) < _MAX_REASONS else "other"
        before = self.counts.get(known, 0)
        total = before + times
        self.counts[known] = total
        if self._is_quiet:
            return
        if len(str(total)) > (len(str(before)) if before else 0) and not reason.startswith(_QUIET):
            log.warning("rejected", source=self._source, reason=reason, total=total, example=repr(example)[:200])


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """`n` samples of one stream.

    Attributes:
        event_time_us: n observation times, microseconds since 1970 UTC.
        columns: contract column name -> n values (None where absent). Timestamps are microseconds.
        payloads: n payloads, or None for a stream without payload. A Path names a file too large to hold in memory.
        position: where the source resumes after this batch; the spool stores it in the batch's own transaction, so a
            restart neither skips nor repeats. None where a source cannot resume.
        agent_clock: whether the event times were read from this machine's clock, not from the observed device.
        urgent: n answers whether a sample is to leave before all others, because models disagree about it; None: none is.
    """

    event_time_us: Sequence[int]
    columns: Mapping[str, Sequence[Scalar]]
    payloads: Sequence[bytes | Path | None] | None = None
    position: bytes | None = field(default=None, repr=False)
    agent_clock: bool = False
    urgent: Sequence[bool] | None = None

    def __post_init__(self) -> None:
        rows = len(self.event_time_us)
        for name, values in self.columns.items():
            if len(values) != rows:
                raise SourceError(f"column {name} has {len(values)} values for {rows} samples")
        if self.payloads is not None and len(self.payloads) != rows:
            raise SourceError(f"{len(self.payloads)} payloads for {rows} samples")

    def __len__(self) -> int:
        return len(self.event_time_us)

    def take(self, rows: Sequence[int]) -> "SampleBatch":
        """These rows alone, in this order; the position stays."""
        payloads = None if self.payloads is None else [self.payloads[row] for row in rows]
        columns: dict[str, Sequence[Scalar]] = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        urgent = None if self.urgent is None else [self.urgent[row] for row in rows]
        times = [self.event_time_us[row] for row in rows]
        return SampleBatch(times, columns, payloads, self.position, self.agent_clock, urgent)

    def with_columns(self, more: Mapping[str, Sequence[Scalar]]) -> "SampleBatch":
        """The same samples with more columns, or others in their place."""
        return replace(self, columns={**self.columns, **more})


class Source(Protocol):
    """Something that yields samples. One thread calls it; it gets the position to resume from when it is built."""

    def read(self, max_samples: int) -> SampleBatch | None:
        """The next samples, at most so many; None when there is nothing right now.

        Raises:
            SourceError: the source failed; the agent closes it and builds it again after a while.
            SourceEndedError: there will never be more.
        """
        ...

    def stored(self, batch: SampleBatch) -> None:
        """Act on a batch that is durable in the spool: its files may be moved or deleted."""
        ...

    def close(self) -> None:
        """Close files and end processes."""
        ...
