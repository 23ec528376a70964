"""What goes into chip cutting and what comes out of it."""

from dataclasses import dataclass

import pyarrow as pa

from schemas.contract import ChipSpec
from schemas.ids import Digest, SampleKey


@dataclass(frozen=True, slots=True)
class SlideRef:
    """An image in the lake that shall be cut by `spec`.

    `shard`, `offset`, `length` tell where its bytes lie, as in the stream's row: a file under `objects/` (offset 0) or a value
    inside a payload shard. `tags` and `tag_rules` are handed on to every chip.
    """

    key: SampleKey
    sha256: Digest
    shard: str
    offset: int
    length: int
    spec: ChipSpec
    event_time_us: int | None = None
    tags: tuple[str, ...] = ()
    tag_rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChipFile:
    """What became of one slide: a file of chip rows for the table `<stream>_chips`, or a reason why there is none.

    Attributes:
        key: of the slide.
        spec: name of the chip spec.
        path: the file, relative to the lake root; empty where `rejection` is set.
        rows: chip rows in it.
        bytes: its size.
        rejection: why the slide could not be cut; None where it was.
    """

    key: SampleKey
    spec: str
    path: str
    rows: int
    bytes: int
    rejection: str | None = None


def chip_table(stream: str) -> str:
    """The name of the table that a stream's chip rows go to."""
    return f"{stream}_chips"


def chip_schema() -> pa.Schema:
    """Columns of a chip row; its key is (device, epoch, seq, spec, chip_index).

    `width` and `height` are the part inside the image; `background` is the share of it that is near white or near black.
    """
    return pa.schema([
        pa.field("device", pa.string()),
        pa.field("epoch", pa.int64()),
        pa.field("seq", pa.int64()),
        pa.field("event_time", pa.timestamp("us", "UTC")),
        pa.field("run", pa.int64()),
        pa.field("source_sha256", pa.string()),
        pa.field("spec", pa.string()),
        pa.field("level", pa.int32()),
        pa.field("chip_index", pa.int64()),
        pa.field("x", pa.int64()),
        pa.field("y", pa.int64()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("background", pa.float32()),
        pa.field("media_type", pa.string()),
        pa.field("zarr_path", pa.string()),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("tag_rules", pa.list_(pa.string())),
        pa.field("payload_shard", pa.string()),
        pa.field("payload_row", pa.int32()),
        pa.field("payload_offset", pa.int64()),
        pa.field("payload_length", pa.int64()),
        pa.field("payload_sha256", pa.string()),
    ])  # fmt: skip
