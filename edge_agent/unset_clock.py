"""A device without a battery clock starts in 1970: watches whether the clock is set, and by how much it was off before."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from catchment.runtime.clock import Clock
from edge_agent.clock_quality import EARLIEST_MS
from edge_agent.spool.records import ClockReference
from edge_agent.spool.spool import Spool

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAX_BOOT_CHARS = 64
# Less than this is the drift of one clock, not a jump.
_JUMP_US = 1_000_000
_MAX_OFFSETS = 32

log = structlog.get_logger(__name__)


class BootClock:
    """Watches whether the wall clock is set, against the time since boot. Called from any thread; keeps a few numbers.

    A clock may jump while it is not set (a real-time clock with a dead battery is read late, a reset takes it back), so each
    offset at which it was seen unset is kept: an event time rests on the one by which it lies in this boot.

    Args:
        clock: the wall clock.
        boot: the kernel's id of this boot.
        since_boot_s: seconds since boot, suspended time included.
    """

    def __init__(self, clock: Clock, boot: str, since_boot_s: Callable[[], float]) -> None:
        self.boot = boot
        self._clock = clock
        self._since_boot_s = since_boot_s
        self._unset_offsets_us: tuple[int, ...] = ()  # replaced, never changed: another thread may be reading it
        self._set_offset_us: int | None = None
        self.observe()

    @property
    def was_unset(self) -> bool:
        """Whether the wall clock was seen unset since this process began."""
        return bool(self._unset_offsets_us)

    @property
    def set_offset_us(self) -> int | None:
        """Wall clock minus time since boot as first seen with the clock set; None while it is not."""
        return self._set_offset_us

    def observe(self) -> bool:
        """Look at both clocks; returns whether the wall clock is set."""
        now_ms = self._clock.now_ms()
        offset_us = now_ms * 1000 - round(self._since_boot_s() * 1e6)
        if now_ms < EARLIEST_MS:
            known = self._unset_offsets_us
            drifted = known[:-1] if known and abs(offset_us - known[-1]) <= _JUMP_US else known
            self._unset_offsets_us = (*drifted, offset_us)[-_MAX_OFFSETS:]
            return False
        if self._set_offset_us is None:
            self._set_offset_us = offset_us
        return True

    def references(self, event_times_us: Sequence[int]) -> list[ClockReference]:
        """The basis of each event time that was read from the unset clock: the newest offset by which it lies in this boot."""
        self.observe()
        up_us = round(self._since_boot_s() * 1e6)
        # Read in the instant before the first look: the clock has counted from zero since boot, as far as anybody knows.
        offsets_us = self._unset_offsets_us or (0,)
        newest_first = [ClockReference(self.boot, offset_us) for offset_us in reversed(offsets_us)]

        def of(time_us: int) -> ClockReference:
            in_boot = (each for each in newest_first if -_JUMP_US <= time_us - each.offset_us <= up_us + _JUMP_US)
            return next(in_boot, newest_first[0])

        return [of(time_us) for time_us in event_times_us]


def system_boot_clock(clock: Clock) -> BootClock:
    """The watch of this machine's own clocks; without a boot id (no Linux) each start counts as a boot of its own."""
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()[:_MAX_BOOT_CHARS]
    except (OSError, UnicodeDecodeError) as error:
        boot = f"start-{time.time_ns()}"
        log.warning("boot_id_unavailable", path=str(_BOOT_ID), error=str(error), boot=boot)
    return BootClock(clock, boot, _since_boot_s)


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class ClockHold:
    """Holds back the samples of an unset clock until it is set, so that they leave with what corrects their times.

    Args:
        boot_clock: the watch.
        spool: what is held.
        wait_s: how long to hold; samples that leave earlier than the clock is set are quarantined by the core.
        clock: monotonic time.
    """

    def __init__(self, boot_clock: BootClock, spool: Spool, wait_s: float, clock: Clock) -> None:
        self._boot_clock = boot_clock
        self._spool = spool
        self._wait_s = wait_s
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._is_noted = False
        self._is_holding = not boot_clock.observe()
        # An agent that was restarted after the clock was set: its predecessor's samples are of this boot, too.
        self._has_older = spool.has_boot(boot_clock.boot)
        if self._is_holding:
            spool.hold_boot(boot_clock.boot)
            log.warning("clock_not_set", boot=boot_clock.boot, samples_wait_s=wait_s)

    @property
    def is_holding(self) -> bool:
        """Whether samples wait for the clock to be set."""
        return self._is_holding

    def step(self) -> None:
        """Look at the clock once; note its offset when it is first seen set.

        Raises:
            SpoolError: the spool is broken.
        """
        is_set = self._boot_clock.observe()
        offset_us = self._boot_clock.set_offset_us
        if offset_us is not None and not self._is_noted and (self._boot_clock.was_unset or self._has_older):
            self._spool.note_boot_clock(self._boot_clock.boot, offset_us)
            self._is_noted = True
            log.info("clock_set", boot=self._boot_clock.boot, offset_us=offset_us)
        if self._is_holding and (is_set or self._clock.monotonic_s() - self._began_s > self._wait_s):
            self._is_holding = False
            self._spool.hold_boot("")
            if not is_set:
                log.warning("clock_still_not_set", boot=self._boot_clock.boot, waited_s=self._wait_s)
