"""What to look at next: the rows of a stream that are alike, rare, uncertain, or on which two columns disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RefusedError
from pipelines.mining.index import EmbeddingIndex
from pipelines.mining.key_index import KeyIndex
from pipelines.mining.rows import NO_PLACES, Places, RowFilter, StreamRows, sample_ids
from pipelines.mining.vectors import Float32s
from pipelines.training.thin import mixed_numbers

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]
REFERENCES = 1_000
_FIRST_REFERENCES = 64
_LABEL, _SCORE, _MARGIN = "_label", "_score", "_margin"
_SHOWN_NUMBERS = 4


class Pick(msgspec.Struct, frozen=True):
    """One sample: its name, the score it was picked by, and what of its row explains the score."""

    sample: str
    score: float
    facts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Picked:
    """Places of rows, the first to look at first, what `score` means, and the columns that explain it."""

    places: Places
    score_name: str
    columns: tuple[str, ...]


def similar(
    index: EmbeddingIndex,
    keys: KeyIndex,
    samples: Sequence[str],
    count: int,
    only: RowFilter,
    *,
    is_exact: bool,
) -> Picked:
    """The rows whose embedding is most like that of one of the samples; the samples themselves are not among them.

    Raises:
        RefusedError: a sample has no vector.
        NotFoundError: a sample is not in the stream.
    """
    own_places = keys.find(samples)
    has, units = index.units(own_places)
    if not has.all():
        lacking = samples[int(np.flatnonzero(~has)[0])]
        raise RefusedError(f"{lacking}: the sample has no vector of {index.dimensions} numbers in {index.column}")
    found = index.search(units, count + len(samples), only, is_exact=is_exact)
    own = set(zip(own_places.file.tolist(), own_places.row.tolist(), strict=True))
    return Picked(_distinct(found, own).best(count), "cosine", ())


def rare(
    rows: StreamRows,
    index: EmbeddingIndex,
    keys: KeyIndex,
    count: int,
    only: RowFilter,
    *,
    seed: int,
    references: int = REFERENCES,
) -> Picked:
    """The rows whose embedding is farthest from all of a seeded sample of the stream.

    A sample, not all rows: copies of an oddity do not hide each other, and the cost grows with the rows alone.
    """
    chosen = _references(rows, index, keys, seed, references)
    _, units = index.units(chosen)
    found = NO_PLACES
    for number in range(len(rows.files)):
        own = np.flatnonzero(chosen.file == number)
        own = own[np.argsort(chosen.row[own])]
        for row, vectors in index.vectors(number, only):
            # A row that is a reference itself is not compared with itself.
            at = np.minimum(np.searchsorted(chosen.row[own], row), max(len(own) - 1, 0))
            itself = np.where(chosen.row[own[at]] == row, own[at], -1) if len(own) else np.full(len(row), -1)
            least = float(found.score[-1]) if len(found.score) == count else -np.inf
            kept, distance = _farthest(vectors, units, itself, least)
            found = found.joined(Places(np.full(len(kept), number, np.int64), row[kept], distance)).best(count)
    return Picked(found, "distance", ())


def _farthest(vectors: Float32s, references: Float32s, itself: Int64s, least: float) -> tuple[Int64s, Float64s]:
    """The rows whose distance to the nearest reference is at least `least`, and their distances.

    With each reference a row can only come nearer: those that are near enough already are not compared with the rest.

    Args:
        vectors: (rows, dimensions) of length 1.
        references: (references, dimensions) of length 1.
        itself: (rows,) the reference that a row is, with which it is not compared; -1: none.
        least: distance below which a row does not matter.
    """
    left, nearest = np.arange(len(vectors)), np.full(len(vectors), -1.0, np.float32)
    low = 0
    while low < len(references) and len(left):
        high = min(len(references), max(_FIRST_REFERENCES, 2 * low))
        cosine = vectors[left] @ references[low:high].T
        own = np.flatnonzero((itself[left] >= low) & (itself[left] < high))
        cosine[own, itself[left[own]] - low] = -1.0
        nearest[left] = np.maximum(nearest[left], cosine.max(axis=1))
        left = left[1.0 - nearest[left].astype(np.float64) >= least]
        low = high
    return left, 1.0 - nearest[left].astype(np.float64)


def uncertain(rows: StreamRows, columns: Sequence[str], count: int, only: RowFilter) -> Picked:
    """The rows of which a model is least sure: the score is 1 - margin or 1 - score, the largest over the columns.

    Raises:
        RefusedError: there is no such column of numbers.
    """
    chosen = tuple(columns) or _defaults(rows.schema)
    for name in chosen:
        if name not in rows.schema.names or not pa.types.is_floating(rows.schema.field(name).type):
            raise RefusedError(f"no column of scores {name[:80]!r}; there are {', '.join(_scores(rows.schema)) or 'none'}")
    found = NO_PLACES
    for block in rows.blocks(tuple(dict.fromkeys((*chosen, *only.columns)))):
        doubt = np.stack([_doubt(block.rows.column(name)) for name in chosen])
        found = found.joined(_finite(block.file, block.first, doubt.max(axis=0), only.mask(block.rows))).best(count)
    labels = tuple(name for column in chosen if (name := _label_of(column)) in rows.schema.names)
    return Picked(found, "uncertainty", tuple(dict.fromkeys((*labels, *chosen))))


def disagreeing(
    rows: StreamRows, columns: Sequence[str], count: int, only: RowFilter, labelled: pl.DataFrame | None = None
) -> Picked:
    """The rows on which label columns differ, the ones that both sides are surest of first.

    Args:
        rows: the stream.
        columns: label columns; empty: all that end with `_label`.
        count: how many.
        only: which rows may be picked.
        labelled: device, epoch, seq and `class` of what people labelled, as one more side; None: columns alone.

    Raises:
        RefusedError: there are not two sides.
    """
    chosen = tuple(columns) or tuple(field.name for field in rows.schema if field.name.endswith(_LABEL))
    missing = [name for name in chosen if name not in rows.schema.names or not pa.types.is_string(rows.schema.field(name).type)]
    if missing:
        raise RefusedError(f"{missing[0][:80]!r} is no column of labels")
    if len(chosen) + (labelled is not None) < 2:
        raise RefusedError("two sides are needed: two label columns (--between a_label,b_label), or one and a task (--task)")
    scores = {name: score for name in chosen if (score := _score_of(name)) in rows.schema.names}
    key = ("device", "epoch", "seq") if labelled is not None else ()
    wanted = tuple(dict.fromkeys((*chosen, *scores.values(), *key, *only.columns)))
    found = NO_PLACES
    for block in rows.blocks(wanted):
        sides = [(block.rows.column(name), _sureness(block.rows, scores.get(name))) for name in chosen]
        if labelled is not None:
            frame = pl.DataFrame(pl.from_arrow(block.rows.select(list(key))))
            classes = frame.join(labelled, on=list(key), how="left", maintain_order="left")["class"].to_arrow()
            sides.append((pa.chunked_array([classes.cast(pa.string())]), np.ones(len(block.rows))))
        sure = np.full(len(block.rows), np.nan)
        for (one, one_sure), (other, other_sure) in combinations(sides, 2):
            differ = np.asarray(pc.fill_null(pc.not_equal(one, other), fill_value=False).to_numpy(), bool)
            sure = np.fmax(sure, np.where(differ, np.fmin(one_sure, other_sure), np.nan))
        found = found.joined(_finite(block.file, block.first, sure, only.mask(block.rows))).best(count)
    return Picked(found, "confidence", (*chosen, *dict.fromkeys(scores.values())))


def describe(rows: StreamRows, picked: Picked, private: frozenset[str] = frozenset()) -> tuple[list[Pick], pa.Table]:
    """The picks with their names, and the rows that they are of, with the places of their payloads."""
    payload = ("payload_shard", "payload_offset", "payload_length", "payload_row")
    extra = ("event_time", *picked.columns, "tags", *payload)
    columns = tuple(dict.fromkeys((*rows.key, *(name for name in extra if name in rows.schema.names))))
    table = rows.fetch(picked.places, columns)
    names = sample_ids(rows.stream, table, rows.key)
    shown = [name for name in columns if name not in {*rows.key, *payload}]
    facts = [
        {name: "(private)" if name in private else _text(row[name]) for name in shown if row[name] is not None}
        for row in table.select(shown).to_pylist()
    ] if shown else [{} for _ in names]  # fmt: skip
    scores = picked.places.score.tolist()
    return [Pick(*parts) for parts in zip(names, scores, facts, strict=True)], table


def _references(rows: StreamRows, index: EmbeddingIndex, keys: KeyIndex, seed: int, count: int) -> Places:
    """A seeded sample of the rows that have a vector: the same ones whatever files they lie in."""
    found = NO_PLACES
    for number in range(len(rows.files)):
        row = index.vector_rows(number)
        score = -mixed_numbers(keys.numbers(number)[row], seed, "rare").astype(np.float64)
        least = np.argpartition(-score, count)[:count] if len(row) > count else np.arange(len(row))
        found = found.joined(Places(np.full(len(least), number, np.int64), row[least], score[least])).best(count)
    return found


def _distinct(found: Places, without: set[tuple[int, int]]) -> Places:
    """Each place once, with its best score, but for some."""
    best: dict[tuple[int, int], float] = {}
    for file, row, score in zip(found.file.tolist(), found.row.tolist(), found.score.tolist(), strict=True):
        if (file, row) not in without:
            best[file, row] = max(score, best.get((file, row), -2.0))
    places = np.array(list(best), np.int64).reshape(-1, 2)
    return Places(places[:, 0], places[:, 1], np.array(list(best.values()), np.float64))


def _finite(file: int, first: int, scores: Float64s, allowed: npt.NDArray[np.bool_]) -> Places:
    row = np.flatnonzero(np.isfinite(scores) & allowed)
    return Places(np.full(len(row), file, np.int64), row + first, scores[row])


def _doubt(column: pa.ChunkedArray) -> Float64s:
    """1 - value; -inf where there is none, so that another column decides."""
    values = np.asarray(pc.fill_null(pc.cast(column, pa.float64()), float("nan")).to_numpy(), np.float64)
    return np.where(np.isfinite(values), 1.0 - values, -np.inf)


def _sureness(rows: pa.Table, score: str | None) -> Float64s:
    """How sure a side is; 1 where it does not say."""
    if score is None:
        return np.ones(len(rows))
    return np.asarray(pc.fill_null(pc.cast(rows.column(score), pa.float64()), 1.0).to_numpy(), np.float64)


def _scores(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if field.name.endswith((_MARGIN, _SCORE)) and pa.types.is_floating(field.type)]


def _defaults(schema: pa.Schema) -> tuple[str, ...]:
    """The margins, which compare the best two answers; of models that give none, the scores."""
    names = _scores(schema)
    margins = {name.removesuffix(_MARGIN) for name in names if name.endswith(_MARGIN)}
    found = tuple(name for name in names if name.endswith(_MARGIN) or name.removesuffix(_SCORE) not in margins)
    if not found:
        raise RefusedError(f"the stream has no column that ends with {_SCORE} or {_MARGIN}; name one (--score)")
    return found


def _score_of(label: str) -> str:
    return label.removesuffix(_LABEL) + _SCORE


def _label_of(score: str) -> str:
    return score.removesuffix(_MARGIN).removesuffix(_SCORE) + _LABEL


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.{_SHOWN_NUMBERS}g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
