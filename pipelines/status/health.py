"""What a survey means: alive, ready, alarms. No IO.

Alive: the processes beat. Ready: they get on. That a pipeline stands still while all its processes live is the failure that
nobody sees, so waiting work that no run takes is not ready.
"""

from dataclasses import dataclass

from pipelines.status.survey import Survey

BEAT_MS = 30_000
FAR_BEAT_MS = 90_000
STUCK_US = 120_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the core is alive and ready; `alarms` are the reasons, one sentence each."""

    is_alive: bool
    is_ready: bool
    alarms: tuple[str, ...]


def judge(found: Survey) -> Verdict:
    """Judge a survey."""
    now_ms = found.at_us // 1_000
    silent = [f"{beat.role} {beat.name} is silent for {(now_ms - beat.at_ms) // 1000} s" for beat in found.beats
              if now_ms - beat.at_ms > BEAT_MS]  # fmt: skip
    # Whoever is asked whether this machine lives must not be told of another one's death.
    far = [f"{beat.role} {beat.name} on {beat.host} is silent for {(now_ms - beat.at_ms) // 1000} s" for beat in found.far_beats
           if now_ms - beat.at_ms > FAR_BEAT_MS]  # fmt: skip
    roles = {beat.role for beat in found.beats}
    # Of a remote lake each role may be on a machine of its own, and is asked there.
    wanted = () if found.is_remote else ("bridge", "run")
    silent += [f"no {role} has ever been at work here" for role in wanted if role not in roles]
    beating = [beat for beat in found.beats if now_ms - beat.at_ms <= BEAT_MS]
    beating += [beat for beat in found.far_beats if now_ms - beat.at_ms <= FAR_BEAT_MS]
    troubles = [f"{beat.role} {beat.name}: {beat.trouble or 'not ready'}" for beat in beating if not beat.is_ready]
    books = [f"the books of {key} do not balance" for key in found.unbalanced]
    books += [
        f"stream {stream.stream} has {stream.rows} rows, its books say {stream.counts.committed}"
        for stream in found.streams
        if stream.rows is not None and stream.rows > stream.counts.committed
    ]
    oldest = found.oldest_waiting_us
    stuck: list[str] = []
    if oldest is not None and found.at_us - oldest > STUCK_US:
        stuck = [f"a sealed segment waits for {(found.at_us - oldest) // 1_000_000} s and no run takes it"]
    alarms = (*books, *silent, *far, *troubles, *stuck)
    return Verdict(not silent, not alarms, alarms)
