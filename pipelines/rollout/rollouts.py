"""Rollouts: which version which devices should run, as documents in `<lake>/models/rollouts/`."""

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.rollout.cohorts import Cohort, parse_cohort
from pipelines.rollout.gates import WaveRules
from pipelines.rollout.waves import EVERYONE, check_waves, limit_for, place, wave_counts
from schemas.reported import ModelReport
from schemas.rollout import MODEL_NAME, Desired

State = Literal["running", "halted"]
NOT_RUNNING_STATES = frozenset({"refused", "rolled_back", "blocked"})


class Rollout(msgspec.Struct, frozen=True):
    """One rollout: in waves that sequential tests open one after the other, or to its whole cohort at once.

    Attributes:
        halt_ratio: without waves: of the devices that have answered, the share of failures above which it stops by itself.
        min_answers: without waves: failures below this many answers do not stop it: one broken device is no verdict.
        waves: shares of the cohort's devices, growing to 1; empty: no waves.
        limit: with waves: the devices whose place (`waves.place`) is below it are reached.
        opened_ms: when the wave began.
        soak_s, min_attempts, min_judged, accepted_failures: what a wave must show (`gates.WaveRules`).
        max_latency_ms: an answer that takes longer is too slow; 0: none is.
        is_paused: whether no further wave begins. Devices that were reached keep their orders.
    """

    name: str
    model: str
    version: int
    target: str
    cohort: str
    issued_ms: int
    state: State = "running"
    halt_ratio: float = 0.2
    min_answers: int = 3
    reason: str = ""
    waves: tuple[float, ...] = ()
    limit: int = EVERYONE
    opened_ms: int = 0
    soak_s: float = 600.0
    min_attempts: int = 0
    min_judged: int = 0
    accepted_failures: int = 0
    max_latency_ms: float = 0.0
    is_paused: bool = False

    def __post_init__(self) -> None:
        if not MODEL_NAME.fullmatch(self.name):
            raise RefusedError(f"rollout {self.name[:80]!r} must be of a-z, 0-9, '_' and '-', starting with a letter")
        if not 0 < self.halt_ratio <= 1 or self.min_answers < 1:
            raise RefusedError(f"rollout {self.name}: halt_ratio must be within 0..1 and min_answers at least 1")
        if self.waves:
            check_waves(self.waves)

    @property
    def devices(self) -> Cohort:
        """Whom it is for; with waves, whom it is to reach in the end."""
        return parse_cohort(self.cohort)

    @property
    def rules(self) -> WaveRules:
        """What a wave must show before the next one."""
        return WaveRules(self.soak_s, self.min_attempts, self.min_judged, self.accepted_failures)

    def covers(self, device: str) -> bool:
        """Whether the rollout has reached the device."""
        return (self.limit >= EVERYONE or place(self.name, device) < self.limit) and self.devices.covers(self.name, device)

    def among(self, devices: Iterable[str]) -> list[str]:
        """Those of the devices that it has reached, sorted."""
        cohort = self.devices
        reached = (each for each in devices if self.limit >= EVERYONE or place(self.name, each) < self.limit)
        return cohort.among(self.name, reached)

    def named(self) -> list[str]:
        """Devices that it has reached and that its cohort names in full: they can be ordered before they ever reported."""
        return self.among(self.devices.named_devices)

    def eligible(self, known: Iterable[str]) -> list[str]:
        """The devices that it is to reach in the end: those known, and those named in full."""
        return sorted({*self.devices.among(self.name, known), *self.devices.named_devices})

    def opened(self, known: Iterable[str], now_ms: int) -> "Rollout":
        """With its next wave: the first one that reaches more devices than it has; itself where it has reached everyone.

        As long as nobody knows a device that it is for, it reaches nobody, and no wave begins.
        """
        devices = self.eligible(known)
        if not devices:
            return msgspec.structs.replace(self, limit=0)
        reached = 0 if not self.opened_ms else len(self.among(devices))
        count = next((each for each in wave_counts(self.waves, len(devices)) if each > reached), None)
        if count is None:
            return self if self.limit >= EVERYONE else msgspec.structs.replace(self, limit=EVERYONE, opened_ms=now_ms)
        return msgspec.structs.replace(self, limit=limit_for(self.name, devices, count), opened_ms=now_ms)

    @property
    def desired(self) -> Desired:
        """What its devices are told."""
        return Desired(self.name, self.model, self.version, self.target, self.issued_ms)


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """How far a rollout is among the devices that have reported.

    Attributes:
        active: run it, and it has proved itself there.
        failed: gave it up for good.
        waiting: have not answered.
        on_probation: run it, and it has yet to prove itself.
        blocked: cannot install it for a reason that says nothing of it: network, disk, clock, expired or forged metadata.
    """

    active: tuple[str, ...]
    failed: tuple[str, ...]
    waiting: tuple[str, ...]
    on_probation: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()

    @property
    def answers(self) -> int:
        """Devices that have said how it went."""
        return len(self.active) + len(self.failed)

    def should_halt(self, rollout: Rollout) -> bool:
        """Whether too many devices failed, of a rollout without waves."""
        return not rollout.waves and self.answers >= rollout.min_answers and len(self.failed) > rollout.halt_ratio * self.answers


def progress(rollout: Rollout, reports: Mapping[str, Iterable[ModelReport]]) -> RolloutProgress:
    """How far a rollout is, from what devices last reported of their models."""
    found: dict[str, list[str]] = {name: [] for name in ("active", "failed", "waiting", "on_probation", "blocked")}
    for device in rollout.among(reports):
        ours = next((report for report in reports[device] if report.name == rollout.model), None)
        found["waiting" if ours is None else _state_of(rollout, ours)].append(device)
    return RolloutProgress(**{name: tuple(devices) for name, devices in found.items()})


def _state_of(rollout: Rollout, report: ModelReport) -> str:
    if report.version == rollout.version and report.state not in NOT_RUNNING_STATES:
        return "on_probation" if report.on_probation is True else "active"
    if rollout.version in report.refused:
        return "failed"
    # "refused" without the version among those refused for good: what vouches for it is in doubt, not the model.
    return "blocked" if report.state in {"blocked", "refused"} else "waiting"


def way_back(bad: Rollout, targets: Mapping[int, str], to: int | None, now_ms: int) -> Rollout:
    """The rollout that orders all devices of `bad` an earlier version, at once.

    Args:
        bad: what is rolled back.
        targets: the target path of every version that is vouched for.
        to: the version to go back to; None: the newest one before.
        now_ms: when it is issued.

    Raises:
        RefusedError: there is no such version, or none before.
    """
    earlier = max((version for version in targets if version < bad.version), default=0)
    version = earlier if to is None else to
    if version not in targets or version == bad.version:
        known = ", ".join(str(each) for each in sorted(targets) if each != bad.version) or "none"
        raise RefusedError(f"rollout {bad.name}: there is no version {version or 'before it'} to go back to; published: {known}")
    # Those that were not reached run the version before already, and are ordered it again: a halt may have missed them.
    name = f"{bad.name[:58]}-back"
    return Rollout(name, bad.model, version, targets[version], bad.cohort, now_ms, halt_ratio=1.0)


def wanted_by(device: str, rollouts: Iterable[Rollout]) -> Rollout | None:
    """The rollout that decides for a device: of the running ones that cover it, the one issued last."""
    covering = [item for item in rollouts if item.state == "running" and item.covers(device)]
    return max(covering, key=lambda item: item.issued_ms, default=None)


def runs_halted(device: str, rollouts: Iterable[Rollout], models: Iterable[ModelReport]) -> bool:
    """Whether the newest rollout that covers the device is halted, and the device runs its version well."""
    covering = [item for item in rollouts if item.covers(device)]
    newest = max(covering, key=lambda item: item.issued_ms, default=None)
    if newest is None or newest.state != "halted":
        return False
    return any((report.name, report.version, report.state) == (newest.model, newest.version, "active") for report in models)


def order_for(device: str, rollouts: Iterable[Rollout], models: Iterable[ModelReport]) -> Rollout | None:
    """The rollout whose version a device is ordered to install; None: it installs nothing, and keeps what it runs.

    A device that runs a halted version well is ordered nothing: a halted rollout takes nothing away, it only goes no further.
    """
    known = list(rollouts)
    return None if runs_halted(device, known, models) else wanted_by(device, known)


class RolloutStore:
    """The documents of one folder (`<lake>/models/rollouts`). One process at a time changes them, or reads them for orders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, rollout: Rollout) -> None:
        """Write a rollout's document, replacing an earlier one of its name."""
        with self._locked():
            self._write(rollout)

    def halt(self, name: str, reason: str) -> Rollout:
        """Halt a rollout as it stands now; one that is halted already keeps its reason.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._locked():
            rollout = self.get(name)
            if rollout.state == "running":
                rollout = msgspec.structs.replace(rollout, state="halted", reason=reason)
                self._write(rollout)
            return rollout

    def change(self, name: str, how: Callable[[Rollout], Rollout]) -> Rollout:
        """Replace a rollout by what `how` makes of it as it stands now.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._locked():
            old = self.get(name)
            new = how(old)
            if new != old:
                self._write(new)
            return new

    def read_for_orders(self, take_counter: Callable[[], None]) -> list[Rollout]:
        """Every rollout, for orders that are signed under the counter that is taken first.

        No rollout changes between the two, so of two orders the one with the higher counter knows at least as much: an order
        of a server that has not heard of a halt never outlives that of one that has.
        """
        with self._locked():
            take_counter()
            return self.all()

    def _write(self, rollout: Rollout) -> None:
        write_atomic(self._folder / f"{rollout.name}.json", msgspec.json.format(msgspec.json.encode(rollout)), mode=0o644)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def all(self) -> list[Rollout]:
        """Every rollout, oldest first.

        Raises:
            CorruptLakeError: a document is damaged.
        """
        found = [self._read(path) for path in self._folder.glob("*.json")] if self._folder.is_dir() else []
        return sorted(found, key=lambda item: (item.issued_ms, item.name))

    def get(self, name: str) -> Rollout:
        """One rollout.

        Raises:
            NotFoundError: there is none of that name.
        """
        known = {item.name: item for item in self.all()}
        if name not in known:
            raise NotFoundError(f"no rollout {name[:80]!r}; there are: {', '.join(known) or 'none'}")
        return known[name]

    def _read(self, path: Path) -> Rollout:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Rollout)
        except (OSError, msgspec.MsgspecError, ValueError) as error:
            raise CorruptLakeError(f"{path} is damaged: {error}; restore it or start the rollout again") from error
