"""What a person asks of the run loop: to replay or to discard rows of the quarantine. One file per request, kept until done.

A request names rows, not a filter: carried out twice, the second time finds them closed and does nothing.
"""

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from pipelines.atomic import sync_folder, write_atomic
from pipelines.errors import CorruptLakeError
from pipelines.lake.layout import requests_folder

REPLAY, DISCARD = "replay", "discard"


class Request(msgspec.Struct, frozen=True):
    """Replay or discard these rows. `version`: the contract version to read them by; "" for the one that each names."""

    kind: Literal["replay", "discard"]
    ids: tuple[str, ...]
    asked_at_us: int
    version: str = ""


def write_request(root: Path, request: Request) -> Path:
    """Store a request, durable; the loop will find it.

    Raises:
        OSError: the disk refused.
    """
    body = msgspec.json.encode(request)
    folder = requests_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(root)
    path = folder / f"{request.asked_at_us:020d}-{hashlib.sha256(body).hexdigest()[:12]}.json"
    write_atomic(path, body, mode=0o644)
    return path


def oldest_request(root: Path) -> tuple[Path, Request] | None:
    """The request to carry out next; None if there is none.

    Raises:
        CorruptLakeError: it cannot be read.
    """
    folder = requests_folder(root)
    waiting = sorted(folder.glob("[0-9]*.json")) if folder.is_dir() else []
    if not waiting:
        return None
    try:
        return waiting[0], msgspec.json.decode(waiting[0].read_bytes(), type=Request)
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{waiting[0]}: not a request ({error}); delete it and ask again") from error


def forget_request(path: Path) -> None:
    """It is done."""
    path.unlink(missing_ok=True)
    sync_folder(path.parent)
