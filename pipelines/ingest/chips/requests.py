"""Requests, plans and the last cut on disk."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from catchment.runtime.atomic_files import make_folder
from pipelines.errors import CorruptLakeError
from pipelines.imaging.work import as_id
from pipelines.ingest.chips.plan import CutPlan, CutRequest, LastCut
from pipelines.lake.lake import Lake, poll_again, polled
from pipelines.lake.layout import CUT_REQUESTS, RUNS, cut_plan_path, cut_requests_folder, last_cut_path

T = TypeVar("T", CutRequest, CutPlan, LastCut)


def request_run(lake: Lake, run: int, streams: Iterable[str]) -> None:
    """Have the slides cut that a run is about to commit. Written again, it is the same request.

    Raises:
        OSError: the disk refused.
    """
    for stream in sorted(streams):
        _write(lake, f"{run:012d}-{stream}.json", CutRequest(stream, run))


def request_slides(lake: Lake, at_us: int, request: CutRequest) -> Path:
    """Have slides cut that are named by their keys.

    Args:
        lake: the lake.
        at_us: microseconds since 1970, for the order; with the same time and content it is the same request.
        request: which slides.

    Raises:
        OSError: the disk refused.
    """
    digest = hashlib.sha256(msgspec.json.encode(request)).hexdigest()[:12]
    return _write(lake, f"{at_us:020d}-{digest}.json", request)


def open_requests(lake: Lake) -> list[Path]:
    """The requests that wait: of runs first, then of people, the oldest first. Of a remote lake a listing."""
    return [lake.root / file.name for file in lake.files(f"{RUNS}/{CUT_REQUESTS}") if file.name.endswith(".json")]


def waiting_requests(lake: Lake) -> list[Path]:
    """As `open_requests`; of a remote lake listed at every hundredth look only."""
    return polled(lake, CUT_REQUESTS, lambda: open_requests(lake))


def read_request(lake: Lake, path: Path) -> CutRequest | None:
    """A request; None if it is done by now.

    Raises:
        CorruptLakeError: it is not a request.
    """
    return _read(lake, path, CutRequest, "delete it and ask again")


def forget_request(lake: Lake, name: str) -> None:
    """It is done."""
    lake.delete(cut_requests_folder(lake.root) / name)
    poll_again(lake, CUT_REQUESTS)


def read_cut_plan(lake: Lake, cut: int) -> CutPlan | None:
    """The plan of a cut that is not committed; None if there is none.

    Raises:
        CorruptLakeError: it is not a plan.
    """
    return _read(lake, cut_plan_path(lake.root, cut), CutPlan, "delete it, and the cut is planned again")


def write_cut_plan(lake: Lake, plan: CutPlan) -> None:
    """Make a plan durable."""
    path = cut_plan_path(lake.root, plan.cut)
    make_folder(path.parent)
    lake.put(path, msgspec.json.encode(plan, enc_hook=str))


def read_last_cut(lake: Lake) -> LastCut:
    """The last committed cut.

    Raises:
        CorruptLakeError: what was written is not there.
    """
    remedy = "restore it, or delete it: cuts are then counted from the tables"
    return _read(lake, last_cut_path(lake.root), LastCut, remedy) or LastCut()


def write_last_cut(lake: Lake, last: LastCut) -> None:
    """Make durable that a cut is committed."""
    lake.put(last_cut_path(lake.root), msgspec.json.encode(last))


def _write(lake: Lake, name: str, request: CutRequest) -> Path:
    path = cut_requests_folder(lake.root) / name
    make_folder(path.parent)
    lake.put(path, msgspec.json.encode(request))
    poll_again(lake, CUT_REQUESTS)
    return path


def _read(lake: Lake, path: Path, kind: type[T], remedy: str) -> T | None:
    try:
        return msgspec.json.decode(lake.read(path), type=kind, dec_hook=as_id)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{path}: cannot be read ({error}); {remedy}") from error
