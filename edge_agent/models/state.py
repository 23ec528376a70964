"""What a device remembers of its model across restarts, in two copies on disk, each with a checksum.

Both copies are replaced atomically, one after the other. The newest copy whose checksum is right is the state, so a torn or
rotten copy costs nothing.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.atomic_files import write_atomic
from schemas.model import ModelSpec

log = structlog.get_logger(__name__)

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


NAMES = ("state.json", "state.copy.json")
_MAX_BYTES = 64 * 1024 * 1024
_CHECKSUM = re.compile(rb',"sha256":"([0-9a-f]{64})"}\s*\Z')


class _DamagedError(Exception):
    """A copy's bytes are not what was written."""


@dataclass(frozen=True, slots=True)
class FoundState:
    """What was read.

    Attributes:
        state: the newest whole copy; the initial state where there is none.
        is_lost: whether there were copies, and none of them is whole.
        is_whole: whether both copies hold this state.
    """

    state: StoreState
    is_lost: bool
    is_whole: bool


class StateFile:
    """Reads and writes both copies in a folder."""

    def __init__(self, folder: Path) -> None:
        self._paths = tuple(folder / name for name in NAMES)

    def read(self) -> FoundState:
        """The state. If no copy is whole, the damaged ones are moved to `.broken`."""
        states: list[StoreState] = []
        older: list[StoreState] = []
        damaged: list[Path] = []
        for path in self._paths:
            try:
                state, has_checksum = _decode(path)
            except FileNotFoundError:
                continue
            except (OSError, _DamagedError) as error:
                log.warning("model_state_damaged", path=str(path), reason=str(error))
                damaged.append(path)
            else:
                (states if has_checksum or state.generation else older).append(state)
        # A copy of the previous release has neither checksum nor generation: it was written last, by that release.
        found = older or sorted(states, key=lambda state: state.generation)
        if not found:
            for path in damaged:
                path.replace(path.with_suffix(".broken"))
            return FoundState(StoreState(), is_lost=bool(damaged), is_whole=not damaged)
        is_whole = len(states) == len(self._paths) and states[0] == states[1]
        return FoundState(found[-1], is_lost=False, is_whole=is_whole)

    def write(self, state: StoreState) -> None:
        """Replace both copies.

        Raises:
            OSError: the disk refuses; the old state is in force. A second copy that cannot be written is only logged.
        """
        body = _encode(state)
        first, second = self._paths
        write_atomic(first, body)
        try:
            write_atomic(second, body)
        except OSError as error:
            log.warning("model_state_copy_not_written", path=str(second), reason=str(error))


def peek_active(folder: Path) -> Installed | None:
    """The version that is active, without touching anything: for programs next to the agent. None: none, or unreadable."""
    for name in NAMES:
        try:
            return _decode(folder / name)[0].active
        except (OSError, _DamagedError):
            continue
    return None


def _encode(state: StoreState) -> bytes:
    plain = msgspec.json.encode(state)
    return plain[:-1] + b',"sha256":"' + hashlib.sha256(plain).hexdigest().encode() + b'"}'


def _decode(path: Path) -> tuple[StoreState, bool]:
    """The state, and whether a checksum vouches for it."""
    if path.stat().st_size > _MAX_BYTES:
        raise _DamagedError("too large")
    body = path.read_bytes()
    checksum = _CHECKSUM.search(body)
    if checksum is not None:
        plain = body[: checksum.start()] + b"}"
        if hashlib.sha256(plain).hexdigest().encode() != checksum[1]:
            raise _DamagedError("its checksum is wrong")
        body = plain
    try:
        return msgspec.json.decode(body, type=StoreState), checksum is not None
    except (msgspec.MsgspecError, ValueError) as error:
        raise _DamagedError(f"it is malformed: {error}") from error
