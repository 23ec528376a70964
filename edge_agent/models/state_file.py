"""The model's state on disk: two copies, each with a checksum, so that a torn or rotten one costs nothing.

Both are replaced atomically, one after the other. The newest copy whose checksum is right is the state.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.atomic_files import write_atomic
from edge_agent.models.state import StoreState

NAMES = ("state.json", "state.copy.json")
_MAX_BYTES = 64 * 1024 * 1024
_CHECKSUM = re.compile(rb',"sha256":"([0-9a-f]{64})"}\s*\Z')

log = structlog.get_logger(__name__)


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
