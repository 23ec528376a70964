"""Judge a survey: alive, ready, alarms. No IO.

Alive: the processes send heartbeats. Ready: they get on. That a pipeline stands still while all its processes live is the
failure that nobody sees, so waiting work that no run takes is not ready. An alarm that is no standstill (rules refused, a
policy suspended, much in quarantine) is for a person to look at: the core gets on, and stays ready.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from pipelines.config import AlarmConfig
from pipelines.heartbeat import Heartbeat
from pipelines.status.survey import StreamStatus, Survey

DEFAULTS = AlarmConfig()


class AlarmKind(StrEnum):
    """The subject of an alarm."""

    BOOKS = "books"
    SILENT = "silent"
    REMOTE = "remote_silent"
    TROUBLE = "trouble"
    STUCK = "stuck"
    FAULT_BREAKER = "fault_breaker"
    RULES = "rules"
    SUSPENDED = "suspended"
    QUARANTINE = "quarantine"
    SHARE = "share"
    REFUSED = "refused"
    RECEIPTS = "receipts"
    RANGES = "ranges"


_STANDSTILLS = frozenset(
    {AlarmKind.BOOKS, AlarmKind.SILENT, AlarmKind.REMOTE, AlarmKind.TROUBLE, AlarmKind.STUCK, AlarmKind.FAULT_BREAKER}
)


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that a person should look at, in a sentence."""

    kind: AlarmKind
    text: str


@dataclass(frozen=True, slots=True)
class HealthResult:
    """Whether the core is alive and ready, and all that is not well."""

    is_alive: bool
    is_ready: bool
    found: tuple[Alarm, ...]

    @property
    def alarms(self) -> tuple[str, ...]:
        """The alarms, one sentence each."""
        return tuple(alarm.text for alarm in self.found)

    def counts(self) -> dict[str, int]:
        """Count the alarms of each kind, none left out."""
        counted = Counter(alarm.kind for alarm in self.found)
        return {kind.value: counted[kind] for kind in AlarmKind}


def assess(found: Survey, limits: AlarmConfig = DEFAULTS) -> HealthResult:
    """Judge a survey."""
    alarms = tuple(
        Alarm(kind, text)
        for kind, texts in (
            (AlarmKind.BOOKS, _books(found)),
            (AlarmKind.SILENT, _silent(found, limits)),
            (AlarmKind.REMOTE, _remote(found, limits)),
            (AlarmKind.TROUBLE, _troubles(found, limits)),
            (AlarmKind.STUCK, _stuck(found, limits)),
            (AlarmKind.FAULT_BREAKER, _fault_breaker(found)),
            (AlarmKind.RULES, _rules(found, limits)),
            (AlarmKind.SUSPENDED, _suspended(found, limits)),
            (AlarmKind.QUARANTINE, _quarantine(found, limits)),
            (AlarmKind.SHARE, _over_share(found, limits)),
            (AlarmKind.REFUSED, _refused(found)),
            (AlarmKind.RECEIPTS, _receipts(found, limits)),
            (AlarmKind.RANGES, _ranges(found, limits)),
        )
        for text in texts
    )
    kinds = {alarm.kind for alarm in alarms}
    return HealthResult(AlarmKind.SILENT not in kinds, not kinds & _STANDSTILLS, alarms)


def _books(found: Survey) -> Iterator[str]:
    yield from (f"the books of {key} do not balance" for key in found.unbalanced)
    for stream in found.streams:
        if stream.rows is not None and stream.rows > stream.counts.committed:
            yield f"stream {stream.stream} has {stream.rows} rows, its books say {stream.counts.committed}"


def _age_ms(found: Survey, at_ms: int) -> int:
    return found.at_us // 1_000 - at_ms


def _silent(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    for heartbeat in found.heartbeats:
        if _age_ms(found, heartbeat.at_ms) > limits.silent_s * 1_000:
            silent_s = _age_ms(found, heartbeat.at_ms) // 1000
            yield f"{heartbeat.role} {heartbeat.name} is silent for {silent_s} s{_last_word(heartbeat)}"
    roles = {heartbeat.role for heartbeat in found.heartbeats}
    # Of a remote lake each role may be on a machine of its own, and is asked there.
    wanted = () if found.is_remote else ("bridge", "run")
    yield from (f"no {role} has ever been at work here" for role in wanted if role not in roles)


def _last_word(heartbeat: Heartbeat) -> str:
    """Return the last report of a process that is silent, if it was trouble."""
    return f"; its last word: {heartbeat.trouble}" if heartbeat.trouble else ""


def _remote(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    """Judge processes of other machines apart: a liveness probe of this machine must not fail because of another one."""
    for heartbeat in found.remote_heartbeats:
        if _age_ms(found, heartbeat.at_ms) > limits.remote_silent_s * 1_000:
            silent_s = _age_ms(found, heartbeat.at_ms) // 1000
            yield f"{heartbeat.role} {heartbeat.name} on {heartbeat.host} is silent for {silent_s} s{_last_word(heartbeat)}"


def _live_heartbeats(found: Survey, limits: AlarmConfig) -> Iterator[Heartbeat]:
    yield from (heartbeat for heartbeat in found.heartbeats if _age_ms(found, heartbeat.at_ms) <= limits.silent_s * 1_000)
    yield from (
        heartbeat for heartbeat in found.remote_heartbeats if _age_ms(found, heartbeat.at_ms) <= limits.remote_silent_s * 1_000
    )


def _troubles(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    for heartbeat in _live_heartbeats(found, limits):
        if not heartbeat.is_ready:
            yield f"{heartbeat.role} {heartbeat.name}: {heartbeat.trouble or 'not ready'}"


def _stuck(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    oldest = found.oldest_waiting_us
    if oldest is not None and found.at_us - oldest > limits.stuck_s * 1_000_000:
        yield f"a sealed segment waits for {(found.at_us - oldest) // 1_000_000} s and no run takes it"


def _fault_breaker(found: Survey) -> Iterator[str]:
    stop = found.faults
    if stop.stopped_run:
        yield (
            f"run {stop.stopped_run} is paused for {max(0, found.at_us - stop.at_us) // 1_000_000} s: "
            f"nearly every message meets an internal error ({stop.reason[:200]})"
        )


def _rules(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    for heartbeat in _live_heartbeats(found, limits):
        if heartbeat.counters.get("rules_broken"):
            yield f"the rules cannot be read, those before them stay in force: {heartbeat.trouble}"


def _suspended(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    if limits.suspended:
        yield from (f"{one.kind} {one.name} is suspended: {one.reason}" for one in found.suspended)


def _over_share(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    for heartbeat in _live_heartbeats(found, limits):
        yield from (f"device {device} is over its share: {what}" for device, what in sorted(heartbeat.over_share.items()))


def _quarantine(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    for stream in found.streams:
        share = quarantine_share(stream)
        if limits.quarantine_share and share > limits.quarantine_share and stream.recent_quarantined >= limits.quarantine_count:
            yield (
                f"stream {stream.stream}: {share:.0%} of what the last runs settled went to quarantine "
                f"({stream.recent_quarantined} samples); `catchment quarantine ls` says why"
            )


def _refused(found: Survey) -> Iterator[str]:
    for one in found.devices.refused:
        named = f"stream {one.stream} of {one.device or '(no device)'}" if one.stream else f"{one.device or '(no device)'}"
        others = f", and {one.others} more of its streams" if one.others else ""
        yield f"{named}: the core refuses all it sends ({one.samples} samples in a row: {one.reason}){others}"
    left = found.devices.refused_count - len(found.devices.refused)
    if left:
        yield f"the core refuses all that streams of {left} more devices send; `catchment quarantine ls` says why"


def _receipts(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    for heartbeat in _live_heartbeats(found, limits):
        yield from heartbeat.warnings


def _ranges(found: Survey, limits: AlarmConfig) -> Iterator[str]:
    for one in found.devices.crowded:
        if limits.device_ranges and one.ranges >= limits.device_ranges:
            yield (
                f"{one.device} has {one.ranges} settled ranges with gaps between them; `catchment gaps --device {one.device}` "
                "lists them, and beyond run.max_device_ranges the oldest are closed"
            )


def quarantine_share(stream: StreamStatus) -> float:
    """The share of a stream's samples that the last runs put into quarantine; 0 where they settled none."""
    settled = stream.recent_samples + stream.recent_quarantined
    return stream.recent_quarantined / settled if settled else 0.0
