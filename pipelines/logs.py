"""Logs of the core: one line an event, on standard error, so that `--json` on standard output stays one document."""

import sys

import structlog

from catchment.runtime.plain import plain_event


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
