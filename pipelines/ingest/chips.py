"""The chips of a run: every image committed by a contract that asks for chips is cut, once the run is prepared.

The result is written to `runs/<n>.chips.json` before any commit, so that a run repeated after a crash does not cut again.
An image that cannot be cut stays a row of its stream; its rejection in quarantine stands for no sample (count 0).
"""

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import CorruptLakeError
from pipelines.imaging.graph import cut_chips
from pipelines.imaging.store import ChipFile, SlideRef
from pipelines.ingest.plan import Pins, Plan
from pipelines.ingest.quarantine import BODY_NONE, PRIVATE, Origin, Rejection, rejections_table
from pipelines.ingest.work import Prepared
from pipelines.lake.files import NewFile, table_stats, write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import QUARANTINE, chips_path, stream_table
from pipelines.lake.reference import referred_path, sample_label
from pipelines.runners.engine import Engine
from schemas.contract import ChipSpec
from schemas.ids import DeviceId, Digest, SampleKey, StreamName

STAGE_CHIPS = "chips"
_COLUMNS = [
    "device", "epoch", "seq", "event_time", "tags", "tag_rules", "payload_shard", "payload_offset", "payload_length",
    "payload_sha256",
]  # fmt: skip


class Chips(msgspec.Struct, frozen=True):
    """The files that cutting added to a run."""

    files: tuple[NewFile, ...]


def prepare_chips(lake: Lake, plan: Plan, prepared: Prepared, pins: Pins, max_pixels: int, engine: Engine) -> tuple[NewFile, ...]:
    """Cut what the run asks for, or read what an earlier try has cut.

    Raises:
        CorruptLakeError: the list of an earlier try cannot be read.
        OSError: the disk refused.
    """
    slides = tuple(slide for file in prepared.files() for slide in _slides(lake, file, pins))
    if not slides:
        return ()
    path = chips_path(lake.root, plan.run)
    try:
        return msgspec.json.decode(lake.local(path).read_bytes(), type=Chips).files
    except FileNotFoundError:
        pass  # not cut yet
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{path}: not a list of chip files ({error}); delete it, and the run cuts them again") from error
    cut = cut_chips(lake, plan.run, slides, max_pixels, engine)
    files = (*(_new_file(lake, file) for file in cut if file.rejection is None), *_rejections(lake, plan, cut))
    write_atomic(path, msgspec.json.encode(Chips(files)), mode=0o644)
    return files


def _slides(lake: Lake, file: NewFile, pins: Pins) -> list[SlideRef]:
    stream = file.table.removeprefix(stream_table(""))
    contract = pins.contract(stream, None)
    if contract is None or not contract.chips or not file.table.startswith(stream_table("")):
        return []
    rows = pq.read_table(lake.local(lake.root / file.path), columns=_COLUMNS, partitioning=None)
    times = rows.column("event_time").cast(pa.int64())
    found = rows.set_column(rows.column_names.index("event_time"), "event_time", times).to_pylist()
    with_bytes = [row for row in found if row["payload_shard"] is not None]
    samples = {row["payload_shard"]: sample_label(stream, row["device"], row["epoch"], row["seq"]) for row in with_bytes}
    for shard, sample in samples.items():
        referred_path(lake, shard, sample)
    return [_slide(row, stream, spec) for row in with_bytes for spec in contract.chips]


def _slide(row: dict[str, object], stream: str, spec: ChipSpec) -> SlideRef:
    values = [row[name] for name in _COLUMNS]
    device, epoch, seq, event_time_us, tags, tag_rules, shard, offset, length, digest = values
    assert isinstance(epoch, int)
    assert isinstance(seq, int)
    assert isinstance(offset, int)
    assert isinstance(length, int)
    assert isinstance(event_time_us, int)
    assert isinstance(tags, list)
    assert isinstance(tag_rules, list)
    key = SampleKey(DeviceId(str(device)), StreamName(stream), epoch, seq)
    return SlideRef(key, Digest(str(digest)), str(shard), offset, length, spec, event_time_us, tuple(tags), tuple(tag_rules))


def _new_file(lake: Lake, file: ChipFile) -> NewFile:
    rows = pq.read_table(lake.root / file.path, partitioning=None)
    return NewFile(str(Path(file.path).parent), file.path, file.rows, file.bytes, table_stats(rows))


def _rejections(lake: Lake, plan: Plan, cut: tuple[ChipFile, ...]) -> list[NewFile]:
    refused = [
        Rejection(
            Origin(file.key.device, file.key.stream, file.key.epoch, "", None, ()),
            STAGE_CHIPS,
            f"{file.spec}: {file.rejection}",
            file.key.seq,
            0,
            b"",
            BODY_NONE,
        )
        for file in cut
        if file.rejection is not None
    ]
    if not refused:
        return []
    table = rejections_table(refused, plan.run, plan.planned_at_us, "chips")
    return [write_table_file(lake, QUARANTINE, f"{plan.run:012d}-chips.parquet", table, PRIVATE)]
