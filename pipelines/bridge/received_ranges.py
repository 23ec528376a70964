"""Which bytes of an unfinished object are durable: one small JSON file beside it, replaced as a whole."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.atomic_files import sync_folder, write_atomic
from schemas.errors import SchemaError
from schemas.ranges import Ranges

log = structlog.get_logger(__name__)
RECEIVED_SUFFIX = ".have"


@dataclass(frozen=True, slots=True)
class ReceivedRanges:
    """`have` of `total` bytes are durable."""

    total: int
    have: Ranges


class _Document(msgspec.Struct, frozen=True):
    total: int
    have: list[tuple[int, int]]


def read_received(path: Path) -> ReceivedRanges | None:
    """Read the received ranges of the bytes at `path`; None where there are none, or they cannot be trusted.

    Raises:
        OSError: the disk refused.
    """
    try:
        document = msgspec.json.decode(_beside(path).read_bytes(), type=_Document)
        received = ReceivedRanges(document.total, Ranges.of(document.have))
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, SchemaError) as error:
        log.warning("received_ranges_unreadable", path=str(path), error=str(error))
        return None
    if received.have and received.have.spans[-1][1] > size:
        log.warning("received_ranges_beyond_file", path=str(path), claimed=received.have.spans[-1][1], size=size)
        return None
    return received


def write_received(path: Path, received: ReceivedRanges) -> None:
    """Write the received ranges; the bytes must be durable already.

    Raises:
        OSError: the disk refused.
    """
    write_atomic(_beside(path), msgspec.json.encode(_Document(received.total, list(received.have))))


def discard_received(path: Path) -> None:
    """Delete the received ranges, durably.

    Raises:
        OSError: the disk refused.
    """
    beside = _beside(path)
    if beside.exists():
        beside.unlink()
        sync_folder(beside.parent)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + RECEIVED_SUFFIX)
