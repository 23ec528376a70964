"""Keep suspensions in the lake: of policies over their budget, and of inspectors that were killed too often.

    policies/suspended/<id>@<version>.json            a policy
    policies/suspended/inspector-<digest>.json        an inspect step

The files are the truth for every process of every run: one that appears counts from the next table on, one that is removed
lifts it. Which file stands for what is told in it, so that nobody needs to know a hash.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from catchment.runtime.atomic_files import sync_folder, write_atomic
from catchment.runtime.clock import Clock, SystemClock
from pipelines.inspect.columns import step_digest
from pipelines.lake.lake import Lake
from schemas.policy import InspectStep, Policy

FOLDER = "policies/suspended"
HINT = "`catchment policy apply` of a new version lifts it, as does withdrawing it; then retag"


class Suspension(msgspec.Struct, frozen=True):
    """One thing that may not run.

    Attributes:
        kind: "policy" or "inspector".
        name: `<id>@<version>`, or the inspector's name.
        reason: what it did.
        at_us: when, microseconds since 1970.
        stream: where it happened; empty where that is not known.
    """

    kind: str
    name: str
    reason: str
    at_us: int
    stream: str = ""


@dataclass(frozen=True, slots=True)
class SuspensionBook:
    """The files of one lake.

    Args:
        root: the lake root.
        clock: for the time of a new entry.
    """

    lake: Lake
    clock: Clock = field(default_factory=SystemClock)

    def policy(self, label: str) -> Suspension | None:
        """Return the reason why a policy is suspended; None if it is not."""
        return _read(_path(self.lake, label))

    def inspector(self, step: InspectStep) -> Suspension | None:
        """Return the reason why an inspect step is suspended; None if it is not."""
        return _read(_path(self.lake, _step_name(step)))

    def suspend_policy(self, label: str, stream: str, reason: str) -> None:
        """Keep a policy from giving tags. An entry that is there already stays."""
        self._write(label, Suspension("policy", label, reason, self.clock.now_ms() * 1_000, stream))

    def suspend_inspector(self, step: InspectStep, reason: str) -> None:
        """Keep an inspect step from being asked. An entry that is there already stays."""
        self._write(_step_name(step), Suspension("inspector", step.use, reason, self.clock.now_ms() * 1_000))

    def lift(self, policies: Iterable[Policy]) -> tuple[str, ...]:
        """Remove the entries of these policies, whichever version, and of their inspect steps; the names of what was lifted."""
        lifted: list[str] = []
        for policy in policies:
            own = _folder(self.lake).glob(f"{policy.id}@*.json")
            for path in (*own, *(_path(self.lake, _step_name(step)) for step in policy.inspect)):
                found = _read(path)
                if found is not None:
                    path.unlink(missing_ok=True)
                    lifted.append(f"{found.kind} {found.name}")
        return tuple(lifted)

    def in_force(self, policies: Iterable[Policy]) -> tuple[Suspension, ...]:
        """The entries that concern these policies and their inspect steps."""
        names = [name for policy in policies for name in (policy.label, *map(_step_name, policy.inspect))]
        found = (_read(_path(self.lake, name)) for name in dict.fromkeys(names))
        return tuple(each for each in found if each is not None)

    def _write(self, name: str, entry: Suspension) -> None:
        path = _path(self.lake, name)
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
        write_atomic(path, msgspec.json.encode(entry), mode=0o644)


def _read(path: Path) -> Suspension | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Suspension)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        # What cannot be read is taken for what it most likely says; a run must not stop for it.
        return Suspension("entry", path.stem, f"{path} cannot be read ({error}); remove it to lift what it suspends", 0)


def _step_name(step: InspectStep) -> str:
    return f"inspector-{step_digest(step)}"


def _folder(lake: Lake) -> Path:
    return lake.root / FOLDER


def _path(lake: Lake, name: str) -> Path:
    return _folder(lake) / f"{name}.json"
