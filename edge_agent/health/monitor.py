"""One look at the running agent: for the health file, the service manager's watchdog, and the health port."""

import os
from collections import Counter
from collections.abc import Callable, Iterable

import structlog

from catchment.runtime.clock import Clock
from edge_agent.capture.source_supervisor import SourceSupervisor
from edge_agent.clock_quality import EARLIEST_MS
from edge_agent.config import AgentConfig
from edge_agent.health.agent_stats import AgentStats, check_live
from edge_agent.health.file import Health, notify_service_manager, rss_bytes, write_health
from edge_agent.spool.spool import Spool
from edge_agent.uplink.outbox import UplinkProgress
from schemas.reason_codes import describe_reason
from schemas.reported import DocumentReport, PolicyReport

_MAX_REASON_CHARS = 500

log = structlog.get_logger(__name__)


class Monitor:
    """Looks; changes nothing.

    Args:
        config: quota, state folder, when a thread counts as stuck.
        version: the agent's.
        spool: has the books.
        progress: the uplink's.
        supervisor: the sources.
        clock: monotonic time for ages; wall clock for how long a sample has waited.
        policy: what the rules' room says of itself.
        is_clock_awaited: whether samples wait for the wall clock to be set.

    Attributes:
        documents: tells what was taken of the signed documents.
    """

    def __init__(
        self,
        config: AgentConfig,
        version: str,
        spool: Spool,
        progress: UplinkProgress,
        supervisor: SourceSupervisor,
        clock: Clock,
        policy: Callable[[], PolicyReport | None] = lambda: None,
        is_clock_awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._version = version
        self._spool = spool
        self._progress = progress
        self._supervisor = supervisor
        self._clock = clock
        self._policy = policy
        self._is_clock_awaited = is_clock_awaited
        self.documents: Callable[[], tuple[DocumentReport, ...]] = tuple
        self._started_s = clock.monotonic_s()
        self._main_loop_s = self._started_s
        self._refused_streams: frozenset[str] = frozenset()
        self.failure = ""

    def note_loop(self) -> None:
        """The main thread came round."""
        self._main_loop_s = self._clock.monotonic_s()

    def snapshot(self) -> AgentStats:
        """Everything at this moment. From any thread."""
        progress, now_s = self._progress, self._clock.monotonic_s()
        return AgentStats(
            device=self._config.device,
            version=self._version,
            last_loop_age_s={"main": now_s - self._main_loop_s, "uplink": _age(now_s, progress.last_loop_s) or 0.0},
            is_connected=progress.is_connected,
            uptime_s=now_s - self._started_s,
            oldest_unsettled_s=self._waited_s(now_s),
            is_clock_awaited=self._is_clock_awaited(),
            last_receipt_s=_age(now_s, progress.last_receipt_s),
            last_ack_s=_age(now_s, progress.last_ack_s),
            sent=progress.sent_count,
            sent_bytes=progress.sent_bytes,
            not_sent=progress.not_sent_count,
            resent=progress.resent_count,
            parked=progress.parked_count,
            waiting_streams=progress.waiting_streams,
            refused_topics=tuple(sorted(progress.refused_topics.items())),
            refused_count=progress.refused_count,
            over_share=progress.over_share,
            share_notices=progress.share_notices,
            used_bytes=self._spool.used_bytes(),
            max_bytes=self._config.spool.max_bytes,
            rss_bytes=rss_bytes(),
            sources_running=self._supervisor.running,
            sources_failing=sum(bool(pump.failing) for pump in self._supervisor.pumps),
            books=self._spool.books(),
            rejected=_by_stream((pump.name, pump.rejected()) for pump in self._supervisor.pumps),
            left_out=_by_stream((pump.name, pump.left_out()) for pump in self._supervisor.pumps),
            failure=self.failure or str(self._spool.failure or ""),
            refused=tuple(self._spool.refused().items()),
        )

    def _waited_s(self, now_s: float) -> float | None:
        created_us = self._spool.oldest_unsettled_us()
        if created_us is None:
            return None
        waited_s = max(0.0, self._clock.now_ms() / 1000 - created_us / 1e6)
        if created_us < EARLIEST_MS * 1000:
            # Made while the clock was not set: of its age only this process's own part is known.
            return min(waited_s, now_s - self._started_s)
        return waited_s

    def tell(self) -> None:
        """Write the health file, and keep the service manager from restarting us, if there is no reason to."""
        stats = self.snapshot()
        since_ack_s = stats.last_ack_s
        health = Health(
            at_ms=self._clock.now_ms(),
            pid=os.getpid(),
            is_connected=stats.is_connected,
            sources_running=stats.sources_running,
            sent=stats.sent,
            not_sent=stats.not_sent,
            resent=stats.resent,
            parked=stats.parked,
            waiting_streams=stats.waiting_streams,
            refused_topics={topic: describe_reason(code) for topic, code in stats.refused_topics},
            over_share=stats.over_share,
            since_ack_s=None if since_ack_s is None else round(since_ack_s, 1),
            used_bytes=stats.used_bytes,
            max_bytes=stats.max_bytes,
            rss_bytes=stats.rss_bytes,
            failure=stats.failure,
            rejected=_by_source((pump.name, pump.rejected()) for pump in self._supervisor.pumps),
            left_out=_by_source((pump.name, pump.left_out()) for pump in self._supervisor.pumps),
            policy=self._policy(),
            sources=self._supervisor.states(),
            refused=dict(stats.refused),
            documents=self.documents(),
            failing={pump.name: pump.failing[:_MAX_REASON_CHARS] for pump in self._supervisor.pumps if pump.failing},
        )
        self._log_refusals(stats)
        try:
            write_health(self._config.state_dir, health)
        except OSError as error:
            log.warning("health_not_written", error=str(error))
        result = check_live(stats, self._config.health.stalled_after_s)
        if result.is_good:
            notify_service_manager("WATCHDOG=1")
        else:
            log.error("not_live", reason=result.message)

    def _log_refusals(self, stats: AgentStats) -> None:
        """Log a stream once when the core begins to refuse all of it, and once when that is over."""
        total = {stream: one for stream, one in stats.refused if one.is_total}
        for stream in sorted(total.keys() - self._refused_streams):
            one = total[stream]
            log.error("stream_refused_by_core", stream=stream, quarantined=one.quarantined, in_row=one.in_row, reason=one.reason)
        for stream in sorted(self._refused_streams - total.keys()):
            log.info("stream_accepted_by_core", stream=stream)
        self._refused_streams = frozenset(total)


def _by_source(counts: Iterable[tuple[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Counts by kind and stream: two folders that fill one stream are counted as one."""
    total: dict[str, Counter[str]] = {}
    for name, by_reason in counts:
        total.setdefault(name, Counter()).update(by_reason)
    return {name: dict(found) for name, found in total.items()}


def _by_stream(counts: Iterable[tuple[str, dict[str, int]]]) -> tuple[tuple[str, str, int], ...]:
    """Counts of sources, named kind:stream:options, as counts of streams: an option is no label for a metric."""
    total: Counter[tuple[str, str]] = Counter()
    for name, by_reason in counts:
        stream = name.split(":", 2)[1]
        total.update({(stream, reason): count for reason, count in by_reason.items()})
    return tuple((stream, reason, count) for (stream, reason), count in sorted(total.items()))


def _age(now_s: float, then_s: float) -> float | None:
    return None if then_s == float("-inf") else now_s - then_s
