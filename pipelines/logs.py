"""Set up the core's log: one line an event, on standard error, so that `--json` on standard output stays one document.

A line that a device can cause is logged once a minute for each device, with a count of those left out.
"""

import sys
from collections.abc import Hashable

import structlog

from catchment.runtime.plain import plain_event

EVERY_S = 60.0
_MAX_KEYS = 10_000


class LogLimit:
    """Decides whether a line is logged. Pure; time is given. For one thread."""

    def __init__(self, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._last_s: dict[Hashable, float] = {}
        self._left_out: dict[Hashable, int] = {}

    def due(self, key: Hashable, now_s: float) -> int | None:
        """Return how many like it were left out since the last one; None: leave this one out, too."""
        last_s = self._last_s.get(key)
        if last_s is not None and now_s - last_s < self._every_s:
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return None
        if last_s is None and len(self._last_s) >= _MAX_KEYS:
            self._last_s.clear()
            self._left_out.clear()
        self._last_s[key] = now_s
        return self._left_out.pop(key, 0)


def log_to_stderr() -> None:
    """Send every event there as `timestamp level event key=value`."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            plain_event,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
