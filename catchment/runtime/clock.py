"""Time, injected: wall clock for data, monotonic clock for order and time-outs."""

import time
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
