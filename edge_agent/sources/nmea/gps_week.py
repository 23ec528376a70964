"""GPS week rollover: receivers count weeks modulo 1024, and old firmware tells a time 1024 weeks in the past. Pure.

Source: IS-GPS-200, 20.3.3.3.1.1 (ten-bit week number); a receiver's firmware fixes which span of 1024 weeks it means.
"""

from edge_agent.clock_quality import EARLIEST_MS

ROLLOVER_US = 1_024 * 7 * 86_400 * 1_000_000
# A live receiver tells the present: further from a whole number of rollovers, it is another kind of wrong.
_TOLERANCE_US = 86_400 * 1_000_000


def rollovers(told_us: int, now_us: int) -> int:
    """How many rollovers a live receiver's time is behind.

    Args:
        told_us: what it tells, microseconds since 1970.
        now_us: this machine's wall clock, which need not be set.

    Returns:
        0 where its time can be true, or is wrong in another way.
    """
    if now_us < EARLIEST_MS * 1000:
        # Neither clock is right: the first time after this software existed is the least that can be true.
        behind_us = EARLIEST_MS * 1000 - told_us
        return max(0, -(-behind_us // ROLLOVER_US))
    count = round((now_us - told_us) / ROLLOVER_US)
    is_near = abs(now_us - told_us - count * ROLLOVER_US) <= _TOLERANCE_US
    return count if count > 0 and is_near else 0
