"""The options of a followed log, whatever its format."""

from collections.abc import Sequence
from typing import Literal

from edge_agent.errors import ConfigError
from edge_agent.sources.rows.written import RowOptions


class LogOptions(RowOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the log and its rotated files are, where to begin, and how long a line may be."""

    path: str
    rotated: tuple[str, ...] = ()
    start: Literal["begin", "end", "rotated"] = "begin"
    settle_ms: int = 2_000
    max_line_bytes: int = 4 * 1024 * 1024


def check_rotated(kind: str, patterns: Sequence[str]) -> None:
    """Check the patterns of rotated files.

    Raises:
        ConfigError: one is empty or absolute.
    """
    for pattern in patterns:
        if not pattern or pattern.startswith("/"):
            raise ConfigError(f"source {kind!r}: rotated = {pattern!r} must be relative to the log's folder; ../ leads out of it")
