"""How far people agree who labelled the same samples: Krippendorff's alpha with an interval, for classes and for shapes.

Alpha is 1 for full agreement and 0 for what chance gives; any number of authors and missing labels are fine. The computation is
that of K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011, Annenberg School for Communication Departmental
Papers 43), whose examples are in the tests. The interval draws samples with replacement: A. Zapf et al., "Measuring inter-rater
reliability for nominal data" (BMC Medical Research Methodology 16:93, 2016), found it to hold its level.
"""

from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.geometry import area_shape, matched_pairs, overlaps
from pipelines.labels.resolve import ResolveRule, current_labels, resolved_classes, votes_of
from pipelines.labels.table import KEY

RELIABLE = 0.667  # Krippendorff: below it not even tentative conclusions are sound
LEAST_OVERLAP = 0.5
_DRAWS = 2_000
_MAX_INTERVAL_UNITS = 100_000
_AREAS = ("box", "rotated", "polygon")
_Floats: TypeAlias = npt.NDArray[np.float64]
_Codes: TypeAlias = npt.NDArray[np.int64]


class Alpha(msgspec.Struct, frozen=True):
    """Krippendorff's alpha and its 95 % interval; None where nothing can be said: no unit has two values, or all are equal.

    `units` are what two or more authors labelled, `values` the labels of them.
    """

    alpha: float | None
    low: float | None
    high: float | None
    units: int
    values: int


class AuthorShare(msgspec.Struct, frozen=True):
    """An author: how many samples have a class by them, and how many of these the resolved one."""

    author: str
    samples: int
    same: int


class LabelAgreement(msgspec.Struct, frozen=True):
    """What a task's labels say of their authors. `mean_overlap` (IoU) is of shapes that two authors drew around one thing.

    `numbers` is alpha for classes that are all numbers, such as grades or counts: to miss by one is less than to miss by five.
    """

    samples: int
    by_several: int
    classes: Alpha
    shapes: Alpha
    mean_overlap: float | None
    authors: tuple[AuthorShare, ...]
    not_compared: dict[str, int] = {}
    numbers: Alpha | None = None

    @property
    def measures(self) -> tuple[tuple[str, Alpha], ...]:
        """What alpha was computed of, in words, and the alphas that say something."""
        every = (("classes", self.classes), ("the numbers they name", self.numbers), ("shapes", self.shapes))
        return tuple((what, alpha) for what, alpha in every if alpha is not None and alpha.alpha is not None)

    @property
    def words(self) -> tuple[str, ...]:
        """A sentence for each measure, where two or more authors labelled the same samples."""
        found = []
        for what, alpha in self.measures:
            span = f"{alpha.alpha:.3f} (95 %: {alpha.low:.3f} to {alpha.high:.3f})"
            weak = f"; below {RELIABLE}, too low to rely on" if alpha.alpha is not None and alpha.alpha < RELIABLE else ""
            found.append(f"agreement on {what}: Krippendorff's alpha {span} over {alpha.units:,} by several authors{weak}")
        return tuple(found)


def agreement_of(labels: pa.Table, rule: ResolveRule = "latest") -> LabelAgreement:
    """How far the authors of a task's labels agree.

    Args:
        labels: rows of a label table.
        rule: what an author is compared with: the class that this rule gives.
    """
    key = list(KEY)
    votes = votes_of(labels)
    units = votes.select(pl.struct(key).rank("dense").cast(pl.Int64)).to_series().to_numpy()
    values = votes["value"].rank("dense").cast(pl.Int64).to_numpy()
    resolved = pl.DataFrame(pl.from_arrow(resolved_classes(labels, rule))).select(*key, pl.col("value").alias("resolved"))
    judged = votes.join(resolved, on=key, how="left")
    same = judged.group_by("author").agg(pl.len().alias("samples"), (pl.col("value") == pl.col("resolved")).sum().alias("same"))
    authors = tuple(AuthorShare(str(name), int(all_), int(right)) for name, all_, right in same.sort("author").iter_rows())
    shapes, mean_overlap, left_out = _shape_agreement(current_labels(labels))
    per_sample = votes.group_by(key).len()
    return LabelAgreement(
        len(per_sample), len(per_sample.filter(pl.col("len") > 1)), nominal_alpha(units, values), shapes, mean_overlap, authors,
        left_out, _number_agreement(units, votes["value"]),
    )  # fmt: skip


def nominal_alpha(units: _Codes, values: _Codes, seed: int = 0) -> Alpha:
    """Alpha of classes: two values differ or they do not.

    Args:
        units: for each label a number of what it is about.
        values: for each label a number of its class.
        seed: of the draws for the interval.
    """
    units, is_paired = _paired(units)
    values = values[is_paired]
    if not len(units):
        return Alpha(None, None, None, 0, 0)
    unit_count, class_count = int(units.max()) + 1, int(values.max()) + 1
    cells, counts = np.unique(units * class_count + values, return_counts=True)
    table = np.zeros((unit_count, class_count))
    table[cells // class_count, cells % class_count] = counts
    # Units with equal counts are one pattern: drawing units is drawing how often each pattern comes.
    patterns, times = np.unique(table, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = np.vstack([times, rng.multinomial(unit_count, times / unit_count, size=_DRAWS)]).astype(np.float64)
    sizes = patterns.sum(axis=1)
    observed = drawn @ ((sizes**2 - (patterns**2).sum(axis=1)) / (sizes - 1))
    totals = drawn @ patterns
    size = totals.sum(axis=1)
    return _with_interval(observed / size, (size**2 - (totals**2).sum(axis=1)) / (size * (size - 1)), unit_count, len(units))


def interval_alpha(units: _Codes, values: _Floats, seed: int = 0) -> Alpha:
    """Alpha of numbers: two values differ by the square of their distance. Args are those of `nominal_alpha`."""
    units, is_paired = _paired(units)
    values = values[is_paired]
    if not len(units):
        return Alpha(None, None, None, 0, 0)
    middle = values - values.mean()
    sizes, sums, squares = (np.bincount(units, weights) for weights in (None, middle, middle**2))
    within = 2 * (sizes * squares - sums**2) / (sizes - 1)
    rng = np.random.default_rng(seed)
    moments = np.stack([within, sizes, sums, squares])
    draws = max(1, min(_DRAWS, _DRAWS * _MAX_INTERVAL_UNITS // max(len(sizes), _MAX_INTERVAL_UNITS)))
    picked = (moments[:, rng.integers(len(sizes), size=len(sizes))].sum(axis=1) for _ in range(draws))
    observed, size, total, square = np.stack([moments.sum(axis=1), *picked]).T
    return _with_interval(observed / size, 2 * (size * square - total**2) / (size * (size - 1)), len(sizes), len(units))


def _number_agreement(units: _Codes, classes: pl.Series) -> Alpha | None:
    """Alpha of classes that are numbers; None where one is none."""
    numbers = classes.cast(pl.Float64, strict=False)
    if not len(numbers) or numbers.null_count() or not numbers.is_finite().all():
        return None
    return interval_alpha(units, numbers.to_numpy())


def _paired(units: _Codes) -> tuple[_Codes, npt.NDArray[np.bool_]]:
    """Which labels are of units that have two or more, and these units numbered from 0."""
    _, codes, counts = np.unique(units, return_inverse=True, return_counts=True)
    is_paired = counts[codes] > 1
    return np.unique(codes[is_paired], return_inverse=True)[1].astype(np.int64), is_paired


def _with_interval(observed: _Floats, expected: _Floats, units: int, values: int) -> Alpha:
    """Alpha of the first place, and the interval of the others; draws in which all values are equal say nothing."""
    if expected[0] <= 0:
        return Alpha(None, None, None, units, values)
    kept = expected[1:] > 0
    drawn = 1 - observed[1:][kept] / expected[1:][kept]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) else (np.nan, np.nan)
    return Alpha(float(1 - observed[0] / expected[0]), float(low), float(high), units, values)


def _shape_agreement(labels: pl.DataFrame) -> tuple[Alpha, float | None, dict[str, int]]:
    """Alpha over the things that somebody drew: each author of the sample gives it a class, or did not see it."""
    key = list(KEY)
    drawn = labels.filter(pl.col("kind") != "class")
    several = drawn.filter(pl.col("author").n_unique().over(key) > 1)
    others = several.filter(~pl.col("kind").is_in([*_AREAS, "nothing"]))
    left_out = {f"{kind} labels": count for kind, count in others["kind"].value_counts().sort("kind").iter_rows()}
    units: list[int] = []
    values: list[str] = []
    shares: list[float] = []
    number = 0
    for rows in several.partition_by(key):
        authors = rows["author"].unique().sort().to_list()
        for thing in _things(rows.filter(pl.col("kind").is_in(_AREAS)), shares):
            units += [number] * len(authors)
            values += [thing.get(author, "") for author in authors]
            number += 1
    codes = np.unique(np.array(values, dtype=object), return_inverse=True)[1] if values else np.zeros(0, np.int64)
    mean = float(np.mean(shares)) if shares else None
    return nominal_alpha(np.array(units, np.int64), codes.astype(np.int64)), mean, left_out


def _things(rows: pl.DataFrame, shares: list[float]) -> list[dict[str, str]]:
    """What is drawn in a sample, as author and class; a shape of the next author joins the thing that it overlaps most."""
    things: list[dict[str, str]] = []
    outlines: list[object] = []
    for theirs in rows.sort("author", "label_id").partition_by("author", maintain_order=True):
        author = str(theirs["author"][0])
        names = theirs["value"].to_list()
        drawn = [area_shape(kind, numbers) for kind, numbers in zip(theirs["kind"], theirs["geometry"].to_list(), strict=True)]
        table = overlaps(drawn, outlines)
        joined = dict(matched_pairs(table, LEAST_OVERLAP))
        for at, (shape, name) in enumerate(zip(drawn, names, strict=True)):
            if at in joined:
                things[joined[at]][author] = name
                shares.append(float(table[at, joined[at]]))
            else:
                things.append({author: name})
                outlines.append(shape)
    return things
