"""Which devices a rollout covers: everyone, a share, or some by name. No state: any process computes the same."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipelines.errors import RefusedError

BUCKETS = 10_000
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,2})?)%")
_NAME = re.compile(r"[a-z0-9*?][a-z0-9*?-]{0,62}")


def bucket(rollout: str, device: str) -> int:
    """A device's place in 0..9999, another in each rollout, so that the same devices are not always first."""
    digest = hashlib.sha256(f"{rollout}/{device}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


@dataclass(frozen=True, slots=True)
class Cohort:
    """Devices below `share` of the buckets (0..10000), and devices whose name is one of `names` (`*` and `?` allowed)."""

    share: int = 0
    names: tuple[str, ...] = ()

    def covers(self, rollout: str, device: str) -> bool:
        """Whether the device belongs to it. A larger share covers all that a smaller one did."""
        return bucket(rollout, device) < self.share or any(fnmatchcase(device, name) for name in self.names)

    def among(self, rollout: str, devices: Iterable[str]) -> list[str]:
        """Those devices that belong to it, sorted."""
        return sorted(device for device in devices if self.covers(rollout, device))

    @property
    def named_devices(self) -> tuple[str, ...]:
        """Devices named in full: they can be told before they ever reported."""
        return tuple(name for name in self.names if "*" not in name and "?" not in name)

    def __str__(self) -> str:
        if self.share >= BUCKETS:
            return "all"
        share = (f"{self.share / 100:g}%",) if self.share else ()
        return ",".join((*share, *self.names)) or "none"


def parse_cohort(text: str) -> Cohort:
    """Read `all`, `10%`, `press-1,press-2`, `line-*`, or several with commas.

    Raises:
        RefusedError: a part is none of these.
    """
    share, names = 0, []
    for part in (part.strip() for part in text.split(",")):
        found = _SHARE.fullmatch(part)
        if part == "all":
            share = BUCKETS
        elif found and float(found[1]) <= 100:
            share = max(share, round(float(found[1]) * 100))
        elif _NAME.fullmatch(part):
            names.append(part)
        else:
            raise RefusedError(f"cohort {part[:80]!r} is not one of: all, 10%, a device's name, a pattern like line-*")
    return Cohort(share, tuple(names))
