"""When the signatures of the model repository end, and when somebody should sign again. Pure.

Stands alone because the command and the model server judge alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class RoleExpiry:
    """One role's signature: until when it holds, and for how long such a signature holds in all."""

    role: str
    expires: datetime
    lifetime: timedelta

    def left(self, now: datetime) -> timedelta:
        """How long it still holds."""
        return self.expires - now

    def state(self, now: datetime) -> str:
        """`ok`, `due` when a third of its life or less is left, `over`."""
        if self.left(now) <= timedelta(0):
            return "over"
        return "due" if self.left(now) <= self.lifetime / 3 else "ok"

    @property
    def remedy(self) -> str:
        """The command that signs it again."""
        if self.role == "root":
            return "catchment model root draft, sign, install"
        return "the model server signs it" if self.role in {"timestamp", "snapshot"} else "catchment model sign"


def expiry_warnings(found: Iterable[RoleExpiry], now: datetime) -> tuple[str, ...]:
    """A sentence for each role whose signature is due or over."""
    return tuple(
        f"the {each.role} signature of the model repository {'ended' if each.state(now) == 'over' else 'ends'} on "
        f"{each.expires:%Y-%m-%d}; then devices take no model; sign again: {each.remedy}"
        for each in found
        if each.state(now) != "ok"
    )
