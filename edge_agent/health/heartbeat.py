"""The agent's own state as samples of a stream: kept, sent and counted like any other.

Stands alone because the samples follow a contract that the core reads, whichever part of the agent makes them.
"""

from collections.abc import Callable

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.config import HEARTBEAT, HealthConfig, SourceConfig
from edge_agent.health.agent_stats import AgentStats
from edge_agent.sources.api import SampleBatch, Scalar

STREAM = "agent_heartbeat"
# Little, and what tells why a device is ill: it goes before ordinary samples where only some may go.
_PRIORITY = 1_000


def heartbeat_source(config: HealthConfig) -> tuple[SourceConfig, ...]:
    """The source that `[health] heartbeat_s` asks for, or none."""
    if not config.heartbeat_s:
        return ()
    return (SourceConfig(kind=HEARTBEAT, stream=STREAM, priority=_PRIORITY, options={"every_s": config.heartbeat_s}),)


class HeartbeatSource:
    """Yields a sample each time it is due, the first at once.

    Args:
        snapshot: takes a look at the agent.
        every_s: how often.
        clock: monotonic for when it is due, wall clock for the sample's time.
    """

    def __init__(self, snapshot: Callable[[], AgentStats], every_s: float, clock: Clock) -> None:
        self._snapshot = snapshot
        self._every_s = every_s
        self._clock = clock
        self._due_s = clock.monotonic_s()

    def read(self, max_samples: int) -> SampleBatch | None:
        """A sample if it is due."""
        now_s = self._clock.monotonic_s()
        if now_s < self._due_s or max_samples < 1:
            return None
        self._due_s = now_s + self._every_s
        return SampleBatch([self._clock.now_ms() * 1_000], {name: [value] for name, value in _row(self._snapshot()).items()})

    def stored(self, batch: SampleBatch) -> None:
        """Do nothing: a heartbeat has no position."""

    def close(self) -> None:
        """Do nothing: a heartbeat holds no resource."""


def _row(stats: AgentStats) -> dict[str, Scalar]:
    books = stats.books
    return {
        "agent_version": stats.version,
        "uptime_s": stats.uptime_s,
        "is_connected": stats.is_connected,
        "captured": sum(entry.captured for entry in books),
        "settled": sum(entry.settled for entry in books),
        "spooled": sum(entry.spooled for entry in books),
        "dropped": sum(sum(entry.dropped.values()) for entry in books),
        "books": msgspec.json.encode(books).decode(),
        "oldest_unsettled_s": stats.oldest_unsettled_s,
        "sent": stats.sent,
        "not_sent": stats.not_sent,
        "resent": stats.resent,
        "parked": stats.parked,
        "used_bytes": stats.used_bytes,
        "max_bytes": stats.max_bytes,
        "rss_bytes": stats.rss_bytes,
        "sources_running": stats.sources_running,
    }
