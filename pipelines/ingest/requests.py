"""What a person asks of the run loop: to replay or to discard rows of the quarantine. One file per request, kept until done.

A request names rows, not a filter: carried out twice, the second time finds them closed and does nothing.
"""

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from catchment.runtime.atomic_files import sync_folder
from pipelines.errors import CorruptLakeError
from pipelines.lake.copy import LOOKS_TO_A_LISTING, discard, files_of, keep, read_bytes
from pipelines.lake.layout import REQUESTS, RUNS, requests_folder
from pipelines.lake.remote import remote_of

REPLAY, DISCARD = "replay", "discard"

_looks: dict[Path, int] = {}
_waiting_afar: dict[Path, list[Path]] = {}


class Request(msgspec.Struct, frozen=True, rename={"requested_at_us": "asked_at_us"}):  # the name on disk
    """Replay or discard these rows.

    Attributes:
        version: the contract version to read them by; "" for the one that each names.
        event_time: what their event times are set to, as `event_times.CLOCK_SET` says; "" leaves them as they are.
    """

    kind: Literal["replay", "discard"]
    ids: tuple[str, ...]
    requested_at_us: int
    version: str = ""
    event_time: str = ""


def write_request(root: Path, request: Request) -> Path:
    """Store a request, durable; the loop will find it.

    Raises:
        OSError: the disk refused.
    """
    body = msgspec.json.encode(request)
    folder = requests_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(root)
    path = folder / f"{request.requested_at_us:020d}-{hashlib.sha256(body).hexdigest()[:12]}.json"
    keep(root, path, body)
    return path


def oldest_request(root: Path) -> tuple[Path, Request] | None:
    """The request to carry out next; None if there is none. Of a remote lake requests are looked for now and then.

    Raises:
        CorruptLakeError: it cannot be read.
        RetryLaterError: the storage is away.
    """
    waiting = _waiting(root)
    if not waiting:
        return None
    try:
        return waiting[0], msgspec.json.decode(read_bytes(root, waiting[0]), type=Request)
    except FileNotFoundError:
        _waiting_afar.pop(root, None)  # another loop has done it
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{waiting[0]}: not a request ({error}); delete it and ask again") from error


def forget_request(root: Path, path: Path) -> None:
    """It is done.

    Raises:
        RetryLaterError: the storage is away.
    """
    discard(root, path)
    if path.parent.is_dir():
        sync_folder(path.parent)
    if root in _waiting_afar:
        _waiting_afar[root].remove(path)


def open_requests(root: Path) -> list[Path]:
    """The requests that wait, oldest first. Of a remote lake: a listing.

    Raises:
        RetryLaterError: the storage is away.
    """
    found = [root / file.name for file in files_of(root, f"{RUNS}/{REQUESTS}")]
    return [path for path in found if path.match("[0-9]*.json")]


def look_again(root: Path) -> None:
    """Let the next look for requests be one, however short ago the last one was."""
    _looks.pop(root, None)


def _waiting(root: Path) -> list[Path]:
    """As `open_requests`; of a remote lake listed at every hundredth look only, and known in between."""
    if remote_of(root) is None:
        return open_requests(root)
    _looks[root] = _looks.get(root, -1) + 1
    if _looks[root] % LOOKS_TO_A_LISTING == 0:
        _waiting_afar[root] = open_requests(root)
    return _waiting_afar.get(root, [])
