"""How right a model is on samples of the lake that people labelled: by slice, with intervals, and for what was never uploaded.

A device that uploads the most telling samples first stores with each one the chance that it had (`upload_share`). A sample with a
chance of a tenth stands for ten (D. G. Horvitz and D. J. Thompson, JASA 47:260, 1952; as a ratio, J. Hájek, 1971): the share of
right answers is that of all samples the model saw, not of the odd ones that were sent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import polars as pl

from pipelines.errors import NotFoundError, RefusedError
from pipelines.labels.resolve import ResolveRule, resolved_classes
from pipelines.labels.table import read_labels
from pipelines.lake.lake import Lake
from pipelines.mining.rows import KEY, StreamRows
from schemas.edge_policy import UPLOAD_SHARE

SHARE = UPLOAD_SHARE
EVERYTHING = "all"
TIMES = {"day": "1d", "hour": "1h", "week": "1w"}
_NEEDED = ("model_name", "model_version", "predicted_label", "predicted_score")
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class RightShare:
    """A share of right answers with its 95 % interval, of the samples that were labelled, weighted by the chance they had."""

    samples: int
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class SliceFigures:
    """A model's answers on one slice.

    Attributes:
        by: what the slices are of: a column, `tag`, `day`, `hour` or `week`; `all`.
        value: of this one.
        right: share of right answers.
        mean_score: what the model thinks of itself there.
        is_worse: whether the slice is worse than the others together, at 5 % over all slices.
    """

    by: str
    value: str
    right: RightShare
    mean_score: float | None
    is_worse: bool = False


def right_share(right: Sequence[bool], shares: Sequence[float] | None = None, confidence: float = _CONFIDENCE) -> RightShare:
    """The share of right answers with an interval.

    Wilson's interval (JASA 22:209, 1927), at the number of plain samples that would be as precise as these weighted ones.

    Args:
        right: of each labelled sample.
        shares: the chance with which each one was uploaded, above 0 to 1; None: all were.
        confidence: of the interval.
    """
    weights = [1.0] * len(right) if shares is None else [1 / share for share in shares]
    total = sum(weights)
    if not total:
        return RightShare(0, math.nan, 0.0, 1.0)
    mean = sum(weight for weight, hit in zip(weights, right, strict=True) if hit) / total
    # With one right and one wrong sample more, of the usual weight: where all answers are alike there would be no spread.
    count, usual = len(right), total / len(right)
    smooth = (mean * count + 1) / (count + 2)
    squares = sum((weight * (hit - smooth)) ** 2 for weight, hit in zip(weights, right, strict=True))
    squares += usual**2 * ((1 - smooth) ** 2 + smooth**2)
    plain = smooth * (1 - smooth) / (squares / (total + 2 * usual) ** 2) * count / (count + 2)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (mean + z * z / (2 * plain)) / (1 + z * z / plain)
    half = z * math.sqrt(mean * (1 - mean) / plain + z * z / (4 * plain * plain)) / (1 + z * z / plain)
    return RightShare(len(right), mean, max(0.0, centre - half), min(1.0, centre + half))


def evaluate(
    lake: Lake,
    stream: str,
    model: str,
    task: str,
    by: Sequence[str] = (),
    version: int | None = None,
    rule: ResolveRule = "latest",
) -> list[SliceFigures]:
    """Compare what a model said of a stream's samples with what people say of them.

    Args:
        lake: the lake.
        stream: with the predictions.
        model: its name.
        task: of the labels.
        by: what to slice by: columns of the stream, `tag`, `day`, `hour` or `week`.
        version: of the model; None: all versions together.
        rule: which label of several counts.

    Raises:
        NotFoundError: no such stream or task, or no labelled sample that the model looked at.
        RefusedError: the stream has no predictions, or no such column.
    """
    frame = _judged(lake, stream, model, task, by, version, rule)
    whole = _figures(EVERYTHING, EVERYTHING, frame)
    slices = [(name, str(value), part) for name in by for value, part in _slices(frame, name)]
    return [whole, *(_compared(name, value, part, frame, len(slices)) for name, value, part in slices)]


def _judged(
    lake: Lake, stream: str, model: str, task: str, by: Sequence[str], version: int | None, rule: ResolveRule
) -> pl.DataFrame:
    rows = StreamRows(lake, stream)
    if missing := [name for name in _NEEDED if name not in rows.schema.names]:
        raise RefusedError(f"stream {stream} has no {', '.join(missing)}; its contract must have the columns of predictions")
    columns = {"tag": "tags", **dict.fromkeys(TIMES, "event_time")}
    sliced = {columns.get(name, name) for name in by}
    if unknown := sliced - set(rows.schema.names):
        raise RefusedError(f"stream {stream} has no column {', '.join(sorted(unknown))}; give one of it, tag, {', '.join(TIMES)}")
    optional = {SHARE} & set(rows.schema.names)
    wanted = list(dict.fromkeys([*KEY, *_NEEDED, *sorted(sliced | optional)]))
    labels, _ = read_labels(lake, task)
    truth = pl.DataFrame(pl.from_arrow(resolved_classes(labels, rule))).filter(pl.col("stream") == stream)
    of_model = pl.col("model_name") == model
    if version is not None:
        of_model &= pl.col("model_version") == version
    key = list(KEY)
    parts = [
        pl.DataFrame(pl.from_arrow(block.rows)).filter(of_model).join(truth.select(*key, "value"), on=key, how="inner")
        for block in rows.blocks(wanted)
    ]
    found = pl.concat(parts) if parts else pl.DataFrame()
    if found.is_empty():
        raise NotFoundError(f"no sample of {stream} that {model} looked at has a label of task {task}; label some: `label queue`")
    share = pl.col(SHARE).fill_null(1.0).cast(pl.Float64) if optional else pl.lit(1.0)
    return found.with_columns(
        (pl.col("predicted_label") == pl.col("value")).fill_null(value=False).alias("right"), share.alias(SHARE)
    )


def _slices(frame: pl.DataFrame, name: str) -> list[tuple[object, pl.DataFrame]]:
    if name == "tag":
        frame, column = frame.explode("tags").rename({"tags": "slice"}), pl.col("slice")
    elif name in TIMES:
        column = pl.col("event_time").dt.truncate(TIMES[name]).dt.strftime("%Y-%m-%dT%H:%MZ")
    else:
        column = pl.col(name).cast(pl.String)
    parts = frame.with_columns(column.alias("slice")).drop_nulls("slice").partition_by("slice", as_dict=True)
    return sorted(((value[0], part) for value, part in parts.items()), key=lambda pair: str(pair[0]))


def _figures(by: str, value: str, frame: pl.DataFrame) -> SliceFigures:
    score = frame["predicted_score"].mean()
    mean = float(score) if isinstance(score, int | float) else None
    return SliceFigures(by, value, right_share(frame["right"].to_list(), frame[SHARE].to_list()), mean)


def _compared(by: str, value: str, part: pl.DataFrame, frame: pl.DataFrame, slices: int) -> SliceFigures:
    """A slice next to all other samples, with intervals so wide that of all slices together one in twenty is blamed by chance."""
    found = _figures(by, value, part)
    others = frame.join(part.select(list(KEY)), on=list(KEY), how="anti")
    if others.is_empty():
        return found
    confidence = 1 - (1 - _CONFIDENCE) / slices
    here = right_share(part["right"].to_list(), part[SHARE].to_list(), confidence)
    there = right_share(others["right"].to_list(), others[SHARE].to_list(), confidence)
    # Newcombe, Statistics in Medicine 17:873 (1998), method 10: the interval of a difference of two shares.
    gap = there.share - here.share
    least = gap - math.hypot(there.share - there.low, here.high - here.share)
    return SliceFigures(by, value, found.right, found.mean_score, is_worse=least > 0)
