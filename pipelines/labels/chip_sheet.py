"""The chips of one slide on one page: the slide put together from them, a heat map of a score, and some chips with their tags.

What lies on the page is what a set would get: chips without a picture are gray, and labels are drawn where they are carried to.
Pictures are decoded in a limited process.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyvips

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.plain import html_text
from pipelines.errors import NotFoundError, RefusedError
from pipelines.labels.chip_labels import ChipRule, labels_on_chips
from pipelines.labels.run_lengths import mask_of
from pipelines.lake.lake import Lake
from pipelines.policy.contact_sheet import Sheet, Thumbnails
from pipelines.policy.preview import ExampleRow
from pipelines.policy.thumbnail_child import AS_TILE, SIDE_PX

MAX_PICTURES = 4_096
MAP_PX = 1_200
SHOWN = 40
SHARES = ("tissue", "background", "white", "black", "valid")
_NO_PICTURE, _GROUND = 200, 255
_OUTLINE = (230, 0, 120)
_STOPS = np.array([[68, 1, 84], [33, 145, 140], [253, 231, 37]], np.float64)  # dark to bright, as in viridis
Canvas = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class ChipMap:
    """Where the chips of a slide lie on a page of `scale` page pixels to one of the level.

    Args:
        rows: the chips of one slide, one spec and one plane.
    """

    rows: pa.Table
    scale: float

    @classmethod
    def of(cls, rows: pa.Table) -> "ChipMap":
        """A map as large as the page allows."""
        sides = [pc.max(pc.add(rows.column(at), pc.cast(rows.column(size), pa.int64()))).as_py() for at, size in _SIDES]
        return cls(rows, min(1.0, MAP_PX / max(sides)))

    @property
    def boxes(self) -> npt.NDArray[np.int64]:
        """(n, 4) left, top, right and bottom of each chip on the page; neighbours share their edges."""
        columns = [self.rows.column(name).to_numpy().astype(np.float64) for name in ("x", "y", "width", "height")]
        left, top, width, height = columns
        edges = np.column_stack([left, top, left + width, top + height]) * self.scale
        return np.rint(edges).astype(np.int64)

    def blank(self) -> Canvas:
        """A white page."""
        boxes = self.boxes
        return np.full((max(1, int(boxes[:, 3].max())), max(1, int(boxes[:, 2].max())), 3), _GROUND, np.uint8)


_SIDES = (("x", "width"), ("y", "height"))


def heat_map(chips: ChipMap, score: str) -> Canvas:
    """Each chip in the colour of its score: dark for low, bright for high; chips without one stay white.

    Raises:
        RefusedError: chips have no such score.
    """
    if score not in chips.rows.schema.names or not pa.types.is_floating(chips.rows.schema.field(score).type):
        raise RefusedError(f"{score[:60]!r} is no score of chips; {', '.join(SHARES)}, entropy and focus are")
    values = chips.rows.column(score).cast(pa.float64()).to_numpy()
    known = values[~np.isnan(values)]
    low, high = (0.0, 1.0) if score in SHARES or not len(known) else (float(known.min()), float(known.max()))
    page = chips.blank()
    shares = np.clip((values - low) / ((high - low) or 1.0), 0, 1)
    for share, (left, top, right, bottom) in zip(shares.tolist(), chips.boxes.tolist(), strict=True):
        if not np.isnan(share):
            first = min(int(share * (len(_STOPS) - 1)), len(_STOPS) - 2)
            weight = share * (len(_STOPS) - 1) - first
            page[top:bottom, left:right] = _STOPS[first] * (1 - weight) + _STOPS[first + 1] * weight
    return page


def overview(lake: Lake, chips: ChipMap) -> Canvas:
    """The slide put together from its chips' pictures; gray where a chip has none."""
    page = chips.blank()
    size = max(pc.max(chips.rows.column(name)).as_py() for name in ("width", "height"))
    references = [chips.rows.column(name).to_pylist() for name in _REFERENCES]
    with Thumbnails(AS_TILE) as thumbnails:
        for at, (left, top, right, bottom) in enumerate(chips.boxes.tolist()):
            shard, offset, length, row = (column[at] for column in references)
            body = thumbnails.make(lake.view().payload(shard, offset, length, row)) if shard is not None else None
            if body is None:
                page[top:bottom, left:right] = _NO_PICTURE
                continue
            page[top:bottom, left:right] = _fitted(body, size, (chips.rows, at), (right - left, bottom - top))
    return page


_REFERENCES = ("payload_shard", "payload_offset", "payload_length", "payload_row")


def _fitted(tile: bytes, size: int, chip: tuple[pa.Table, int], wanted: tuple[int, int]) -> Canvas:
    """The part of a thumbnail that is inside the slide, at the size that it has on the page."""
    rows, at = chip
    pixels = np.frombuffer(tile, np.uint8).reshape(SIDE_PX, SIDE_PX, 3)
    side = min(SIDE_PX, size)
    first = (SIDE_PX - side) // 2
    pixels = pixels[first : first + side, first : first + side]
    inside = [max(1, round(rows.column(name)[at].as_py() * side / size)) for name in ("width", "height")]
    across, down = (np.arange(pieces) * part // max(1, pieces) for pieces, part in zip(wanted, inside, strict=True))
    found: Canvas = pixels[np.ix_(down, across)]
    return found


def drawn_labels(page: Canvas, chips: ChipMap, labels: pa.Table) -> int:
    """Draw the shapes that labels give chips onto a page; how many pieces were drawn."""
    found = labels_on_chips(chips.rows, labels, ChipRule("any"))
    pieces = 0
    starts = np.column_stack([chips.rows.column(name).to_numpy() for name in ("x", "y")])
    for at, shapes in enumerate(found.shapes.to_pylist()):
        for shape in shapes:
            pieces += 1
            for ring in _outlines(shape):
                _draw(page, (ring + starts[at]) * chips.scale)
    return pieces


def _outlines(shape: dict[str, Any]) -> list[npt.NDArray[np.float64]]:
    """The points along a shape, in pixels of its chip."""
    if shape["kind"] == "mask":
        mask = mask_of(tuple(shape["geometry"]))
        inner = np.pad(mask, 1)
        whole = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        return [np.argwhere(mask & ~whole)[:, ::-1].astype(np.float64)]
    points = np.array(shape["geometry"], np.float64).reshape(-1, 2)
    if shape["kind"] == "points":
        return [points]
    ends = np.roll(points, -1, axis=0) if shape["kind"] != "polyline" else np.vstack([points[1:], points[-1:]])
    steps = np.maximum(2, np.ceil(np.abs(ends - points).max(axis=1)).astype(np.int64) + 1)
    return [np.linspace(a, b, count) for a, b, count in zip(points, ends, steps.tolist(), strict=True)]


def _draw(page: Canvas, points: npt.NDArray[np.float64]) -> None:
    column, row = np.floor(points).astype(np.int64).T
    inside = (column >= 0) & (row >= 0) & (column < page.shape[1]) & (row < page.shape[0])
    page[row[inside], column[inside]] = _OUTLINE


def png_of(page: Canvas) -> bytes:
    """A page as a PNG file."""
    height, width, bands = page.shape
    picture = pyvips.Image.new_from_memory(np.ascontiguousarray(page).tobytes(), width, height, bands, "uchar")
    body: bytes = picture.copy(interpretation="srgb").pngsave_buffer()
    return body


@dataclass(frozen=True, slots=True)
class ChipSheet:
    """The page of one slide: its chips (one spec), the score of the heat map, and labels to be drawn, if there are any."""

    lake: Lake
    title: str
    rows: pa.Table
    score: str = "tissue"
    labels: pa.Table | None = None

    def write(self, path: Path) -> int:
        """Write the page; its suffix says which form. The number of chips on it.

        Raises:
            NotFoundError: the slide has no chips.
            RefusedError: another suffix than .html and .png, too many chips, or no such score.
            CorruptLakeError: a payload is gone.
        """
        if path.suffix not in (".html", ".png"):
            raise RefusedError(f"{path}: a sheet of chips is .html or .png")
        if not len(self.rows):
            raise NotFoundError("this slide has no chips; `catchment quarantine show --stage chips` says whether it was refused")
        if len(self.rows) > MAX_PICTURES:
            raise RefusedError(
                f"{len(self.rows):,} chips are too many for a page ({MAX_PICTURES:,}); choose a spec of a smaller level"
            )
        chips = ChipMap.of(self.rows)
        slide, heat = overview(self.lake, chips), heat_map(chips, self.score)
        if self.labels is not None:
            for page in (slide, heat):
                drawn_labels(page, chips, self.labels)
        if path.suffix == ".png":
            gap = np.full((slide.shape[0], 16, 3), _GROUND, np.uint8)
            write_atomic(path, png_of(np.hstack([slide, gap, heat])), mode=0o644)
        else:
            self._sheet(slide, heat).write(path)
        return len(self.rows)

    def _sheet(self, slide: Canvas, heat: Canvas) -> Sheet:
        """Both maps above some chips, from the lowest to the highest score."""
        figures = "".join(
            f'<figure><img alt="" src="data:image/png;base64,{_encoded(page)}">{html_text(text)}</figure>'
            for page, text in ((slide, "the slide, put together from its chips"), (heat, f"{self.score}: dark is low"))
        )
        order = pc.sort_indices(self.rows, sort_keys=[(self.score, "ascending")])
        chosen = np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(np.int64))
        shown = self.rows.take(order.take(pa.array(chosen))).select(_shown_columns(self.rows.schema.names)).to_pylist()
        examples = [ExampleRow({name: _short(value) for name, value in row.items()}, tuple(row["tags"] or ())) for row in shown]
        return replace(Sheet(self.lake, self.title, examples), above=f"<section>{figures}</section>")


def _encoded(page: Canvas) -> str:
    return base64.b64encode(png_of(page)).decode()


def _shown_columns(names: Sequence[str]) -> list[str]:
    wanted = ("device", "epoch", "seq", "spec", "chip_index", "x", "y", *SHARES, "entropy", "focus", "tags", *_REFERENCES)
    return [name for name in wanted if name in names]


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
