"""One look at the running agent: for the health file, the service manager's watchdog, and the health port."""

import os
from collections import Counter
from collections.abc import Callable, Iterable

import structlog

from catchment.runtime.clock import Clock
from edge_agent.capture.source_supervisor import Lineup
from edge_agent.clock_quality import EARLIEST_MS
from edge_agent.config import AgentConfig
from edge_agent.health.agent_stats import Vitals, judge_live
from edge_agent.health.file import Health, notify_service_manager, rss_bytes, write_health
from edge_agent.spool.spool import Spool
from edge_agent.uplink.progress import Progress
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
        lineup: the sources.
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
        progress: Progress,
        lineup: Lineup,
        clock: Clock,
        policy: Callable[[], PolicyReport | None] = lambda: None,
        is_clock_awaited: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._version = version
        self._spool = spool
        self._progress = progress
        self._lineup = lineup
        self._clock = clock
        self._policy = policy
        self._is_clock_awaited = is_clock_awaited
        self.documents: Callable[[], tuple[DocumentReport, ...]] = tuple
        self._started_s = clock.monotonic_s()
        self._main_turned_s = self._started_s
        self._refused_streams: frozenset[str] = frozenset()
        self.failure = ""

    def turned(self) -> None:
        """The main thread came round."""
        self._main_turned_s = self._clock.monotonic_s()

    def look(self) -> Vitals:
        """Everything at this moment. From any thread."""
        progress, now_s = self._progress, self._clock.monotonic_s()
        return Vitals(
            device=self._config.device,
            version=self._version,
            turned_s={"main": now_s - self._main_turned_s, "uplink": _age(now_s, progress.turned_s) or 0.0},
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
            sources_running=self._lineup.running,
            sources_failing=sum(bool(pump.failing) for pump in self._lineup.pumps),
            books=self._spool.books(),
            rejected=_by_stream((pump.name, pump.rejected()) for pump in self._lineup.pumps),
            left_out=_by_stream((pump.name, pump.left_out()) for pump in self._lineup.pumps),
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
        vitals = self.look()
        since_ack_s = vitals.last_ack_s
        health = Health(
            at_ms=self._clock.now_ms(),
            pid=os.getpid(),
            is_connected=vitals.is_connected,
            sources_running=vitals.sources_running,
            sent=vitals.sent,
            not_sent=vitals.not_sent,
            resent=vitals.resent,
            parked=vitals.parked,
            waiting_streams=vitals.waiting_streams,
            refused_topics={topic: describe_reason(code) for topic, code in vitals.refused_topics},
            over_share=vitals.over_share,
            since_ack_s=None if since_ack_s is None else round(since_ack_s, 1),
            used_bytes=vitals.used_bytes,
            max_bytes=vitals.max_bytes,
            rss_bytes=vitals.rss_bytes,
            failure=vitals.failure,
            rejected=_by_source((pump.name, pump.rejected()) for pump in self._lineup.pumps),
            left_out=_by_source((pump.name, pump.left_out()) for pump in self._lineup.pumps),
            policy=self._policy(),
            sources=self._lineup.states(),
            refused=dict(vitals.refused),
            documents=self.documents(),
            failing={pump.name: pump.failing[:_MAX_REASON_CHARS] for pump in self._lineup.pumps if pump.failing},
        )
        self._log_refusals(vitals)
        try:
            write_health(self._config.state_dir, health)
        except OSError as error:
            log.warning("health_not_written", error=str(error))
        verdict = judge_live(vitals, self._config.health.stalled_after_s)
        if verdict.is_good:
            notify_service_manager("WATCHDOG=1")
        else:
            log.error("not_live", reason=verdict.message)

    def _log_refusals(self, vitals: Vitals) -> None:
        """Log a stream once when the core begins to refuse all of it, and once when that is over."""
        total = {stream: one for stream, one in vitals.refused if one.is_total}
        for stream in sorted(total.keys() - self._refused_streams):
            one = total[stream]
            log.error("stream_refused_by_core", stream=stream, quarantined=one.quarantined, in_row=one.in_row, reason=one.reason)
        for stream in sorted(self._refused_streams - total.keys()):
            log.info("stream_accepted_by_core", stream=stream)
        self._refused_streams = frozenset(total)


def _by_source(counts: Iterable[tuple[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Counts by kind and stream: two folders that fill one stream are told as one."""
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
