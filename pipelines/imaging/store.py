"""Put the chips of a band in the lake: one Zarr shard of pixels, one payload shard of pictures.

What goes into chip cutting and what comes out of it.
"""

import base64
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from catchment.runtime.atomic_files import sync_file, sync_folder
from pipelines.contracts.arrow import arrow_type
from pipelines.errors import CorruptLakeError
from pipelines.imaging.cutting import Chips
from pipelines.imaging.facts import ImageFacts
from pipelines.imaging.scores import BandScores
from pipelines.lake.lake import Lake
from pipelines.lake.layout import CHIPS, cut_folder, cut_prefix
from pipelines.lake.payload import PayloadShard, write_payload_shard
from schemas.chip_contract import CHIP_COLUMNS, chip_stream
from schemas.contract import ChipSpec
from schemas.ids import Digest, SampleKey

_FAST_CODECS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}


@dataclass(frozen=True, slots=True)
class SlideRef:
    """An image in the lake that shall be cut by `spec`.

    `shard`, `offset`, `length` tell where its bytes lie, as in the stream's row: a file under `objects/` (offset 0) or a value
    inside a payload shard. `run` committed the image.
    """

    key: SampleKey
    sha256: Digest
    shard: str
    offset: int
    length: int
    spec: ChipSpec
    event_time_us: int | None = None
    run: int = 0


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
        tiles_decoded: how many tiles this try decoded; those of bands that an earlier one has cut are not among them.
    """

    key: SampleKey
    spec: str
    path: str
    rows: int
    bytes: int
    rejection: str | None = None
    tiles_decoded: int = 0


def chip_table(stream: str) -> str:
    """The name of the table that a stream's chip rows go to."""
    return chip_stream(stream)


def chip_schema() -> pa.Schema:
    """Columns of a chip row; its key is (device, epoch, seq, spec, chip_index).

    Between the key and the tags stand the columns of the contract of chips. Tags are those of the chip; the slide's are joined.
    """
    return pa.schema([
        pa.field("device", pa.string()),
        pa.field("epoch", pa.int64()),
        pa.field("seq", pa.int64()),
        pa.field("event_time", pa.timestamp("us", "UTC")),
        pa.field("run", pa.int64()),
        *(pa.field(column.name, arrow_type(column)) for column in CHIP_COLUMNS),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("tag_rules", pa.list_(pa.string())),
        pa.field("payload_shard", pa.string()),
        pa.field("payload_row", pa.int32()),
        pa.field("payload_offset", pa.int64()),
        pa.field("payload_length", pa.int64()),
        pa.field("payload_sha256", pa.string()),
    ])  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChipPlace:
    """Where the chips of slide `number` of cut `cut` lie; names follow from the plan, so that a repeated try writes the same.

    The names begin unlike those of earlier versions, which were made of the numbers of ingest runs.
    """

    stream: str
    spec: str
    cut: int
    number: int

    @property
    def stem(self) -> str:
        """What the names of this slide's files have in common, relative to the lake root."""
        return f"{CHIPS}/{self.stream}/{self.spec}/{cut_prefix(self.cut)}-{self.number}"

    @property
    def zarr(self) -> str:
        """The Zarr v3 array of all chips."""
        return f"{self.stem}.zarr"

    def pictures(self, band: int) -> str:
        """The payload shard of a band."""
        return f"{self.stem}-{band:05d}.parquet"

    def band_rows(self, band: int) -> str:
        """The chip rows of a finished band, until the slide's file of rows is written: the word that the band is durable."""
        return f"{cut_folder(self.cut)}/{self.number}-{band:05d}.parquet"

    @property
    def rows(self) -> str:
        """The file of chip rows."""
        return f"streams/{self.stream}_chips/{cut_prefix(self.cut)}-{self.number}.parquet"


def create_array(lake: Lake, place: ChipPlace, shape: tuple[int, int, int, int], shard_chips: int, facts: ImageFacts) -> None:
    """Create the array (chips, height, width, channels): one chip an inner chunk, one band a shard.

    An equal one stays, with the bands that an earlier try has finished; of another one nothing is kept.
    """
    path = lake.root / place.zarr
    if path.exists() and _fits(path, shape, shard_chips, facts):
        return
    discard(lake, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    zarr.create_array(
        store=str(path),
        shape=shape,
        dtype=facts.dtype,
        chunks=(1, *shape[1:]),
        shards=(shard_chips, *shape[1:]),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
        dimension_names=["chip", "y", "x", "channel"],
        attributes=_attributes(facts),
        zarr_format=3,
    )
    _sync_file(path / "zarr.json")
    sync_folder(path.parent)


def write_pixels(lake: Lake, place: ChipPlace, band: int, chips: Chips) -> None:
    """Write a band's pixels as one shard, durably.

    A shard that an earlier attempt left is removed first: it may be torn, and would be read to be completed.
    """
    path = lake.root / place.zarr
    shard = path / "c" / str(band) / "0" / "0" / "0"
    shard.unlink(missing_ok=True)
    with zarr.config.set(_FAST_CODECS):
        array = zarr.open_array(str(path), mode="r+")
        array[chips.first_index : chips.first_index + len(chips.pixels)] = chips.pixels
    if shard.exists():  # a band of zeros alone is the fill value, and needs no file
        _sync_file(shard)
        for folder in list(shard.parents)[:5]:
            sync_folder(folder)


@dataclass(frozen=True, slots=True)
class BandPictures:
    """The pictures of a band: which chips have one, their shard (None: none has), and the scores of all chips."""

    kept: npt.NDArray[np.bool_]
    shard: PayloadShard | None
    scores: BandScores


def write_pictures(lake: Lake, place: ChipPlace, slide: SlideRef, band: int, chips: Chips, scores: BandScores) -> BandPictures:
    """Write a band's encoded chips as a payload shard, without those that the spec leaves without a picture."""
    limit = slide.spec.max_background
    kept = np.ones(len(chips.encoded), np.bool_) if limit is None else ~(scores.background > limit)
    if not kept.any():
        return BandPictures(kept, None, scores)
    encoded = [body for body, one in zip(chips.encoded, kept, strict=True) if one]
    count = len(encoded)
    key = slide.key
    rows = pa.table({
        "device": pa.array([key.device] * count, pa.string()),
        "epoch": pa.array([key.epoch] * count, pa.int64()),
        "seq": pa.array([key.seq] * count, pa.int64()),
        "chip_index": pa.array(np.flatnonzero(kept) + chips.first_index, pa.int64()),
        "payload_sha256": pa.array([hashlib.sha256(body).hexdigest() for body in encoded], pa.string()),
        "payload": pa.array(encoded, pa.binary()),
    })  # fmt: skip
    return BandPictures(kept, write_payload_shard(lake.root / place.pictures(band), rows), scores)


def discard(lake: Lake, place: ChipPlace) -> None:
    """Remove what a slide left that turned out unreadable halfway; no row refers to it."""
    stem, band_rows = lake.root / place.stem, lake.root / place.band_rows(0)
    for path in (*band_rows.parent.glob(f"{place.number}-*.parquet"), *stem.parent.glob(f"{stem.name}-*.parquet")):
        path.unlink(missing_ok=True)
    shutil.rmtree(lake.root / place.zarr, ignore_errors=True)


def _attributes(facts: ImageFacts) -> dict[str, Any]:
    """What rows do not hold: names of channels, the colour table and the colour profile."""
    attributes: dict[str, Any] = {"colours": str(facts.colours)}
    if facts.channel_names:
        attributes["channel_names"] = list(facts.channel_names)
    if facts.nodata is not None and np.isfinite(facts.nodata):
        attributes["nodata"] = facts.nodata
    if facts.palette:
        attributes["palette_rgb"] = list(facts.palette)
    if facts.icc:
        attributes["icc_profile_base64"] = base64.b64encode(facts.icc).decode()
    return attributes


def _fits(path: Path, shape: tuple[int, int, int, int], shard_chips: int, facts: ImageFacts) -> bool:
    try:
        array = zarr.open_array(str(path), mode="r")
    except (OSError, ValueError, KeyError):  # an earlier attempt died while it created the array
        return False
    has_shards = array.shards is not None and array.shards[0] == shard_chips
    return has_shards and array.shape == shape and str(array.dtype) == facts.dtype


def _sync_file(path: Path) -> None:
    try:
        sync_file(path)
    except FileNotFoundError as error:
        raise CorruptLakeError(f"{path}: was written and is gone ({error.strerror})") from error
    sync_folder(path.parent)
