"""The rows of `<stream>_chips`: where each chip lies in its level, the full image and the world, and where its bytes are."""

import hashlib
import math

import numpy as np
import pyarrow as pa

from pipelines.imaging.cutting import Chips, Cutter
from pipelines.imaging.facts import ImageFacts
from pipelines.imaging.place import footprint
from pipelines.imaging.scores import COUNTS
from pipelines.imaging.store import BandPictures, ChipPlace, SlideRef, chip_schema
from pipelines.imaging.tiling import Band, TileWindow

_NO_OFFSET = 1e-6


def chip_rows(slide: SlideRef, place: ChipPlace, cutter: Cutter, band: Band, chips: Chips, pictures: BandPictures) -> pa.Table:
    """The rows of a band, with counts of which the share of tissue follows once the whole slide is cut.

    Args:
        slide: what is cut.
        place: where its chips lie.
        cutter: knows the image and the grid.
        band: which chips.
        chips: what was made of them.
        pictures: where their pictures are, and their scores.
    """
    facts, grid = cutter.facts, cutter.grid
    count = len(chips.encoded)
    indices = range(chips.first_index, chips.first_index + count)
    planes = [facts.planes[index // grid.count] for index in indices]
    windows = [grid.window(index % grid.count) for index in indices]
    same = _same(slide, place, facts)
    own: dict[str, object] = {
        "chip_index": indices,
        "x": [window.x for window in windows],
        "y": [window.y for window in windows],
        "width": [window.width for window in windows],
        "height": [window.height for window in windows],
        **_references(place.pictures(band.index), chips, pictures),
        "plane": [plane.index for plane in planes],
        "z": [plane.z for plane in planes],
        "t": [plane.t for plane in planes],
        "valid": chips.valid,
        "mask": chips.masks,
        "media_type": chips.media_types,
        "method": chips.methods,
        **_place(windows, facts),
    }
    own |= pictures.scores.columns() | {"tissue": [None] * count}
    schema = chip_schema().append(pa.field(COUNTS, pa.binary()))
    arrays = [_array(own[field.name] if field.name in own else [same[field.name]] * count, field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _references(name: str, chips: Chips, pictures: BandPictures) -> dict[str, object]:
    """Where the pictures of a band are; nulls for chips without one."""
    shard, kept = pictures.shard, pictures.kept
    names = ("payload_shard", "payload_row", "payload_offset", "payload_length", "payload_sha256")
    if shard is None:
        return dict.fromkeys(names, [None] * len(kept))
    row = pa.array(np.cumsum(kept) - 1, pa.int32(), mask=~kept)
    return {
        "payload_shard": [name if one else None for one in kept],
        "payload_row": row,
        "payload_offset": shard.offsets.take(row),
        "payload_length": shard.lengths.take(row),
        "payload_sha256": [
            hashlib.sha256(body).hexdigest() if one else None for body, one in zip(chips.encoded, kept, strict=True)
        ],
    }


def _same(slide: SlideRef, place: ChipPlace, facts: ImageFacts) -> dict[str, object]:
    """What all chips of a band have in common."""
    scaling = facts.scaling
    return {
        "device": slide.key.device,
        "epoch": slide.key.epoch,
        "seq": slide.key.seq,
        "event_time": slide.event_time_us,
        "run": slide.run,
        "source_sha256": slide.sha256,
        "spec": slide.spec.name,
        "spec_digest": slide.spec.digest,
        "level": facts.level,
        "left_out": facts.left_out,
        "zarr_path": place.zarr if slide.spec.is_array_kept else None,
        "tags": [],
        "tag_rules": [],
        "factor_x": facts.factor_x,
        "factor_y": facts.factor_y,
        "mpp_x": None if scaling.mpp_x is None else scaling.mpp_x * facts.factor_x,
        "mpp_y": None if scaling.mpp_y is None else scaling.mpp_y * facts.factor_y,
        "crs": scaling.crs,
        "orientation": facts.orientation,
        "icc_sha256": facts.icc_sha256,
        "converted": facts.converted,
    }


def _place(windows: list[TileWindow], facts: ImageFacts) -> dict[str, object]:
    """Where chips lie in the full image, whose pixels need not be a whole number to one, and in the world."""
    found: dict[str, object] = {
        "level0_x": [math.floor(window.x * facts.factor_x + _NO_OFFSET) for window in windows],
        "level0_y": [math.floor(window.y * facts.factor_y + _NO_OFFSET) for window in windows],
    }
    whole = facts.transform
    if whole is None:
        return found | {"transform": [None] * len(windows), "footprint": [None] * len(windows)}
    transforms = [whole.moved(window.x, window.y) for window in windows]
    outlines = [footprint(one, window.width, window.height) for one, window in zip(transforms, windows, strict=True)]
    return found | {"transform": [one.numbers() for one in transforms], "footprint": outlines}


def _array(values: object, kind: pa.DataType) -> pa.Array:
    return values if isinstance(values, pa.Array) else pa.array(values, kind)
