"""Labels of slides carried to their chips: clipped, moved, with the share of the chip that they cover; and one class for a chip.

Chips are not cut again when a label changes: this is computed from the labels of one version whenever a set is built. Shapes of
labels are in pixels of the full slide, those of chips in pixels of the chip; (0, 0) is the outer corner of the first pixel in
both, and nothing is moved by half a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.errors import RefusedError
from pipelines.geometry import area_shape, polygon_numbers, polygonal
from pipelines.labels.drawn import LabelKind
from pipelines.labels.resolve import NOTHING_CLASS, current_labels
from pipelines.labels.run_lengths import Mask, mask_of, part_of, runs_of
from schemas.chip_contract import slide_stream

SLIDE_KEY = ("device", "epoch", "seq")
WINDOW = ("x", "y", "width", "height")
ChipRuleName = Literal["any", "majority", "centre", "fraction"]
_AREAS = (LabelKind.BOX, LabelKind.ROTATED, LabelKind.POLYGON)
_MARKS = (LabelKind.POINTS, LabelKind.POLYLINE)
_NUMBERS = pa.list_(pa.float64())
SHAPE = pa.struct([
    ("label", pa.string()), ("kind", pa.string()), ("x", pa.float64()), ("y", pa.float64()), ("width", pa.float64()),
    ("height", pa.float64()), ("geometry", _NUMBERS), ("covered", pa.float64()), ("kept", pa.float64()),
    ("truncated", pa.bool_()), ("label_id", pa.string()),
])  # fmt: skip
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ChipRule:
    """How one class of a chip follows from the shapes on it. Shares are of the chip's part inside the slide.

    `name`: "any" takes the class that covers most, however little; "majority" one that covers more than any other and than what
    is uncovered, a tie gives none; "centre" that of the smallest shape over the chip's centre; "fraction" the one that covers
    most, if that is at least `fraction`. Points and lines count for "any" alone.
    """

    name: ChipRuleName = "majority"
    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class ChipLabels:
    """For each row its class (null: nobody labelled its slide; "nothing": somebody did, and no class holds) and its shapes."""

    classes: pa.StringArray
    shapes: pa.ListArray


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Labels on chips: which chip, class, and the share of the chip covered; `drawn` are the shapes to be shown.

    Columns of `frame`: `is_centre`, whether it is over the chip's centre; `size`, the whole label's area. `clipped`: the polygon
    of each pair that has one.
    """

    frame: pl.DataFrame
    clipped: Sequence[Any]
    drawn: list[tuple[int, dict[str, Any]]]


def labels_on_chips(rows: pa.Table, labels: pa.Table, rule: ChipRule) -> ChipLabels:
    """Carry labels to chips.

    Args:
        rows: of chips: `stream`, the slide's key, `x`, `y`, `width`, `height`, `level`, and if there are `factor_x`, `factor_y`.
        labels: rows of a label table, about the slides.
        rule: gives a chip its class.

    Raises:
        RefusedError: a chip's place on the full slide is not known.
    """
    current = current_labels(labels)
    slides = pl.DataFrame(pl.from_arrow(rows.select(["stream", *SLIDE_KEY]))).with_row_index("at")
    windows, factors = _windows(rows)
    classes: npt.NDArray[np.object_] = np.full(len(rows), None, dtype=object)
    shapes: list[list[dict[str, Any]]] = [[] for _ in range(len(rows))]
    by_slide = {tuple(map(str, key)): part for key, part in current.group_by("stream", *SLIDE_KEY)}
    for key, part in slides.group_by("stream", *SLIDE_KEY, maintain_order=True):
        stream, *rest = map(str, key)
        found = by_slide.get((slide_stream(stream), *rest))
        if found is None:
            continue
        at = part["at"].to_numpy().astype(np.int64)
        pairs = _pairs(found, windows[at], factors[at])
        areas: _Floats = np.prod(windows[at, 2:] - windows[at, :2], axis=1)
        classes[at] = _classes(pairs, areas, rule)
        for chip, shape in pairs.drawn:
            shapes[at[chip]].append(shape)
    return ChipLabels(pa.array(classes.tolist(), pa.string()), pa.array(shapes, pa.list_(SHAPE)))


def _windows(rows: pa.Table) -> tuple[_Floats, _Floats]:
    """(n, 4) left, top, right, bottom of each chip on the full slide, and (n, 2) its pixels to one of the chip."""
    names = ("factor_x", "factor_y")
    if set(names) <= set(rows.schema.names):
        factors = np.column_stack([rows.column(name).to_numpy().astype(np.float64) for name in names])
    else:
        factors = np.full((len(rows), 2), np.nan)
    is_full = rows.column("level").to_numpy() == 0
    factors[np.isnan(factors) & is_full[:, None]] = 1.0
    if np.isnan(factors).any():
        raise RefusedError("chips of a higher level whose factor is not known; cut them again (`catchment chips cut`)")
    x, y, width, height = (rows.column(name).to_numpy().astype(np.float64) for name in WINDOW)
    corners = np.column_stack([x, y, x + width, y + height])
    return corners * np.tile(factors, 2), factors


def _pairs(labels: pl.DataFrame, windows: _Floats, factors: _Floats) -> _Pairs:
    import shapely  # noqa: PLC0415 - see pipelines.geometry

    chips = shapely.box(*windows.T)
    centres = (windows[:, :2] + windows[:, 2:]) / 2
    parts: list[_Pairs] = [
        _areas(labels.filter(pl.col("kind").is_in(_AREAS)), chips, windows, factors, centres),
        _masks(labels.filter(pl.col("kind") == LabelKind.MASK), windows, factors, centres),
        _marks(labels.filter(pl.col("kind").is_in(_MARKS)), chips, windows, factors),
    ]
    frames = [part.frame for part in parts]
    return _Pairs(
        pl.concat(frames), [each for part in parts for each in part.clipped], [each for part in parts for each in part.drawn]
    )


def _frame(chip: Any, label: Sequence[str], covered: Any, is_centre: Any, size: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "chip": np.asarray(chip, np.int64),
            "label": pl.Series(label, dtype=pl.String),
            "covered": np.asarray(covered, np.float64),
            "is_centre": np.asarray(is_centre, np.bool_),
            "size": np.asarray(size, np.float64),
        }
    )


def _areas(labels: pl.DataFrame, chips: Any, windows: _Floats, factors: _Floats, centres: _Floats) -> _Pairs:
    """Boxes, turned boxes and polygons, clipped exactly."""
    import shapely  # noqa: PLC0415 - see pipelines.geometry

    whole = np.array(
        [polygonal(area_shape(kind, geometry)) for kind, geometry in labels.select("kind", "geometry").iter_rows()], dtype=object
    )
    if not len(whole):
        return _Pairs(_frame([], [], [], [], []), [], [])
    chip, label = shapely.STRtree(whole).query(chips, predicate="intersects")
    clipped = shapely.intersection(chips[chip], whole[label])
    area = shapely.area(clipped)
    chip, label, clipped, area = (each[area > 0] for each in (chip, label, clipped, area))
    order = np.lexsort((label, chip))
    chip, label, clipped, area = (each[order] for each in (chip, label, clipped, area))
    size = shapely.area(whole)[label]
    covered = area / shapely.area(chips[chip])
    names = labels["value"].to_list()
    over = shapely.contains_xy(whole[label], *centres[chip].T)
    drawn: list[tuple[int, dict[str, Any]]] = []
    ids, kinds = labels["label_id"].to_list(), labels["kind"].to_list()
    for at, (one, which) in enumerate(zip(chip.tolist(), label.tolist(), strict=True)):
        kept = min(1.0, area[at] / size[at])
        carried = {
            "label": names[which],
            "covered": covered[at],
            "kept": kept,
            "truncated": kept < 1 - 1e-9,
            "label_id": ids[which],
        }
        local = shapely.transform(clipped[at], lambda xy, one=one: (xy - windows[one, :2]) / factors[one])
        for piece in shapely.get_parts(local):
            if piece.geom_type == "Polygon" and piece.area > 0:
                kind = "box" if kinds[which] == "box" else "polygon"
                drawn.append((one, {**carried, "kind": kind, **_box(piece.bounds), "geometry": polygon_numbers(piece)}))
    return _Pairs(_frame(chip, [names[which] for which in label.tolist()], covered, over, size), list(clipped), drawn)


def _box(bounds: tuple[float, float, float, float]) -> dict[str, float]:
    left, top, right, bottom = map(float, bounds)
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def _masks(labels: pl.DataFrame, windows: _Floats, factors: _Floats, centres: _Floats) -> _Pairs:
    """Masks of the slide's size, taken at the nearest pixel."""
    frames = [_frame([], [], [], [], [])]
    drawn: list[tuple[int, dict[str, Any]]] = []
    for value, geometry, label_id in labels.select("value", "geometry", "label_id").iter_rows():
        mask = mask_of(tuple(geometry))
        total = int(np.count_nonzero(mask))
        for chip, window in enumerate(windows):
            part = _under(mask, window, factors[chip])
            count = int(np.count_nonzero(part))
            if not count:
                continue
            row, column = (int(each) for each in centres[chip][::-1])
            over = row < mask.shape[0] and column < mask.shape[1] and bool(mask[row, column])
            frames.append(_frame([chip], [value], [count / part.size], [over], [total]))
            left, top, width, height, _ = part_of(part)
            kept = min(1.0, count * float(np.prod(factors[chip])) / total)
            drawn.append((chip, {
                "label": value, "kind": "mask", "x": left, "y": top, "width": width, "height": height, "geometry": runs_of(part),
                "covered": count / part.size, "kept": kept, "truncated": kept < 1 - 1e-9, "label_id": label_id,
            }))  # fmt: skip
    frame = pl.concat(frames)
    return _Pairs(frame, [None] * len(frame), drawn)


def _under(mask: Mask, window: _Floats, factor: _Floats) -> Mask:
    """What of a mask lies under a chip, at the chip's resolution; outside the mask there is nothing."""
    sizes = np.maximum(1, np.rint((window[2:] - window[:2]) / factor)).astype(np.int64)
    columns, rows = (np.floor(window[axis] + (np.arange(sizes[axis]) + 0.5) * factor[axis]).astype(np.int64) for axis in (0, 1))
    part = np.zeros((int(sizes[1]), int(sizes[0])), np.bool_)
    there = np.ix_(rows < mask.shape[0], columns < mask.shape[1])
    part[there] = mask[np.ix_(rows[rows < mask.shape[0]], columns[columns < mask.shape[1]])]
    return part


def _marks(labels: pl.DataFrame, chips: Any, windows: _Floats, factors: _Floats) -> _Pairs:
    """Points and lines: they lie on a chip or do not, and cover nothing. A point on an edge is on the chip that begins there."""
    import shapely  # noqa: PLC0415 - see pipelines.geometry

    chip_of: list[int] = []
    names: list[str] = []
    drawn: list[tuple[int, dict[str, Any]]] = []
    for kind, value, geometry, label_id in labels.select("kind", "value", "geometry", "label_id").iter_rows():
        points = np.array(geometry, np.float64).reshape(-1, 2)
        for chip, on in _on_chips(kind, points, chips, windows):
            local = (on - windows[chip, :2]) / factors[chip]
            kept = 1.0 if kind == LabelKind.POLYLINE and shapely.covers(chips[chip], shapely.LineString(points)) else np.nan
            kept = len(on) / len(points) if kind == LabelKind.POINTS else kept
            box = _box((*local.min(axis=0), *local.max(axis=0)))
            chip_of.append(chip)
            names.append(value)
            drawn.append((chip, {
                "label": value, "kind": kind, **box, "geometry": local.ravel().tolist(), "covered": 0.0,
                "kept": None if np.isnan(kept) else kept, "truncated": not kept >= 1, "label_id": label_id,
            }))  # fmt: skip
    nothing = np.zeros(len(chip_of))
    return _Pairs(_frame(chip_of, names, nothing, nothing.astype(np.bool_), nothing), [None] * len(chip_of), drawn)


def _on_chips(kind: str, points: _Floats, chips: Any, windows: _Floats) -> list[tuple[int, _Floats]]:
    """The chips that points or a line lie on, each with what of them does; a line in several pieces is one piece for each."""
    import shapely  # noqa: PLC0415 - see pipelines.geometry

    if kind == LabelKind.POINTS:
        within = (points[None] >= windows[:, None, :2]) & (points[None] < windows[:, None, 2:])
        inside: npt.NDArray[np.bool_] = within[..., 0] & within[..., 1]
        return [(int(chip), points[inside[chip]]) for chip in np.flatnonzero(np.any(inside, axis=1))]
    pieces = shapely.intersection(chips, shapely.LineString(points))
    return [
        (int(chip), shapely.get_coordinates(piece))
        for chip in np.flatnonzero(shapely.length(pieces) > 0)
        for piece in shapely.get_parts(pieces[chip])
        if piece.length > 0
    ]


def _classes(pairs: _Pairs, areas: _Floats, rule: ChipRule) -> npt.NDArray[np.object_]:
    """The class of each chip of a slide that somebody labelled; `areas` of the chips on the full slide."""
    classes: npt.NDArray[np.object_] = np.full(len(areas), NOTHING_CLASS, dtype=object)
    if rule.name == "centre":
        chosen = pairs.frame.filter("is_centre").sort("chip", "size", "label").unique("chip", keep="first")
    else:
        shares = _shares(pairs, areas)
        order = shares.sort("chip", "covered", "label", descending=[False, True, False])
        chosen = order.unique("chip", keep="first", maintain_order=True)
        if rule.name == "fraction":
            chosen = chosen.filter(pl.col("covered") >= rule.fraction)
        if rule.name == "majority":
            chosen = _majority(shares, chosen)
    for chip, label in chosen.select("chip", "label").iter_rows():
        classes[chip] = label
    return classes


def _majority(shares: pl.DataFrame, most: pl.DataFrame) -> pl.DataFrame:
    """Of the classes that cover most those that cover more than the rest of the chip; where two do equally, none."""
    others = shares.group_by("chip").agg(
        (1 - pl.col("covered").sum()).clip(0).alias("bare"), (pl.col("covered") == pl.col("covered").max()).sum().alias("firsts")
    )
    winning = most.join(others, on="chip", maintain_order="left").filter(pl.col("covered") > pl.col("bare"))
    return winning.with_columns(pl.when(pl.col("firsts") == 1).then("label").alias("label"))


def _shares(pairs: _Pairs, areas: _Floats) -> pl.DataFrame:
    """The share that each class covers of each chip; where shapes of one class overlap, what they cover together."""
    import shapely  # noqa: PLC0415 - see pipelines.geometry

    frame = pairs.frame.with_row_index("at")
    grouped = frame.group_by("chip", "label", maintain_order=True).agg(pl.col("covered").sum(), "at")
    covered: _Floats = grouped["covered"].to_numpy().copy()
    for place, (chip, at) in enumerate(grouped.select("chip", "at").iter_rows()):
        drawn = [pairs.clipped[each] for each in at if pairs.clipped[each] is not None]
        if len(drawn) == len(at) > 1:
            covered[place] = shapely.area(shapely.union_all(drawn)) / areas[chip]
    return grouped.select("chip", "label").with_columns(pl.Series("covered", np.minimum(covered, 1.0)))
