"""Looks up the slides of a request in their table: where their bytes lie now, and which specs they are not cut by yet."""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import BadReferenceError
from pipelines.imaging.store import SlideRef, chip_table
from pipelines.ingest.chips.plan import CutRequest, RefusedSlide, SlideKey
from pipelines.lake.lake import Lake
from pipelines.lake.layout import stream_table
from pipelines.lake.reference import checked_name, sample_label
from pipelines.lake.table import dataset_of, open_table
from schemas.contract import ChipSpec, Contract
from schemas.ids import DeviceId, Digest, SampleKey, StreamName

_COLUMNS = [
    "device", "epoch", "seq", "event_time", "run", "tags", "tag_rules", "payload_shard", "payload_offset", "payload_length",
    "payload_sha256",
]  # fmt: skip
MAX_LOOKED_UP = 2_000


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
    done = cut_already(lake, request.stream, [SlideKey(row["device"], row["epoch"], row["seq"]) for row in rows])
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


def cut_already(lake: Lake, stream: str, keys: Sequence[SlideKey]) -> set[tuple[str, int, int, str]]:
    """The slides among these, or with the same seq, that have chips, each with the spec; every one has a first chip."""
    table = open_table(lake, stream_table(chip_table(stream))) if keys else None
    if table is None:
        return set()
    is_first = (pc.field("chip_index") == 0) & pc.field("seq").isin(sorted({key.seq for key in keys}))
    found = dataset_of(table).to_table(columns=["device", "epoch", "seq", "spec"], filter=is_first)
    return {(row["device"], row["epoch"], row["seq"], row["spec"]) for row in found.to_pylist()}


def _slide(row: dict[str, Any], stream: str, spec: ChipSpec) -> SlideRef:
    return SlideRef(
        key=SampleKey(DeviceId(row["device"]), StreamName(stream), row["epoch"], row["seq"]),
        sha256=Digest(row["payload_sha256"]),
        shard=row["payload_shard"],
        offset=row["payload_offset"],
        length=row["payload_length"],
        spec=spec,
        event_time_us=row["event_time"],
        tags=tuple(row["tags"] or ()),
        tag_rules=tuple(row["tag_rules"] or ()),
        run=row["run"],
    )
