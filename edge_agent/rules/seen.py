"""The highest policy version this device ever believed, in a file of its own: it outlives a policy file that rots."""

import hashlib
from pathlib import Path

import structlog

from catchment.runtime.atomic_files import write_atomic

FILE_NAME = "policy.version"
_MAX_BYTES = 400

_log = structlog.get_logger(__name__)


def read_seen(folder: Path, public_key: str) -> int:
    """The highest version noted under this key; 0 when none was, or when the note is no longer what was written."""
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return 0
    except OSError as error:
        _log.error("the highest edge policy version cannot be read; the policy kept on disk tells it", error=str(error))
        return 0
    word, _, rest = text.partition(b" ")
    key = rest.partition(b" ")[0].decode(errors="replace")
    if not word.isdigit() or text != _note(int(word), key):
        _log.error("the note of the highest edge policy version is damaged; the policy kept on disk tells it", file=str(path))
        return 0
    # Whoever trusts another key counts from its first policy on.
    return int(word) if key == public_key else 0


def write_seen(folder: Path, public_key: str, version: int) -> None:
    """Note a version, durably, before the policy that bears it is in force.

    Raises:
        OSError: the disk refused; the note is as it was.
    """
    write_atomic(folder / FILE_NAME, _note(version, public_key))


def _note(version: int, public_key: str) -> bytes:
    # The sum tells a rotten digit from a written one: a version that rot made high would refuse every policy to come.
    said = f"{version} {public_key}"
    return f"{said} {hashlib.sha256(said.encode()).hexdigest()}\n".encode()
