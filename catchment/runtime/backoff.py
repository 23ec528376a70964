"""Compute the wait before the next try: doubling, capped, with jitter where many clients would return at once. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

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
