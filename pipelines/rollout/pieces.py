"""Answers to requests for pieces of repository files. Nothing outside the repository can be asked for."""

import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from schemas.errors import SchemaError
from schemas.rollout import (
    STATUS_MISSING,
    STATUS_OK,
    STATUS_PROPERTY,
    STATUS_REFUSED,
    TOTAL_PROPERTY,
    decode_piece_request,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PieceAnswer:
    """A piece's bytes, the whole file's size, and how it went."""

    status: str
    total: int = 0
    body: bytes = b""

    @property
    def user_properties(self) -> list[tuple[str, str]]:
        """What travels beside the bytes."""
        return [(STATUS_PROPERTY, self.status), (TOTAL_PROPERTY, str(self.total))]


def answer(root: Path, request_body: bytes) -> PieceAnswer:
    """The piece asked for, out of the repository below `root`."""
    try:
        request = decode_piece_request(request_body)
    except SchemaError as error:
        log.warning("piece_request_refused", error=str(error))
        return PieceAnswer(STATUS_REFUSED)
    path = (root / request.path).resolve()
    if not path.is_relative_to(root.resolve()):
        # The grammar of names lets none out; a link inside the repository could.
        log.warning("piece_request_outside_repository", path=request.path)
        return PieceAnswer(STATUS_REFUSED)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return PieceAnswer(STATUS_MISSING)  # TUF asks for the next root until there is none: no news
    try:
        total = os.fstat(descriptor).st_size
        return PieceAnswer(STATUS_OK, total, os.pread(descriptor, request.length, request.offset))
    except OSError as error:
        log.exception("repository_file_unreadable", path=request.path, error=str(error))
        return PieceAnswer(STATUS_MISSING)
    finally:
        os.close(descriptor)
