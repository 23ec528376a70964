"""The wall clock: event times rest on it, and so does whether certificates hold."""

import datetime as dt

from catchment.runtime.clock import Clock
from edge_agent.clock_quality import kernel_says_synchronised
from edge_agent.commands.doctor.findings import Finding, failed, good, warning

WHAT = "clock"
# This was written then; a clock before it was never set.
_WRITTEN_MS = int(dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp() * 1000)
_SET_IT = "start a time service (systemd-timesyncd, chrony), and see that the network lets NTP through"


def examine_clock(clock: Clock) -> Finding:
    """Look at the wall clock."""
    now_ms = clock.now_ms()
    told = dt.datetime.fromtimestamp(now_ms / 1000, tz=dt.UTC).isoformat(timespec="seconds")
    if now_ms < _WRITTEN_MS:
        return failed(WHAT, f"{told}: the clock was never set, and certificates seem not valid yet", _SET_IT)
    if not kernel_says_synchronised():
        return warning(WHAT, f"{told}, running free: nothing keeps it right", _SET_IT)
    return good(WHAT, f"{told}, kept right by a time service")
