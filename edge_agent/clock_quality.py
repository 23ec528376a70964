"""Judge how far an event time may be trusted, by the clock it was read from and whether that clock was right."""

import ctypes
import os
from collections.abc import Callable
from enum import StrEnum

from catchment.runtime.clock import Clock

COLUMN = "clock_quality"
# No device ran this software before then, so a clock that stands earlier was never set.
EARLIEST_MS = 1_577_836_800_000  # 2020-01-01
_STEP_MS = 1_000
_STEPPED_FOR_S = 600.0
_TIME_ERROR = 5
_TIMEX_BYTES = 512  # struct timex is 208 bytes on 64 bits: larger does no harm


class ClockQuality(StrEnum):
    """The basis of a sample's event time. The words are the contracts' own."""

    GNSS = "gnss"  # satellites
    SYNCHRONISED = "synchronised"  # this machine's clock, disciplined by NTP or PTP
    UNSYNCHRONISED = "unsynchronised"  # this machine's clock, running free
    STEPPED = "stepped"  # this machine's clock, which jumped a short while ago
    NONE = "none"  # this machine's clock, which was not set; corrected once it is
    CORRECTED = "corrected"  # of an unset or wrapped clock, and put right afterwards
    DEVICE = "device"  # the observed device's own clock; nothing is known of it


class ClockWatch:
    """Judges this machine's wall clock: the kernel says whether it is disciplined, the monotonic clock whether it jumped.

    Args:
        clock: both clocks.
        is_disciplined: whether the kernel holds the wall clock to be synchronised.
    """

    def __init__(self, clock: Clock, is_disciplined: Callable[[], bool] | None = None) -> None:
        self._clock = clock
        self._is_disciplined = is_disciplined or kernel_says_synchronised
        self._offset_ms = self._offset()
        self._stepped_s = float("-inf")

    def judge(self) -> ClockQuality:
        """The quality of an event time read now."""
        offset_ms, now_s = self._offset(), self._clock.monotonic_s()
        if abs(offset_ms - self._offset_ms) > _STEP_MS:
            self._stepped_s = now_s
        self._offset_ms = offset_ms
        if self._clock.now_ms() < EARLIEST_MS:
            return ClockQuality.NONE
        if now_s - self._stepped_s < _STEPPED_FOR_S:
            return ClockQuality.STEPPED
        return ClockQuality.SYNCHRONISED if self._is_disciplined() else ClockQuality.UNSYNCHRONISED

    def _offset(self) -> float:
        return self._clock.now_ms() - self._clock.monotonic_s() * 1000


def kernel_says_synchronised() -> bool:
    """Return the answer of adjtimex(2); False where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "adjtimex") or os.name != "posix":
        return False
    state: int = libc.adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return 0 <= state < _TIME_ERROR
