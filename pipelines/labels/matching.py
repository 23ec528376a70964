"""Which sample a foreign label is about: by our id, then the payload's SHA-256, then a file name that only one sample has."""

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.labels.drawn import ForeignFile, sample_of_name
from pipelines.labels.table import KEY, SCHEMA

_UNSIZED = "labels in shares of a picture whose width and height are not known"
_OTHER_BYTES = "labels of a picture whose bytes have changed since (the sha256 is another)"


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
class Origin:
    """Where labels come from: written into each row."""

    task: str
    source_sha256: str
    author: str
    role: str = "annotator"
    guideline: str = ""
    now_us: int = 0


def match_labels(found: ForeignFile, samples: pa.Table, origin: Origin) -> Matched:
    """Give each label its sample.

    Args:
        found: the labels of one file.
        samples: the samples they may be about: key, and if there are any `payload_sha256`, `file_name`, `width`, `height`.
        origin: where the file came from.
    """
    drawn = _frame(found)
    known = _samples(samples)
    images = drawn.select("image", "sample", "sha256").unique(maintain_order=True).with_row_index("image_number")
    by_id = images.join(known.select("at", pl.col("id").alias("sample")), on="sample", how="inner")
    rest = images.join(by_id.select("image_number"), on="image_number", how="anti")
    by_sha, torn = _unique(
        rest.filter(pl.col("sha256") != ""), known.filter(pl.col("payload_sha256") != ""), "sha256", "payload_sha256"
    )
    rest = rest.join(by_sha.select("image_number"), on="image_number", how="anti").join(torn, on="image_number", how="anti")
    named = rest.with_columns(_base(pl.col("image")).alias("base")).filter(pl.col("base") != "")
    by_name, torn_names = _unique(named, known.filter(pl.col("base") != ""), "base", "base")
    matched = pl.concat([part.select("image_number", "at") for part in (by_id, by_sha, by_name)])
    several = pl.concat([torn, torn_names])
    none = images.join(matched, on="image_number", how="anti").join(several, on="image_number", how="anti")
    placed = drawn.join(images, on=["image", "sample", "sha256"], how="inner", maintain_order="left").join(
        matched, on="image_number", how="inner", maintain_order="left"
    ).join(known, on="at", how="left", maintain_order="left")  # fmt: skip
    losses = dict(found.losses)
    changed = placed.filter(
        (pl.col("sha256") != "") & (pl.col("payload_sha256") != "") & (pl.col("sha256") != pl.col("payload_sha256"))
    )
    if len(changed):
        losses[_OTHER_BYTES] = len(changed)
    unsized = placed.filter(pl.col("is_share") & ((pl.col("width") <= 0) | (pl.col("height") <= 0)))
    if len(unsized):
        losses[_UNSIZED] = len(unsized)
    placed = placed.join(unsized.select("number"), on="number", how="anti", maintain_order="left")
    ambiguous = images.join(several, on="image_number", how="semi")["image"].to_list()
    return Matched(
        _rows(placed, found, origin), len(by_id), len(by_sha), len(by_name), tuple(none["image"].to_list()), tuple(ambiguous),
        losses,
    )  # fmt: skip


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
        "geometry": pl.Series([label.geometry for label in labels], dtype=pl.List(pl.Float64)),
        "drawn_by": pl.Series([label.author for label in labels], dtype=pl.String),
        "tool_id": pl.Series([label.tool_id for label in labels], dtype=pl.String),
        "made_us": pl.Series([label.made_us for label in labels], dtype=pl.Int64),
        "attributes": pl.Series(
            [_json(label.attributes) for label in labels], dtype=pl.String
        ),
        "is_share": pl.Series([label.is_share for label in labels], dtype=pl.Boolean),
    })  # fmt: skip


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


def _rows(placed: pl.DataFrame, found: ForeignFile, origin: Origin) -> pa.Table:
    """Rows of the table, in pixels, each with an id that the same label of the same file has again."""
    sizes = pl.concat_list(pl.col("width"), pl.col("height"), pl.col("width"), pl.col("height"))
    shared = placed.filter(pl.col("is_share")).with_columns(pl.col("geometry") * sizes)
    frame = pl.concat([placed.filter(~pl.col("is_share")), shared]).sort("number")
    names = frame.select(pl.concat_str(["image", "tool_id", "kind", "value"], separator="\x1f")).to_series().to_list()
    ids = [hashlib.sha256(f"{origin.source_sha256}\x1f{name}\x1f{at}".encode()).hexdigest()[:32] for at, name in _numbered(names)]
    now = pl.lit(origin.now_us).cast(pl.Int64)
    chosen_sha = pl.when(pl.col("sha256") != "").then("sha256").otherwise("payload_sha256")
    author = pl.when(pl.col("drawn_by") != "").then("drawn_by").otherwise(pl.lit(origin.author))
    made = frame.select(
        *KEY,
        *("kind", "value", "geometry", "attributes"),
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
                *(("state", "submitted"), ("source_sha256", origin.source_sha256)),
            )
        },
    )
    return made.select(SCHEMA.names).to_arrow().cast(SCHEMA)


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
