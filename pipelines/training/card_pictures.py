"""The picture sheet of a card: a few samples of each split, with the boxes, polygons and masks that people or columns give them.

A shape lies over its picture as SVG in the picture's own pixels, so the picture stays the bytes that it is.
"""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyvips

from catchment.runtime.plain import html_text
from pipelines.errors import UnreadableImageError
from pipelines.geometry import corners_of_rotated
from pipelines.imaging.picture_loader import open_header, shrink
from pipelines.labels.drawn import LabelKind
from pipelines.labels.run_lengths import mask_of
from pipelines.lake.payload import pread_exactly
from pipelines.training.manifest import Manifest, map_set_file, open_set_file

PICTURES = 24
_SIDE_PX = 256
_MAX_SOURCE_BYTES = 8 * 1024 * 1024
_MAX_SOURCE_PIXELS = 50_000_000
_MAX_MASK_PIXELS = 4_000_000
_MAX_SHAPES = 100
_MAX_POINTS = 1_000
_IMAGE_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_KEY = ("stream", "device", "epoch", "seq")
_BOX = ("x", "y", "width", "height")
_ROTATED_NUMBERS = 5
_HUES = 6
_MAX_NAMED = 30
_HIGHEST_REM = 9


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape over a picture: its kind, its numbers in source pixels as labels have them, and its class."""

    kind: str
    geometry: tuple[float, ...]
    name: str


def picture_sheet(manifest: Manifest, folder: Path, labels: pa.Table | None) -> str:
    """Pictures of each split in turn, with their shapes; payloads that are none, or too large, are skipped.

    Args:
        manifest: of the set.
        folder: where its files lie.
        labels: rows of the label table that the set's classes came from; None: the set's own columns alone.
    """
    if not manifest.has_payload:
        return ""
    splits = [name for name, rows in manifest.split_rows().items() if rows]
    share = -(-PICTURES // max(1, len(splits)))
    hues: dict[str, int] = {}
    drawn = [figure for split in splits for figure in _figures(manifest, folder, split, share, labels, hues)]
    if not drawn:
        return ""
    return f"<h2>Pictures</h2>{_legend(hues)}<div class=pictures>{''.join(drawn[:PICTURES])}</div>"


def _legend(hues: Mapping[str, int]) -> str:
    """The colours of the classes of shapes; a class beyond the sixth shares one."""
    spot = '<svg class=key viewBox="0 0 9 9"><rect class="s{}" width="9" height="9"/></svg>'
    shown = [(name, number) for name, number in hues.items() if name][:_MAX_NAMED]
    named = [f"<span>{spot.format(number % _HUES)}{html_text(name)}</span>" for name, number in shown]
    more = len(hues) - _MAX_NAMED
    return f"<p class=names>{''.join(named)}{f'<span>and {more:,} more</span>' if more > 0 else ''}</p>" if named else ""


def _figures(
    manifest: Manifest, folder: Path, split: str, count: int, labels: pa.Table | None, hues: dict[str, int]
) -> Iterator[str]:
    index = next(each for each in manifest.indexes if each.split == split)
    shards = manifest.shards_of(split)
    rows = pa.ipc.open_file(map_set_file(folder, index.path)).read_all().slice(0, min(count, shards[0].rows)) if shards else None
    if rows is None or not len(rows):
        return
    by_label = _label_shapes(rows, labels)
    with open_set_file(folder, shards[0].path) as file:
        for number, row in enumerate(rows.to_pylist()):
            if row["payload_length"] > _MAX_SOURCE_BYTES:
                continue
            body = pread_exactly(file.fileno(), row["payload_offset"], row["payload_length"])
            picture = _shrunk(body) if body is not None and body.startswith(_IMAGE_HEADS) else None
            if picture is not None:
                shapes = [*column_shapes(row), *by_label.get(number, [])]
                # A class has one colour on the whole sheet.
                for shape in shapes[:_MAX_SHAPES]:
                    hues.setdefault(shape.name, len(hues))
                yield _figure(picture, shapes[:_MAX_SHAPES], _caption(manifest, split, row, len(shapes)), hues)


def column_shapes(row: Mapping[str, Any]) -> Iterator[Shape]:
    """The shapes that a row's own columns hold: lists of structs of x, y, width and height, or of points."""
    for value in row.values():
        if not isinstance(value, list):
            continue
        for item in value:
            if not isinstance(item, dict):
                break
            name = next((str(item[key]) for key in ("label", "class", "value", "name") if item.get(key) is not None), "")
            if all(isinstance(item.get(side), (int, float)) for side in _BOX):
                yield Shape(LabelKind.BOX, tuple(float(item[side]) for side in _BOX), name)
            elif isinstance(points := item.get("points") or item.get("polygon") or item.get("geometry"), list):
                yield Shape(LabelKind.POLYGON, tuple(float(each) for each in points if isinstance(each, (int, float))), name)


def _label_shapes(rows: pa.Table, labels: pa.Table | None) -> dict[int, list[Shape]]:
    """The labels of rows as they stand: neither superseded nor rejected."""
    if labels is None or not set(_KEY) <= set(rows.schema.names):
        return {}
    frame = pl.DataFrame(pl.from_arrow(labels))
    gone = frame.select(pl.col("supersedes").explode().alias("label_id")).drop_nulls()
    current = frame.join(gone, on="label_id", how="anti").filter(pl.col("state") != "rejected")
    keys = pl.DataFrame(pl.from_arrow(rows.select(list(_KEY)))).with_row_index("row")
    found: dict[int, list[Shape]] = {}
    wanted = current.join(keys, on=list(_KEY)).sort("row", "label_id").select("row", "kind", "geometry", "value")
    for row, kind, geometry, value in wanted.iter_rows():
        if geometry:
            found.setdefault(row, []).append(Shape(kind, tuple(geometry), value or ""))
    return found


def _figure(picture: tuple[bytes, int, int], shapes: Sequence[Shape], caption: str, hues: Mapping[str, int]) -> str:
    body, width, height = picture
    over = "".join(draw_shape(shape, hues[shape.name], width, height) for shape in shapes)
    svg = f'<svg viewBox="0 0 {width} {height}" preserveAspectRatio="none" role="img">{over}</svg>' if over else ""
    image = f'<img alt="sample" width="{width}" height="{height}" src="data:image/jpeg;base64,{base64.b64encode(body).decode()}">'
    # No picture is higher than the row of the widest ones by far.
    fits = f"width:min(100%,calc({_HIGHEST_REM}rem*{width}/{height}))"
    return f"<figure><div class=shot style='{fits}'>{image}{svg}</div><figcaption>{caption}</figcaption></figure>"


def draw_shape(shape: Shape, number: int, width: int, height: int) -> str:
    """A shape as SVG; nothing for one whose numbers are none."""
    numbers = np.asarray(shape.geometry[: 2 * _MAX_POINTS] if shape.kind != LabelKind.MASK else shape.geometry[:2], np.float64)
    if not len(numbers) or not np.isfinite(numbers).all():
        return ""
    title, hue = f"<title>{html_text(shape.name or shape.kind)}</title>", f'class="s{number % _HUES}"'
    if shape.kind == LabelKind.BOX and len(numbers) == len(_BOX):
        (x, y), (wide, tall) = numbers[:2] + np.minimum(numbers[2:], 0), np.abs(numbers[2:])
        return f'<rect {hue} x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}">{title}</rect>'
    if shape.kind == LabelKind.MASK:
        return _mask(shape, hue, title)
    if shape.kind == LabelKind.ROTATED:
        if len(numbers) != _ROTATED_NUMBERS:
            return ""
        numbers = np.array(corners_of_rotated(numbers.tolist()))
    pairs = numbers[: len(numbers) // 2 * 2].reshape(-1, 2)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in pairs)
    if shape.kind == LabelKind.POINTS:
        spot = max(width, height) / 60
        return "".join(f'<circle {hue} cx="{x:.1f}" cy="{y:.1f}" r="{spot:.1f}">{title}</circle>' for x, y in pairs)
    element = "polyline" if shape.kind == LabelKind.POLYLINE else "polygon"
    return f'<{element} {hue} points="{points}">{title}</{element}>'


def _mask(shape: Shape, hue: str, title: str) -> str:
    """A mask as runs of its rows, thinned to at most 64 rows: a card is looked at, not trained on."""
    tall, wide = (int(each) for each in shape.geometry[:2]) if len(shape.geometry) > 2 else (0, 0)
    if not 0 < tall * wide <= _MAX_MASK_PIXELS:
        return ""
    mask = mask_of(shape.geometry)
    step = max(1, tall // 64)
    parts = []
    for y in range(0, tall, step):
        edges = np.flatnonzero(np.diff(np.concatenate(([0], mask[y].astype(np.int8), [0]))))
        parts += [f"M{low} {y}H{high}V{y + step}H{low}Z" for low, high in edges.reshape(-1, 2).tolist()]
    return f'<path {hue} d="{"".join(parts)}">{title}</path>' if parts else ""


def _caption(manifest: Manifest, split: str, row: Mapping[str, Any], shapes: int) -> str:
    label = (manifest.spec or {}).get("label")
    column = str(label.get("name", "label")) if isinstance(label, dict) else next(iter(manifest.split.stratify), "")
    value = row.get(column)
    shown = "" if value is None or isinstance(value, (list, dict)) else f"<b>{html_text(str(value))}</b> "
    count = f", {shapes:,} shapes" if shapes else ""
    sample = html_text("/".join(str(row.get(name, "")) for name in _KEY[1:]))
    return f"{shown}{html_text(split)}: {sample}{count}"


def _shrunk(body: bytes) -> tuple[bytes, int, int] | None:
    """A small JPEG, and the size of the picture itself; None for what cannot be decoded: a card shows what it can."""
    try:
        head = open_header(body, _MAX_SOURCE_PIXELS)
        small = shrink(body, _SIDE_PX, _SIDE_PX, _MAX_SOURCE_PIXELS)
        flat = small.flatten() if small.hasalpha() else small
        return bytes(flat.jpegsave_buffer(Q=80)), int(head.width), int(head.height)
    except (UnreadableImageError, pyvips.Error):
        return None
