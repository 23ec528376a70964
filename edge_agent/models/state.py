"""What a device remembers of its model across restarts."""

import msgspec

from schemas.model import ModelSpec


class Installed(msgspec.Struct, frozen=True):
    """One version on disk: the SHA-256 of its bytes, and what the keys said it is."""

    version: int
    digest: str
    spec: ModelSpec


class StoreState(msgspec.Struct, frozen=True):
    """Which version is active, which is there to go back to, and which must not be tried again.

    `starts` counts starts of the agent since the active version was put on probation.
    """

    active: Installed | None = None
    previous: Installed | None = None
    refused: tuple[int, ...] = ()
    on_probation: bool = False
    starts: int = 0
    rolled_back: bool = False
    reason: str = ""
