"""Limit the rate by a token bucket over the bytes sent, with hours in which other limits hold. Pure; time is an argument.

Whole messages are released here; `keepalive.Pacer` spreads the bytes of each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from edge_agent.config import UplinkConfig
from edge_agent.sections import ScheduleConfig

# What may go out at once after a pause, as seconds of the rate: short, so that ten seconds stay within five per cent.
_BURST_S = 0.25
# Small messages go several at a time: to wake for each of them would cost more than to send it.
_LEAST_WAIT_S = 0.02
_MINUTES_PER_DAY = 24 * 60
NO_LIMIT_BYTES = 2**50


@dataclass(frozen=True, slots=True)
class SendLimits:
    """The limits in force: bytes per second (0: no limit), and the least priority that is sent."""

    bytes_per_s: int
    min_priority: int


@dataclass(slots=True)
class TokenBucket:
    """Bytes that may be sent now. A message may be larger than what is left: it goes, and leaves a debt.

    So a large message is never held permanently, and the average still holds.
    """

    bytes_per_s: int
    _tokens: float = 0.0
    _filled_s: float | None = None

    @property
    def burst_bytes(self) -> float:
        """The largest burst that the bucket allows."""
        return self.bytes_per_s * _BURST_S

    def available_bytes(self, now_s: float) -> int:
        """Return the bytes that may go now; with room for one of them a whole message may go, and leaves a debt."""
        if self.bytes_per_s == 0:
            return NO_LIMIT_BYTES
        self._fill(now_s)
        return max(0, math.ceil(self._tokens))

    def sent(self, size_bytes: int) -> None:
        """A message went, whatever its size."""
        if self.bytes_per_s:
            self._tokens -= size_bytes

    def debt_s(self) -> float:
        """Return the time that the bytes sent take at this rate, beyond the time of the last call."""
        return max(0.0, -self._tokens / self.bytes_per_s) if self.bytes_per_s else 0.0

    def wait_s(self, now_s: float) -> float:
        """Return the time until there is room."""
        if self.available_bytes(now_s) > 0:
            return 0.0
        return max(_LEAST_WAIT_S, (1.0 - self._tokens) / self.bytes_per_s)

    def retune(self, bytes_per_s: int) -> None:
        """Another rate from now on; a debt stays, so that switching to and fro gains nothing."""
        self.bytes_per_s = bytes_per_s
        self._tokens = min(self._tokens, self.burst_bytes)

    def _fill(self, now_s: float) -> None:
        if self._filled_s is not None:
            elapsed_s = max(0.0, now_s - self._filled_s)
            self._tokens = min(self.burst_bytes, self._tokens + elapsed_s * self.bytes_per_s)
        self._filled_s = now_s


@dataclass(slots=True)
class RateLimiter:
    """Keeps to the terms of the hour.

    Args:
        config: rate, least priority, schedule.
    """

    config: UplinkConfig
    limits: SendLimits = field(init=False)
    _bucket: TokenBucket = field(init=False)
    _share_bytes_per_s: int = 0

    def __post_init__(self) -> None:
        self.limits = SendLimits(self.config.bytes_per_s, self.config.min_priority)
        self._bucket = TokenBucket(self.limits.bytes_per_s)

    def retune(self, config: UplinkConfig) -> None:
        """Other values from now on."""
        self.config = config

    def keep_share(self, bytes_per_s: int) -> None:
        """Keep within what the core takes of this device from the next look on; 0: as configured."""
        self._share_bytes_per_s = bytes_per_s

    def look(self, minute_of_day: int) -> bool:
        """Take the hour's terms; returns whether they changed."""
        limits = limits_at(self.config, minute_of_day)
        if self._share_bytes_per_s:
            rate = min(limits.bytes_per_s or self._share_bytes_per_s, self._share_bytes_per_s)
            limits = SendLimits(rate, limits.min_priority)
        if limits == self.limits:
            return False
        self.limits = limits
        self._bucket.retune(limits.bytes_per_s)
        return True

    @property
    def burst_bytes(self) -> int:
        """The largest part of a payload: little, so that envelopes get their turn. No limit without a rate."""
        return int(self._bucket.burst_bytes) or NO_LIMIT_BYTES

    def debt_s(self) -> float:
        """Return the time that the bytes sent take at this rate, beyond the time of the last call."""
        return self._bucket.debt_s()

    def available_bytes(self, now_s: float) -> int:
        """Return the bytes that may go now; with room for one of them a whole message may go, and leaves a debt."""
        return self._bucket.available_bytes(now_s)

    def sent(self, size_bytes: int) -> None:
        """A message of so many bytes went."""
        self._bucket.sent(size_bytes)

    def wait_s(self, now_s: float) -> float:
        """Return the time until there is room."""
        return self._bucket.wait_s(now_s)


def limits_at(config: UplinkConfig, minute_of_day: int) -> SendLimits:
    """The first schedule that holds at this minute, or the uplink's own values."""
    found = _holding(config.schedule, minute_of_day)
    chosen = config if found is None else found
    return SendLimits(chosen.bytes_per_s, chosen.min_priority)


def _holding(schedules: Sequence[ScheduleConfig], minute_of_day: int) -> ScheduleConfig | None:
    for schedule in schedules:
        start, end = _minute(schedule.start), _minute(schedule.end)
        if (minute_of_day - start) % _MINUTES_PER_DAY < (end - start) % _MINUTES_PER_DAY:
            return schedule
    return None


def _minute(text: str) -> int:
    hours, _, minutes = text.partition(":")
    return int(hours) * 60 + int(minutes)
