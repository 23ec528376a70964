"""How long to wait before the next try: doubling, capped, with full jitter so that a thousand devices do not return at once."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """Counts failures in a row.

    Args:
        first_s: the longest first wait.
        cap_s: no wait is longer.
        draw: a random number in [0, 1).
    """

    first_s: float
    cap_s: float
    draw: Callable[[], float]
    failures: int = 0

    def next_s(self) -> float:
        """The wait after one more failure: between half and all of the doubled one."""
        longest = min(self.cap_s, self.first_s * float(2 ** min(self.failures, 30)))
        self.failures += 1
        return longest * (0.5 + 0.5 * self.draw())

    def succeeded(self) -> None:
        """Start again from the first wait."""
        self.failures = 0
