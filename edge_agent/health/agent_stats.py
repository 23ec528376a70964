"""Is the agent alive, does it make progress, what are its figures? Pure decisions over one look at the running agent."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from catchment.runtime.metrics_text import MetricsPage
from schemas.reason_codes import describe_reason
from schemas.receipts import RefusedStream
from schemas.reported import StreamBooks

_PREFIX = "catchment_agent"


@dataclass(frozen=True, slots=True)
class AgentStats:
    """One look. Ages are seconds by the monotonic clock, None where the thing never happened.

    Attributes:
        last_loop_age_s: thread -> seconds since it last came round.
        oldest_unsettled_s: how long the oldest sample that may be sent has waited.
        last_receipt_s: since the core last settled something.
        rejected: (stream, reason, count) of rows, cells and files that became no sample.
        left_out: (stream, reason, count) of samples read and not stored: by configuration, contract or rule.
        waiting_streams: the broker, or a proxy, hangs up on all of their envelopes.
        over_share: why the core does not take all that is sent; "" when it does.
        refused_topics: (topic or filter, reason code) that the broker refuses.
        refused: (stream, figures) of what the core refuses.
        waits_for: why nothing is captured yet; "" when it is.
        is_clock_awaited: samples were captured while the wall clock was not set, and wait for it.
    """

    device: str
    version: str
    last_loop_age_s: dict[str, float]
    is_connected: bool
    uptime_s: float
    oldest_unsettled_s: float | None
    last_receipt_s: float | None
    last_ack_s: float | None
    sent: int
    not_sent: int
    resent: int
    parked: int
    used_bytes: int
    max_bytes: int
    rss_bytes: int
    sources_running: int
    books: tuple[StreamBooks, ...]
    sent_bytes: int = 0
    waiting_streams: tuple[str, ...] = ()
    rejected: tuple[tuple[str, str, int], ...] = ()
    left_out: tuple[tuple[str, str, int], ...] = ()
    refused_topics: tuple[tuple[str, int], ...] = ()
    refused_count: int = 0
    over_share: str = ""
    share_notices: int = 0
    waits_for: str = ""
    failure: str = ""
    sources_failing: int = 0
    refused: tuple[tuple[str, RefusedStream], ...] = ()
    is_clock_awaited: bool = False


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Yes, or no and why."""

    is_good: bool
    message: str


def check_live(stats: AgentStats, stalled_after_s: float) -> ProbeResult:
    """Whether every thread came round lately. A broken link is no reason to be restarted; a stuck thread is."""
    if stats.failure:
        return ProbeResult(is_good=False, message=f"broken: {stats.failure}")
    stuck = sorted(name for name, age_s in stats.last_loop_age_s.items() if age_s > stalled_after_s)
    if stuck:
        ages = ", ".join(f"{name} came round {stats.last_loop_age_s[name]:.0f} s ago" for name in stuck)
        return ProbeResult(is_good=False, message=f"stuck: {ages}")
    return ProbeResult(is_good=True, message=f"live, and waits: {stats.waits_for}" if stats.waits_for else "live")


def check_ready(stats: AgentStats, stalled_after_s: float, ready_within_s: float) -> ProbeResult:
    """Whether samples get through: nothing waits, or something was settled lately, or the oldest has not waited long.

    A stream of which the core refuses everything does not get through, though all of it is settled.
    """
    live = check_live(stats, stalled_after_s)
    if not live.is_good:
        return live
    if obstacle := _obstacle(stats):
        return ProbeResult(is_good=False, message=obstacle)
    waited_s = stats.oldest_unsettled_s
    refused = "; ".join(refusal_text(stream, one) for stream, one in stats.refused if one.is_total)
    if refused:
        return ProbeResult(is_good=False, message=refused)
    return _check_progress(stats, waited_s, ready_within_s)


def _check_progress(stats: AgentStats, waited_s: float | None, ready_within_s: float) -> ProbeResult:
    if waited_s is None or waited_s <= ready_within_s:
        return ProbeResult(is_good=True, message=f"ready; {_waiting(waited_s)}")
    if stats.last_receipt_s is not None and stats.last_receipt_s <= ready_within_s:
        return ProbeResult(is_good=True, message=f"catching up; {_waiting(waited_s)}")
    if stats.over_share:
        return ProbeResult(is_good=False, message=f"{_waiting(waited_s)}; over its share at the core: {stats.over_share}")
    since = "never" if stats.last_receipt_s is None else f"{stats.last_receipt_s:.0f} s ago"
    return ProbeResult(is_good=False, message=f"{_waiting(waited_s)}; the last receipt came {since}: do bridge and run work?")


def _obstacle(stats: AgentStats) -> str:
    """Return the reason why no sample can get through at this moment; empty if there is none."""
    waiting = _waiting(stats.oldest_unsettled_s)
    if stats.waits_for:
        return f"nothing is captured yet: {stats.waits_for}"
    if stats.is_clock_awaited:
        return f"the clock is not set, and samples wait for it; {waiting}"
    if not stats.is_connected:
        return f"no connection to the broker; {waiting}"
    # Without these no receipt comes. A refused report or request for a model keeps no sample from being settled.
    deaf = [f"{topic}: {describe_reason(code)}" for topic, code in stats.refused_topics if "/down/" in topic]
    return f"the broker refuses {deaf[0]}; {waiting}" if deaf else ""


def refusal_text(stream: str, one: RefusedStream) -> str:
    """Describe how much of a stream the core refuses, and why."""
    named = stream or "messages that name no stream"
    count = f"{one.in_row:,} in a row" if one.is_total else f"{one.quarantined:,} of {one.quarantined + one.committed:,}"
    return f"{named}: refused by the core: {one.share * 100:.3g} % ({count}), mostly: {one.reason or 'no reason given'}"


# name, kind, what it tells, where it is found.
_SINGLES: tuple[tuple[str, str, str, Callable[[AgentStats], float | None]], ...] = (
    ("sent_envelopes_total", "counter", "Published since the start.", lambda v: v.sent),
    ("sent_bytes_total", "counter", "Bodies and parts published since the start.", lambda v: v.sent_bytes),
    ("not_sent_envelopes_total", "counter", "Nobody listens, not authorised, or over quota.", lambda v: v.not_sent),
    ("resent_envelopes_total", "counter", "Sent again: no receipt came in time.", lambda v: v.resent),
    ("refused_control_total", "counter", "Reports, requests and subscriptions the broker refused.", lambda v: v.refused_count),
    ("over_share", "gauge", "1 while the core does not take all that is sent.", lambda v: int(bool(v.over_share))),
    ("share_notices_total", "counter", "How often the core said so since the start.", lambda v: v.share_notices),
    ("parked_envelopes_total", "counter", "Parked since the start.", lambda v: v.parked),
    ("connected", "gauge", "1 while connected to the broker.", lambda v: int(v.is_connected)),
    ("oldest_unsettled_seconds", "gauge", "How long the oldest sample has waited.", lambda v: v.oldest_unsettled_s or 0),
    ("last_receipt_age_seconds", "gauge", "Since the core last settled something.", lambda v: v.last_receipt_s),
    ("last_ack_age_seconds", "gauge", "Since the broker last took a message.", lambda v: v.last_ack_s),
    ("spool_used_bytes", "gauge", "Of the quota.", lambda v: v.used_bytes),
    ("spool_max_bytes", "gauge", "The quota.", lambda v: v.max_bytes),
    ("resident_bytes", "gauge", "Memory of the process.", lambda v: v.rss_bytes),
    ("sources_running", "gauge", "Sources with a thread.", lambda v: v.sources_running),
    ("sources_failing", "gauge", "Sources that do not run now and are tried again.", lambda v: v.sources_failing),
    ("clock_awaited", "gauge", "1 while samples wait for the wall clock to be set.", lambda v: int(v.is_clock_awaited)),
    ("uptime_seconds", "gauge", "Since the start.", lambda v: v.uptime_s),
)


_REFUSALS: tuple[tuple[str, str, Callable[[RefusedStream], float]], ...] = (
    ("refused_samples", "Settled by the core's quarantine, according to the last receipt.", lambda one: one.quarantined),
    ("refused_share", "Share the core refuses; 1: all that this stream sends.", lambda one: one.share),
    ("refused_in_row_samples", "Refused since the core last accepted one.", lambda one: one.in_row),
)


def render_metrics(stats: AgentStats) -> str:
    """The figures in Prometheus' text format 0.0.4."""
    page = MetricsPage()

    def add(name: str, kind: str, meaning: str, samples: Iterable[tuple[dict[str, str], float]]) -> None:
        page.add(f"{_PREFIX}_{name}", meaning, samples, kind)

    add("info", "gauge", "Always 1.", [({"device": stats.device, "version": stats.version}, 1)])
    books = stats.books
    add("captured_samples_total", "counter", "Given a seq, over the device's life.", ((_of(one), one.captured) for one in books))
    add("settled_samples_total", "counter", "Covered by a receipt.", ((_of(one), one.settled) for one in books))
    add("spooled_samples", "gauge", "Stored and not settled.", ((_of(one), one.spooled) for one in books))
    dropped = (({**_of(one), "reason": why}, n) for one in books for why, n in sorted(one.dropped.items()))
    add("dropped_samples_total", "counter", "Given up, by reason.", dropped)
    for name, meaning, counted in (
        ("rejected_total", "Rows, cells and files that became no sample, since the start.", stats.rejected),
        ("left_out_samples_total", "Read and not stored, as configuration, contract or rule ask.", stats.left_out),
    ):
        add(name, "counter", meaning, (({"stream": stream, "reason": why}, n) for stream, why, n in counted))
    for figure, meaning, read in _REFUSALS:
        add(figure, "gauge", meaning, [({"stream": stream}, read(one)) for stream, one in stats.refused])
    waiting = (({"stream": stream}, 1) for stream in stats.waiting_streams)
    add("waiting_streams", "gauge", "1 for each stream on all of which the broker hangs up.", waiting)
    refused = (({"topic": topic, "reason": f"0x{code:02x}"}, 1) for topic, code in stats.refused_topics)
    add("refused_topics", "gauge", "1 for each topic or filter that the broker refuses.", refused)
    loop_ages = (({"thread": name}, age_s) for name, age_s in sorted(stats.last_loop_age_s.items()))
    add("loop_age_seconds", "gauge", "Since the thread last came round.", loop_ages)
    for name, kind, meaning, find in _SINGLES:
        page.add_one(f"{_PREFIX}_{name}", meaning, find(stats), kind)
    return page.text()


def _of(books: StreamBooks) -> dict[str, str]:
    return {"stream": books.stream}


def _waiting(waited_s: float | None) -> str:
    return "nothing waits" if waited_s is None else f"the oldest sample has waited {waited_s:.0f} s"
