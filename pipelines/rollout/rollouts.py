"""Rollouts: which version which devices should run, as documents in `<lake>/models/rollouts/`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.rollout.cohorts import Cohort, parse_cohort
from schemas.reported import ModelReport
from schemas.rollout import MODEL_NAME, Desired

State = Literal["running", "halted"]
FAILED_STATES = frozenset({"refused", "rolled_back"})


class Rollout(msgspec.Struct, frozen=True):
    """One rollout. `halt_ratio`: of the devices that have answered, the share of failures above which it stops by itself.

    Attributes:
        min_answers: failures below this many answers do not stop it: one broken device is no verdict.
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

    def __post_init__(self) -> None:
        if not MODEL_NAME.fullmatch(self.name):
            raise RefusedError(f"rollout {self.name[:80]!r} must be of a-z, 0-9, '_' and '-', starting with a letter")
        if not 0 < self.halt_ratio <= 1 or self.min_answers < 1:
            raise RefusedError(f"rollout {self.name}: halt_ratio must be within 0..1 and min_answers at least 1")

    @property
    def devices(self) -> Cohort:
        """Whom it covers."""
        return parse_cohort(self.cohort)

    @property
    def desired(self) -> Desired:
        """What its devices are told."""
        return Desired(self.name, self.model, self.version, self.target, self.issued_ms)


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """How far a rollout is among the devices that have reported: running it, failed on it, still to answer."""

    active: tuple[str, ...]
    failed: tuple[str, ...]
    waiting: tuple[str, ...]

    @property
    def answers(self) -> int:
        """Devices that have said how it went."""
        return len(self.active) + len(self.failed)

    def should_halt(self, rollout: Rollout) -> bool:
        """Whether too many devices failed."""
        return self.answers >= rollout.min_answers and len(self.failed) > rollout.halt_ratio * self.answers


def progress(rollout: Rollout, reports: Mapping[str, Iterable[ModelReport]]) -> RolloutProgress:
    """How far a rollout is, from what devices last reported of their models."""
    active: list[str] = []
    failed: list[str] = []
    waiting: list[str] = []
    for device in rollout.devices.among(rollout.name, reports):
        ours = next((report for report in reports[device] if report.name == rollout.model), None)
        if ours is not None and ours.version == rollout.version and ours.state not in FAILED_STATES:
            active.append(device)
        elif ours is not None and (rollout.version in ours.refused or ours.state == "refused"):
            failed.append(device)
        else:
            waiting.append(device)
    return RolloutProgress(tuple(active), tuple(failed), tuple(waiting))


def wanted_by(device: str, rollouts: Iterable[Rollout]) -> Rollout | None:
    """The rollout that decides for a device: of the running ones that cover it, the one issued last."""
    covering = [item for item in rollouts if item.state == "running" and item.devices.covers(item.name, device)]
    return max(covering, key=lambda item: item.issued_ms, default=None)


class RolloutStore:
    """The documents of one folder (`<lake>/models/rollouts`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, rollout: Rollout) -> None:
        """Write a rollout's document, replacing an earlier one of its name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._folder / f"{rollout.name}.json", msgspec.json.format(msgspec.json.encode(rollout)), mode=0o644)

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
