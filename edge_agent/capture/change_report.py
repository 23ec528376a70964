"""Which samples of a telemetry stream are worth reporting: those that say something new. Pure but for its memory.

A sample is reported when a watched column has left its deadband around the value last reported, when a change-only
column has another value, when `max_interval_s` of event time has passed, when event time went backwards, or when it is
the first of its key. The others are counted, not sent.
"""

import math
from collections.abc import Sequence

from edge_agent.report_config import ReportConfig
from edge_agent.sources.api import SampleBatch, Scalar
from edge_agent.sources.rejects import Rejects

_MAX_KEYS = 65_536
UNCHANGED = "report: unchanged"


class _Last:
    """What was last reported of one key."""

    __slots__ = ("time_us", "values")

    def __init__(self, time_us: int, values: tuple[Scalar, ...]) -> None:
        self.time_us = time_us
        self.values = values


class ChangeReport:
    """Lets through what says something new.

    Args:
        config: checked against the contract.
        rejects: where the others are counted.
    """

    def __init__(self, config: ReportConfig, rejects: Rejects) -> None:
        self._config = config
        self._rejects = rejects
        self._names = (*config.deadband, *config.change_only)
        self._widths: tuple[float | None, ...] = (*config.deadband.values(), *(None for _ in config.change_only))
        self._interval_us = round(config.max_interval_s * 1e6)
        self._last: dict[tuple[Scalar, ...], _Last] = {}

    def __call__(self, batch: SampleBatch) -> SampleBatch:
        """The rows worth reporting."""
        rows = len(batch)
        absent: Sequence[Scalar] = [None] * rows
        watched = list(zip(*(batch.columns.get(name, absent) for name in self._names), strict=True))
        keys: Sequence[tuple[Scalar, ...]] = [()] * rows
        if self._config.key:
            keys = list(zip(*(batch.columns.get(name, absent) for name in self._config.key), strict=True))
        kept = [row for row in range(rows) if self._is_news(keys[row], batch.event_time_us[row], watched[row])]
        if len(kept) == rows:
            return batch
        self._rejects.count(UNCHANGED, times=rows - len(kept))
        return batch.take(kept)

    def _is_news(self, key: tuple[Scalar, ...], time_us: int, values: tuple[Scalar, ...]) -> bool:
        last = self._last.get(key)
        if last is None:
            if len(self._last) >= _MAX_KEYS:
                self._last.clear()  # forgetting costs a report too many, remembering without end costs the device
            self._last[key] = _Last(time_us, values)
            return True
        since_us = time_us - last.time_us
        is_due = since_us < 0 or (self._interval_us and since_us >= self._interval_us)
        if not is_due and not any(map(_differs, values, last.values, self._widths)):
            return False
        last.time_us, last.values = time_us, values
        return True


def _differs(now: Scalar, before: Scalar, width: float | None) -> bool:
    if width is None or not isinstance(now, (int, float)) or not isinstance(before, (int, float)):
        return now != before
    return abs(now - before) > width or math.isnan(now) != math.isnan(before)
