"""A device without a battery clock starts in 1970, or where it was switched off: how far off it was, once the clock is set."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from catchment.runtime.clock import Clock
from edge_agent.clock_quality import EARLIEST_MS, kernel_says_synchronised
from edge_agent.spool.records import CLOCK_JUMP_US, MAX_BOOT_CHARS, ClockReference, free_boot
from edge_agent.spool.spool import Spool

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAX_OFFSETS = 32

log = structlog.get_logger(__name__)


class BootClock:
    """Watches whether the wall clock is set, against the time since boot. Called from any thread; keeps a few numbers.

    A clock may jump while it is not set (a real-time clock with a dead battery is read late, a reset takes it back), so each
    offset at which it was seen unset is kept: an event time rests on the one by which it lies in this boot.

    A clock that stands at a possible time may be wrong all the same: many devices without a battery go on from the time at which
    they were switched off. Until the kernel first says in this boot that the clock is disciplined, its times are taken under a
    name of their own (`free_boot`), and are corrected only if the clock then turns out to have jumped.

    Args:
        clock: the wall clock.
        boot: the kernel's id of this boot.
        since_boot_s: seconds since boot, suspended time included.
        is_disciplined: whether the kernel holds the wall clock to be synchronised.
    """

    def __init__(
        self, clock: Clock, boot: str, since_boot_s: Callable[[], float], is_disciplined: Callable[[], bool] = lambda: True
    ) -> None:
        self.boot = boot
        self.free_boot = free_boot(boot)
        self._is_disciplined = is_disciplined
        self._free_offsets_us: tuple[int, ...] = ()
        self._disciplined_offset_us: int | None = None
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

    @property
    def disciplined_offset_us(self) -> int | None:
        """Wall clock minus time since boot as first seen disciplined; None before that."""
        return self._disciplined_offset_us

    @property
    def ran_free(self) -> bool:
        """Whether the clock was seen at a possible time and not disciplined since this process began."""
        return bool(self._free_offsets_us)

    @property
    def jump_us(self) -> int:
        """By how much the clock was set right when it became disciplined; 0 where nothing is known."""
        if self._disciplined_offset_us is None or not self._free_offsets_us:
            return 0
        return self._disciplined_offset_us - self._free_offsets_us[-1]

    def trust(self, offset_us: int) -> None:
        """Take it that the clock was disciplined in this boot before, at this offset."""
        self._disciplined_offset_us, self._free_offsets_us = offset_us, ()

    def observe(self) -> bool:
        """Look at both clocks; returns whether the wall clock is set."""
        now_ms = self._clock.now_ms()
        offset_us = now_ms * 1000 - round(self._since_boot_s() * 1e6)
        if now_ms < EARLIEST_MS:
            self._unset_offsets_us = _with_offset(self._unset_offsets_us, offset_us)
            return False
        if self._set_offset_us is None:
            self._set_offset_us = offset_us
        if self._disciplined_offset_us is None and self._is_disciplined():
            self._disciplined_offset_us = offset_us
        elif self._disciplined_offset_us is None:
            self._free_offsets_us = _with_offset(self._free_offsets_us, offset_us)
        return True

    def references(self, event_times_us: Sequence[int]) -> list[ClockReference | None]:
        """The basis of each event time that was read from this clock; None of one that was read from a disciplined clock.

        It is the newest offset by which the time lies in this boot.
        """
        self.observe()
        up_us = round(self._since_boot_s() * 1e6)
        # Read in the instant before the first look: the clock has counted from zero since boot, as far as anybody knows.
        unset = [ClockReference(self.boot, offset_us) for offset_us in reversed(self._unset_offsets_us or (0,))]
        free: list[ClockReference | None] = [ClockReference(self.free_boot, each) for each in reversed(self._free_offsets_us)]
        disciplined_us = self._disciplined_offset_us
        offsets_us = [one.offset_us for one in free if one is not None]
        if free and disciplined_us is not None:
            free, offsets_us = [None, *free], [disciplined_us, *offsets_us]

        def is_in_boot(time_us: int, offset_us: int) -> bool:
            return -CLOCK_JUMP_US <= time_us - offset_us <= up_us + CLOCK_JUMP_US

        def of(time_us: int) -> ClockReference | None:
            if time_us < EARLIEST_MS * 1000:
                return next((each for each in unset if is_in_boot(time_us, each.offset_us)), unset[0])
            return next((each for each, at_us in zip(free, offsets_us, strict=True) if is_in_boot(time_us, at_us)), first)

        first = free[0] if free else None
        low_us, high_us = min(event_times_us), max(event_times_us)
        if low_us >= EARLIEST_MS * 1000 and (not free or all(is_in_boot(each, offsets_us[0]) for each in (low_us, high_us))):
            return [first] * len(event_times_us)
        return [of(time_us) for time_us in event_times_us]


def _with_offset(known: tuple[int, ...], offset_us: int) -> tuple[int, ...]:
    """The offsets, one that has only drifted replaced."""
    drifted = known[:-1] if known and abs(offset_us - known[-1]) <= CLOCK_JUMP_US else known
    return (*drifted, offset_us)[-_MAX_OFFSETS:]


def system_boot_clock(clock: Clock) -> BootClock:
    """The watch of this machine's own clocks; without a boot id (no Linux) each start counts as a boot of its own."""
    try:
        boot = _BOOT_ID.read_text(encoding="ascii").strip()[:MAX_BOOT_CHARS]
    except (OSError, UnicodeDecodeError) as error:
        boot = f"start-{time.time_ns()}"
        log.warning("boot_id_unavailable", path=str(_BOOT_ID), error=str(error), boot=boot)
    return BootClock(clock, boot, _since_boot_s, kernel_says_synchronised)


def _since_boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class ClockHold:
    """Holds back the samples of an unset clock until it is set, so that they leave with what corrects their times.

    Args:
        boot_clock: the watch.
        spool: what is held.
        wait_s: how long to hold; samples that leave earlier than the clock is set are quarantined by the core.
        clock: monotonic time.
        free_wait_s: how long to hold samples of a clock that stands at a possible time and was not disciplined yet.
    """

    def __init__(self, boot_clock: BootClock, spool: Spool, wait_s: float, clock: Clock, free_wait_s: float = 0.0) -> None:
        self._boot_clock = boot_clock
        self._spool = spool
        self._wait_s = wait_s
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._free_wait_s = free_wait_s
        self._is_noted = False
        self._is_holding = not boot_clock.observe()
        self._is_free_noted = self._is_free_held = False
        known_us = spool.boot_offset_us(boot_clock.free_boot)
        if known_us is not None:
            boot_clock.trust(known_us)
        # An agent that was restarted after the clock was set: its predecessor's samples are of this boot, too.
        self._has_older = spool.has_boot(boot_clock.boot)
        if self._is_holding:
            spool.hold_boot(boot_clock.boot)
            log.warning("clock_not_set", boot=boot_clock.boot, samples_wait_s=wait_s)
        else:
            self._step_free()

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
        if not self._is_holding:
            self._step_free()

    def _step_free(self) -> None:
        """Note how far a clock that ran free was off, once it is disciplined; hold what it gave until then, if wanted."""
        true_us = self._boot_clock.disciplined_offset_us
        if true_us is not None and not self._is_free_noted:
            self._is_free_noted = True
            if self._boot_clock.ran_free or self._spool.holds_boot(self._boot_clock.free_boot):
                self._spool.note_boot_clock(self._boot_clock.free_boot, true_us)
                log.info("clock_disciplined", boot=self._boot_clock.boot, jumped_us=self._boot_clock.jump_us)
        is_early = self._clock.monotonic_s() - self._began_s < self._free_wait_s
        if self._is_free_held != (true_us is None and is_early):
            self._is_free_held = not self._is_free_held
            self._spool.hold_boot(self._boot_clock.free_boot if self._is_free_held else "")
            log.info("clock_free", boot=self._boot_clock.boot, samples_wait=self._is_free_held)
