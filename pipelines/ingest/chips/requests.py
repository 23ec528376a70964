"""Slides that wait to be cut: what cut n sets out to do, requests and plans on disk, and where a slide's bytes lie now.

A request names slides by their run or their keys, never where their bytes lie: that is looked up when a plan is made, because
compaction moves them. Chip specs are taken from the contract of that moment.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from catchment.runtime.atomic_files import make_folder
from pipelines.errors import BadReferenceError, CorruptLakeError
from pipelines.imaging.store import SlideRef, chip_table
from pipelines.imaging.work import as_id
from pipelines.lake.lake import Lake, poll_again, polled
from pipelines.lake.layout import CUT_REQUESTS, RUNS, cut_plan_path, cut_requests_folder, last_cut_path, stream_table
from pipelines.lake.reference import checked_name, sample_label
from pipelines.lake.table import dataset_of, open_table
from schemas.contract import ChipSpec, Contract
from schemas.ids import DeviceId, Digest, SampleKey, StreamName

APP = "chips"
MAX_SLIDES = 64
MAX_PLAN_BYTES = 64 * 1024 * 1024
_COLUMNS = [
    "device", "epoch", "seq", "event_time", "run", "payload_shard", "payload_offset", "payload_length", "payload_sha256",
]  # fmt: skip
MAX_LOOKED_UP = 2_000


class SlideKey(NamedTuple):
    """The key of a slide's row within its stream."""

    device: str
    epoch: int
    seq: int


class CutRequest(msgspec.Struct, frozen=True):
    """Cut these slides of a stream.

    Attributes:
        stream: whose.
        run: all slides that this run committed; 0: those in `keys`.
        keys: the slides, where no run is named.
        specs: names of the chip specs; empty: all that the contract has.
    """

    stream: str
    run: int = 0
    keys: tuple[SlideKey, ...] = ()
    specs: tuple[str, ...] = ()


class RefusedSlide(msgspec.Struct, frozen=True):
    """A slide that cannot be cut by one spec, and why."""

    slide: SlideRef
    reason: str


class CutPlan(msgspec.Struct, frozen=True):
    """What cut `cut` does: some slides of a request, each with one spec. It is there only until the cut is committed.

    Attributes:
        cut: its number.
        planned_at_us: microseconds since 1970.
        request: file name of the request.
        slides: what is cut.
        refused: slides that cannot even be looked at.
        after: the last slide of the request that this plan covers.
    """

    cut: int
    planned_at_us: int
    request: str
    slides: tuple[SlideRef, ...]
    refused: tuple[RefusedSlide, ...]
    after: SlideKey


class LastCut(msgspec.Struct, frozen=True):
    """The last committed cut, and how far it got with its request."""

    cut: int = 0
    request: str = ""
    after: SlideKey | None = None


def portion(slides: list[SlideRef]) -> list[SlideRef]:
    """The first slides that make a plan: some small ones, or one large one; all specs of a slide stay together."""
    chosen: list[SlideRef] = []
    size = 0
    for place, slide in enumerate(slides):
        is_new = place == 0 or slides[place - 1].key != slide.key
        if chosen and is_new and (len(chosen) >= MAX_SLIDES or size + slide.length > MAX_PLAN_BYTES):
            break
        chosen.append(slide)
        size += slide.length if is_new else 0
    return chosen


def key_of(slide: SlideRef) -> SlideKey:
    """The slide's key without its stream."""
    return SlideKey(str(slide.key.device), slide.key.epoch, slide.key.seq)


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


def wanted_slides(lake: Lake, request: CutRequest, after: SlideKey | None, contract: Contract | None) -> list[SlideRef]:
    """The next slides of a request by key, each with every spec that it is to be cut by; those that are cut are left out.

    Args:
        lake: the lake.
        request: which slides.
        after: the last one that is done.
        contract: the newest of the stream; None: there is none, and nothing is cut.

    Raises:
        CorruptLakeError: a table cannot be read.
    """
    specs = [spec for spec in (contract.chips if contract else ()) if not request.specs or spec.name in request.specs]
    if not specs:
        return []
    rows = _rows(lake, request, after)
    done = cut_already(lake, request.stream, [SlideKey(row["device"], row["epoch"], row["seq"]) for row in rows], specs)
    return [
        _slide(row, request.stream, spec)
        for row in rows
        for spec in specs
        if (row["device"], row["epoch"], row["seq"], spec.name) not in done
    ]


def missing_bytes(lake: Lake, slides: list[SlideRef]) -> Iterator[RefusedSlide]:
    """The slides whose bytes are not in the lake, each with the reason."""
    for slide in slides:
        of = sample_label(slide.key.stream, slide.key.device, slide.key.epoch, slide.key.seq)
        try:
            path = lake.root / checked_name(slide.shard, of)
            reason = "" if lake.size(path) is not None else f"its bytes are gone: there is no {slide.shard}; restore it"
        except BadReferenceError as error:
            reason = str(error)
        if reason:
            yield RefusedSlide(slide, reason)


def _rows(lake: Lake, request: CutRequest, after: SlideKey | None) -> list[dict[str, Any]]:
    table = open_table(lake, stream_table(request.stream))
    keys = [key for key in sorted(request.keys) if after is None or key > after][:MAX_LOOKED_UP]
    if table is None or not (request.run or keys):
        return []
    is_wanted = pc.field("run") == request.run
    if not request.run:
        is_wanted = pc.field("seq").isin([key.seq for key in keys]) & pc.field("device").isin([key.device for key in keys])
    found = dataset_of(table).to_table(columns=_COLUMNS, filter=is_wanted & pc.field("payload_shard").is_valid())
    found = found.set_column(_COLUMNS.index("event_time"), "event_time", found.column("event_time").cast(pa.int64()))
    found = found.sort_by([("device", "ascending"), ("epoch", "ascending"), ("seq", "ascending")])
    allowed = None if request.run else set(keys)
    rows = ((SlideKey(row["device"], row["epoch"], row["seq"]), row) for row in found.to_pylist())
    wanted = [row for key, row in rows if (after is None or key > after) and (allowed is None or key in allowed)]
    return wanted[:MAX_LOOKED_UP]


def cut_already(
    lake: Lake, stream: str, keys: Sequence[SlideKey], specs: Iterable[ChipSpec] = ()
) -> set[tuple[str, int, int, str]]:
    """The slides among these, or with the same seq, that have chips, each with the spec; every one has a first chip.

    Chips that were cut when one of `specs` said something else do not count. Those of earlier releases, which do not tell, do.
    """
    table = open_table(lake, stream_table(chip_table(stream))) if keys else None
    if table is None:
        return set()
    is_first = (pc.field("chip_index") == 0) & pc.field("seq").isin(sorted({key.seq for key in keys}))
    dataset, now = dataset_of(table), {spec.name: spec.digest for spec in specs}
    names = [name for name in ("device", "epoch", "seq", "spec", "spec_digest") if name in dataset.schema.names]
    return {
        (row["device"], row["epoch"], row["seq"], row["spec"])
        for row in dataset.to_table(columns=names, filter=is_first).to_pylist()
        if row.get("spec_digest") in (None, now.get(row["spec"], row.get("spec_digest")))
    }


def _slide(row: dict[str, Any], stream: str, spec: ChipSpec) -> SlideRef:
    return SlideRef(
        key=SampleKey(DeviceId(row["device"]), StreamName(stream), row["epoch"], row["seq"]),
        sha256=Digest(row["payload_sha256"]),
        shard=row["payload_shard"],
        offset=row["payload_offset"],
        length=row["payload_length"],
        spec=spec,
        event_time_us=row["event_time"],
        run=row["run"],
    )
