"""What a person asks of the run loop: to replay or to discard rows of the quarantine. One file per request, kept until done.

A request names rows, not a filter: carried out twice, the second time finds them closed and does nothing.
"""

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from catchment.runtime.atomic_files import sync_folder
from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import REQUESTS, RUNS, requests_folder
from pipelines.lake.polling import poll_again, polled

REPLAY, DISCARD = "replay", "discard"


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


def write_request(lake: Lake, request: Request) -> Path:
    """Store a request, durable; the loop will find it.

    Raises:
        OSError: the disk refused.
    """
    body = msgspec.json.encode(request)
    folder = requests_folder(lake.root)
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(lake.root)
    path = folder / f"{request.requested_at_us:020d}-{hashlib.sha256(body).hexdigest()[:12]}.json"
    lake.put(path, body)
    return path


def oldest_request(lake: Lake) -> tuple[Path, Request] | None:
    """The request to carry out next; None if there is none. Of a remote lake requests are looked for now and then.

    Raises:
        CorruptLakeError: it cannot be read.
        RetryLaterError: the storage is away.
    """
    waiting = _waiting(lake)
    if not waiting:
        return None
    try:
        return waiting[0], msgspec.json.decode(lake.read(waiting[0]), type=Request)
    except FileNotFoundError:
        poll_again(lake, REQUESTS)  # another loop has done it
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{waiting[0]}: not a request ({error}); delete it and ask again") from error


def forget_request(lake: Lake, path: Path) -> None:
    """It is done.

    Raises:
        RetryLaterError: the storage is away.
    """
    lake.delete(path)
    if path.parent.is_dir():
        sync_folder(path.parent)
    poll_again(lake, REQUESTS)


def open_requests(lake: Lake) -> list[Path]:
    """The requests that wait, oldest first. Of a remote lake: a listing.

    Raises:
        RetryLaterError: the storage is away.
    """
    found = [lake.root / file.name for file in lake.files(f"{RUNS}/{REQUESTS}")]
    return [path for path in found if path.match("[0-9]*.json")]


def look_again(lake: Lake) -> None:
    """Let the next look for requests be one, however short ago the last one was."""
    poll_again(lake, REQUESTS)


def _waiting(lake: Lake) -> list[Path]:
    """As `open_requests`; of a remote lake listed at every hundredth look only, and known in between."""
    return polled(lake, REQUESTS, lambda: open_requests(lake))
