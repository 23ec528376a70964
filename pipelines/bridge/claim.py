"""Which bytes of an unfinished object are durable: one small JSON file beside it, replaced as a whole."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.atomic_files import sync_folder, write_atomic
from schemas.errors import SchemaError
from schemas.ranges import Ranges

_log = structlog.get_logger(__name__)
CLAIM_SUFFIX = ".have"


@dataclass(frozen=True, slots=True)
class Claim:
    """`have` of `total` bytes are durable."""

    total: int
    have: Ranges


class _Document(msgspec.Struct, frozen=True):
    total: int
    have: list[tuple[int, int]]


def read_claim(path: Path) -> Claim | None:
    """The claim for the bytes at `path`; None where there is none, or none to be trusted.

    Raises:
        OSError: the disk refused.
    """
    try:
        document = msgspec.json.decode(_beside(path).read_bytes(), type=_Document)
        claim = Claim(document.total, Ranges.of(document.have))
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, SchemaError) as error:
        _log.warning("claim_unreadable", path=str(path), error=str(error))
        return None
    if claim.have and claim.have.spans[-1][1] > size:
        _log.warning("claim_beyond_file", path=str(path), claimed=claim.have.spans[-1][1], size=size)
        return None
    return claim


def write_claim(path: Path, claim: Claim) -> None:
    """Claim; the bytes must be durable already.

    Raises:
        OSError: the disk refused.
    """
    write_atomic(_beside(path), msgspec.json.encode(_Document(claim.total, list(claim.have))))


def discard_claim(path: Path) -> None:
    """Take the claim back, durably.

    Raises:
        OSError: the disk refused.
    """
    beside = _beside(path)
    if beside.exists():
        beside.unlink()
        sync_folder(beside.parent)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + CLAIM_SUFFIX)
