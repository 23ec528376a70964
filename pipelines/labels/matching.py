"""Which sample a foreign label is about: by our id, then the payload's SHA-256, then a file name that only one sample has."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import isfinite
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.errors import RefusedError
from pipelines.geometry import rotated_of_corner_rows
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, sample_of_name
from pipelines.labels.table import KEY, SCHEMA

_SIDED = (LabelKind.BOX, LabelKind.ROTATED)
# Whether so many numbers (in shares or not) make a shape of the kind.
_FITS: dict[LabelKind, Callable[[int, bool], bool]] = {
    LabelKind.CLASS: lambda count, _: count == 0,
    LabelKind.NOTHING: lambda count, _: count == 0,
    LabelKind.BOX: lambda count, _: count == 4,
    LabelKind.ROTATED: lambda count, is_share: count == (8 if is_share else 5),
    LabelKind.POLYGON: lambda count, _: count >= 6 and count % 2 == 0,
    LabelKind.POLYLINE: lambda count, _: count >= 4 and count % 2 == 0,
    LabelKind.POINTS: lambda count, _: count >= 2 and count % 2 == 0,
    LabelKind.MASK: lambda count, _: count >= 2,
}
_UNSIZED = "labels in shares of a picture whose width and height are not known"
_OTHER_BYTES = "labels of a picture whose bytes are others now; kept, with the sha256 that was looked at"


@dataclass(frozen=True, slots=True)
class Matched:
    """Labels with their samples, and how many images of the file found one, none, or several."""

    rows: pa.Table
    by_id: int
    by_sha256: int
    by_name: int
    unmatched: tuple[str, ...]
    ambiguous: tuple[str, ...]
    losses: dict[str, int]


@dataclass(frozen=True, slots=True)
class LabelOrigin:
    """Where labels come from: written into each row. `digests`: the SHA-256 of each file by its path."""

    task: str
    author: str
    role: str = "annotator"
    guideline: str = ""
    now_us: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)


def match_labels(found: ForeignFile, samples: pa.Table, origin: LabelOrigin) -> Matched:
    """Give each label its sample.

    Args:
        found: the labels of one file.
        samples: the samples they may be about: key, and if there are any `payload_sha256`, `file_name`, `width`, `height`.
        origin: where the file came from.

    Raises:
        RefusedError: a label's numbers draw nothing.
    """
    _check_shapes(found.labels)
    drawn, known = _frame(found), _samples(samples)
    images = drawn.select("image", "sample", "sha256").unique(maintain_order=True).with_row_index("image_number")
    by_id = images.join(known.select("at", pl.col("id").alias("sample")), on="sample", how="inner")
    rest = images.join(by_id.select("image_number"), on="image_number", how="anti")
    hashed = known.filter(pl.col("payload_sha256") != "")
    by_sha, torn = _unique(rest.filter(pl.col("sha256") != ""), hashed, "sha256", "payload_sha256")
    rest = rest.join(by_sha.select("image_number"), on="image_number", how="anti").join(torn, on="image_number", how="anti")
    named = rest.with_columns(_base(pl.col("image")).alias("base")).filter(pl.col("base") != "")
    by_name, torn_names = _unique(named, known.filter(pl.col("base") != ""), "base", "base")
    places = pl.concat([part.select("image_number", "at") for part in (by_id, by_sha, by_name)])
    several = images.join(pl.concat([torn, torn_names]), on="image_number", how="semi")
    none = images.join(pl.concat([places.select("image_number"), several.select("image_number")]), on="image_number", how="anti")
    placed = drawn.join(images, on=["image", "sample", "sha256"], how="inner", maintain_order="left")
    placed = placed.join(places, on="image_number", how="inner", maintain_order="left")
    placed, losses = _usable(placed.join(known, on="at", how="left", maintain_order="left"))
    return Matched(
        _rows(placed, found, origin), len(by_id), len(by_sha), len(by_name), tuple(none["image"].to_list()),
        tuple(several["image"].to_list()), {**found.losses, **losses},
    )  # fmt: skip


def _usable(placed: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Labels whose place in pixels is known; and what a person should know of the others."""
    has_both = (pl.col("sha256") != "") & (pl.col("payload_sha256") != "")
    changed = len(placed.filter(has_both & (pl.col("sha256") != pl.col("payload_sha256"))))
    is_sized = ~pl.col("is_share") | ((pl.col("width") > 0) & (pl.col("height") > 0))
    sized = placed.filter(is_sized)
    counts = {_OTHER_BYTES: changed, _UNSIZED: len(placed) - len(sized)}
    return sized, {reason: count for reason, count in counts.items() if count}


def _frame(found: ForeignFile) -> pl.DataFrame:
    """The labels as columns; the one place where each is looked at by itself."""
    labels = found.labels
    return pl.DataFrame({
        "number": pl.Series(np.arange(len(labels))),
        "image": pl.Series([label.image for label in labels], dtype=pl.String),
        "sample": pl.Series([label.sample or sample_of_name(label.image) for label in labels], dtype=pl.String),
        "sha256": pl.Series([label.sha256 for label in labels], dtype=pl.String),
        "kind": pl.Series([str(label.kind) for label in labels], dtype=pl.String),
        "value": pl.Series([label.value for label in labels], dtype=pl.String),
        "geometry": _geometries(labels),
        "drawn_by": pl.Series([label.author for label in labels], dtype=pl.String),
        "source": pl.Series([label.source for label in labels], dtype=pl.String),
        "tool_id": pl.Series([label.tool_id for label in labels], dtype=pl.String),
        "made_us": pl.Series([label.made_us for label in labels], dtype=pl.Int64),
        "attributes": pl.Series(
            [_json(label.attributes) for label in labels], dtype=pl.String
        ),
        "is_share": pl.Series([label.is_share for label in labels], dtype=pl.Boolean),
    })  # fmt: skip


def _geometries(labels: list[Drawn]) -> pl.Series:
    """A list column out of flat numbers: Polars builds one out of tuples a hundred times as slowly."""
    ends = np.cumsum([0, *(len(label.geometry) for label in labels)], dtype=np.int64)
    numbers = np.fromiter(chain.from_iterable(label.geometry for label in labels), np.float64, int(ends[-1]))
    return pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(ends), pa.array(numbers))))


def _check_shapes(labels: list[Drawn]) -> None:
    """Refuse numbers that draw nothing: one wrong corner must not become a label that looks right.

    Raises:
        RefusedError: a label is not of the shape of its kind; the message names its picture.
    """
    for label in labels:
        count = len(label.geometry)
        if not _FITS[label.kind](count, label.is_share) or not all(map(isfinite, label.geometry)):
            where = label.source or label.image or label.sample
            raise RefusedError(f"{where[:200]}: {count} numbers are no {label.kind} of {label.value[:60]!r}; correct the file")
        if label.kind in _SIDED and not label.is_share and min(label.geometry[2:4]) < 0:
            raise RefusedError(
                f"{label.image[:200]}: a {label.kind} of {label.value[:60]!r} has a negative side; correct the file"
            )


def _json(attributes: dict[str, Any]) -> str:
    return msgspec.json.encode(attributes, order="deterministic").decode() if attributes else ""


def _samples(samples: pa.Table) -> pl.DataFrame:
    frame = pl.DataFrame(pl.from_arrow(samples))
    for name, kind in (
        ("payload_sha256", pl.String()),
        ("file_name", pl.String()),
        ("width", pl.Float64()),
        ("height", pl.Float64()),
    ):
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(None, dtype=kind).alias(name))
    return frame.select(
        *KEY,
        pl.col("payload_sha256").fill_null(""),
        pl.col("width").cast(pl.Float64).fill_null(0.0),
        pl.col("height").cast(pl.Float64).fill_null(0.0),
        pl.concat_str([pl.col(name).cast(pl.String) for name in KEY], separator="/").alias("id"),
        _base(pl.col("file_name").fill_null("")).alias("base"),
    ).with_row_index("at")


def _base(name: pl.Expr) -> pl.Expr:
    """A file name without folders and ending: tools change both."""
    return name.str.replace_all("\\", "/", literal=True).str.split("/").list.last().str.replace(r"\.[^.]*$", "")


def _unique(images: pl.DataFrame, known: pl.DataFrame, mine: str, theirs: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Images that exactly one sample fits, with it; and those that several fit."""
    single = known.filter(pl.col(theirs).is_unique()).select("at", pl.col(theirs).alias(mine))
    several = known.filter(~pl.col(theirs).is_unique()).select(pl.col(theirs).alias(mine)).unique()
    torn = images.join(several, on=mine, how="semi").select("image_number")
    return images.join(single, on=mine, how="inner"), torn


def _rows(placed: pl.DataFrame, found: ForeignFile, origin: LabelOrigin) -> pa.Table:
    """Rows of the table, in pixels, each with an id that the same label of the same file has again."""
    shared = _in_pixels(placed.filter(pl.col("is_share")))
    frame = pl.concat([placed.filter(~pl.col("is_share")), shared]).sort("number")
    digest = pl.col("source").replace_strict(dict(origin.digests), default="", return_dtype=pl.String).alias("source_sha256")
    frame = frame.with_columns(digest)
    parts = ["source_sha256", "image", "tool_id", "kind", "value"]
    names = frame.select(pl.concat_str(parts, separator="\x1f")).to_series().to_list()
    ids = [hashlib.sha256(f"{name}\x1f{at}".encode()).hexdigest()[:32] for at, name in _numbered(names)]
    now = pl.lit(origin.now_us).cast(pl.Int64)
    chosen_sha = pl.when(pl.col("sha256") != "").then("sha256").otherwise("payload_sha256")
    author = pl.when(pl.col("drawn_by") != "").then("drawn_by").otherwise(pl.lit(origin.author))
    made = frame.select(
        *KEY,
        *("kind", "value", "geometry", "attributes", "source_sha256"),
        pl.Series("label_id", ids, dtype=pl.String),
        chosen_sha.alias("payload_sha256"),
        author.alias("author"),
        _time(pl.when(pl.col("made_us") > 0).then("made_us").otherwise(now)).alias("made_at"),
        _time(now).alias("imported_at"),
        pl.lit(None, dtype=pl.Float64).alias("seconds"),
        pl.lit([], dtype=pl.List(pl.String)).alias("supersedes"),
        pl.col("tool_id").alias("source_label"),
        **{
            name: pl.lit(text)
            for name, text in (
                *(("task", origin.task), ("role", origin.role), ("guideline", origin.guideline), ("tool", found.tool)),
                ("state", "submitted"),
            )
        },
    )
    return made.select(SCHEMA.names).to_arrow().cast(SCHEMA)


def _in_pixels(shared: pl.DataFrame) -> pl.DataFrame:
    """Shares times the picture's sizes; the corners of a turned box become its centre, sides and degrees."""
    if shared.is_empty():
        return shared
    lengths = shared["geometry"].list.len().to_numpy().astype(np.int64)
    ends = np.cumsum([0, *lengths], dtype=np.int64)
    is_x = (np.arange(int(ends[-1])) - np.repeat(ends[:-1], lengths)) % 2 == 0
    sizes = np.where(is_x, *(np.repeat(shared[name].to_numpy(), lengths) for name in ("width", "height")))
    numbers = shared["geometry"].explode(empty_as_null=False).to_numpy() * sizes
    turned = (shared["kind"] == LabelKind.ROTATED).to_numpy()
    boxes = rotated_of_corner_rows(numbers[np.repeat(turned, lengths)].reshape(-1, 8))
    parts = ((~turned, lengths[~turned], numbers[np.repeat(~turned, lengths)]), (turned, np.full(len(boxes), 5), boxes.ravel()))
    return pl.concat([shared.filter(pl.Series(mine)).with_columns(_lists(sizes, flat)) for mine, sizes, flat in parts])


def _lists(lengths: npt.NDArray[np.int64], numbers: npt.NDArray[np.float64]) -> pl.Series:
    ends = np.cumsum([0, *lengths], dtype=np.int64)
    return pl.Series("geometry", pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(ends), pa.array(numbers))))


def _time(micros: pl.Expr) -> pl.Expr:
    return micros.cast(pl.Datetime("us", "UTC"))


def _numbered(names: list[str]) -> list[tuple[int, str]]:
    """Each name with how often it came before: a file may hold the same label twice."""
    seen: dict[str, int] = {}
    numbered = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        numbered.append((seen[name], name))
    return numbered
