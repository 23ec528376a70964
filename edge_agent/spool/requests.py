"""What an operator asks of the spool beside its one writer: files in the spool's folder that the agent takes up."""

import os
import secrets
from collections.abc import Callable, Container
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.atomic_files import write_atomic

_PREFIX = "replay-"
log = structlog.get_logger(__name__)


class ReplayRequest(msgspec.Struct, frozen=True):
    """Send parked envelopes again. Without ids: all of them."""

    ids: tuple[int, ...] | None = None


def ask_replay(folder: Path, ids: tuple[int, ...] | None) -> Path:
    """Leave the wish; the file is gone once an agent has taken it up.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}.json"
    write_atomic(path, msgspec.json.encode(ReplayRequest(ids)))
    return path


def serve_replays(folder: Path, replay: Callable[[Container[int] | None], None]) -> None:
    """Do what was asked, and delete each wish when it is done. A malformed one is told and deleted.

    Raises:
        SpoolError: the spool is broken; the wish stays.
    """
    for path in sorted(folder.glob(f"{_PREFIX}*.json")):
        try:
            request = msgspec.json.decode(path.read_bytes(), type=ReplayRequest)
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("request_malformed", path=str(path), error=str(error))
        else:
            replay(None if request.ids is None else frozenset(request.ids))
        path.unlink(missing_ok=True)
