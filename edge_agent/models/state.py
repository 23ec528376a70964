"""What a device remembers of its model across restarts."""

import msgspec

from schemas.model import ModelSpec

MAX_ATTEMPTS = 2


class Installed(msgspec.Struct, frozen=True):
    """One version on disk: the SHA-256 of its bytes, and what the keys said it is."""

    version: int
    digest: str
    spec: ModelSpec

    @property
    def file_name(self) -> str:
        """Name of the file with its bytes."""
        return version_file(self.version, self.digest)


class Attempt(msgspec.Struct, frozen=True):
    """How often a version was loaded and did not survive it.

    Attributes:
        version: which version.
        digest: of its bytes.
        count: attempts begun, and not ended well.
        is_open: whether the last one is under way. Found at a start, the agent itself ended in the middle of it.
    """

    version: int
    digest: str
    count: int = 0
    is_open: bool = False


class StoreState(msgspec.Struct, frozen=True):
    """Which version is active, which is there to go back to, and which must not be tried again.

    Attributes:
        active: the version that runs.
        previous: the version to go back to.
        refused: versions never to be tried again.
        on_probation: whether the active version has yet to prove itself.
        starts: how often the agent ended abnormally since the active version was put on probation.
        rolled_back: whether the active version is there because a newer one failed.
        reason: why that was.
        generation: counts the changes, so that the newer of two copies is known.
        is_running: whether the agent runs; found at a start, it ended abnormally.
        watched_s: for how long the active version has run on probation, in seconds, over all starts of the agent.
        deaths: how often the process of the active version died since it was put on probation.
        attempts: versions being tried.
        retired: names of files in the folder of versions that nothing needs any more.
    """

    active: Installed | None = None
    previous: Installed | None = None
    refused: tuple[int, ...] = ()
    on_probation: bool = False
    starts: int = 0
    rolled_back: bool = False
    reason: str = ""
    generation: int = 0
    is_running: bool = False
    deaths: int = 0
    attempts: tuple[Attempt, ...] = ()
    retired: tuple[str, ...] = ()
    watched_s: float = 0.0

    @property
    def needed(self) -> frozenset[str]:
        """Names of the files that this state refers to."""
        whole = {item.file_name for item in (self.active, self.previous) if item is not None}
        return frozenset(whole | {version_file(tried.version, tried.digest) for tried in self.attempts})

    def attempts_of(self, version: int) -> int:
        """How many attempts of a version were begun and did not end well."""
        return sum(tried.count for tried in self.attempts if tried.version == version)


def version_file(version: int, digest: str) -> str:
    """Name of the file with a version's bytes."""
    return f"{version}-{digest[:16]}.onnx"
