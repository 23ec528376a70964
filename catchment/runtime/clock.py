"""Time, injected: wall clock for data, monotonic clock for order and time-outs, and the wait before the next try.

Waits double up to a cap, with jitter where many clients would return at once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """The interface of a clock, passed to all code that needs the time."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since 1970. May jump; use it only as data."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only go forward."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        """Wall clock, milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Seconds that only go forward."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


_MAX_DOUBLINGS = 30


def doubled_s(first_s: float, cap_s: float, failures: int) -> float:
    """The wait after so many failures before this one: doubled each time, at most `cap_s`."""
    return min(cap_s, first_s * float(2 ** min(max(0, failures), _MAX_DOUBLINGS)))


def _whole() -> float:
    return 1.0


@dataclass(slots=True)
class Backoff:
    """Counts failures in a row.

    Args:
        first_s: the longest first wait.
        cap_s: no wait is longer.
        draw: a random number in [0, 1), for jitter; without it each wait is as long as it may be.
    """

    first_s: float
    cap_s: float
    draw: Callable[[], float] = _whole
    failures: int = 0

    def next_s(self) -> float:
        """The wait after one more failure: between half and all of the doubled one."""
        longest = doubled_s(self.first_s, self.cap_s, self.failures)
        self.failures += 1
        return longest * (0.5 + 0.5 * self.draw())

    def succeeded(self) -> None:
        """Start again from the first wait."""
        self.failures = 0
