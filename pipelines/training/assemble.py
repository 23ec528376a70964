"""The rows of a set spec: streams joined in time, columns derived, classes mapped, and what was left out counted."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import ExpressionError, RefusedError
from pipelines.expressions.expression import compile_value
from pipelines.labels.agreement import agreement_of
from pipelines.labels.resolve import resolved_classes
from pipelines.labels.table import read_labels, task_table
from pipelines.lake.lake import Lake
from pipelines.training.asof import AsOf, join_as_of, seconds_as_us
from pipelines.training.grouping import group_rows, times_us
from pipelines.training.manifest import LeftOut, Source
from pipelines.training.near_duplicates import NO_GROUP, near_groups
from pipelines.training.select import (
    KEY,
    StreamBatches,
    expression_columns,
    filter_rows,
    stream_batches,
)
from pipelines.training.spec import (
    DerivedSpec,
    JoinSpec,
    LabelSpec,
    NearDuplicateSpec,
    SetSpec,
    parse_duration_s,
)
from pipelines.training.thin import capped, class_numbers, sampled

Int64s = npt.NDArray[np.int64]
GROUP_COLUMN = "split_group"
_KEY_OF_JOIN = ("device", "epoch", "seq", "event_time")
_MAX_DEVICES_BY_NAME = 1_000
_MAX_AUTHORS = 20


@dataclass(slots=True)
class Assembly:
    """Rows on their way through a spec, and what is to be said of them."""

    rows: pa.Table
    sources: list[Source] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def keep(self, kept: npt.NDArray[np.bool_], reason: str) -> None:
        """Keep some rows; the others are counted under a reason."""
        gone = len(kept) - int(kept.sum())
        if gone:
            self.rows = self.rows.filter(pa.array(kept))
            self.left_out.append(LeftOut(reason, gone))

    def replace(self, rows: pa.Table, reason: str) -> None:
        """Go on with fewer rows."""
        if len(rows) < len(self.rows):
            self.left_out.append(LeftOut(reason, len(self.rows) - len(rows)))
        self.rows = rows

    def add(self, name: str, values: pa.ChunkedArray | pa.Array) -> None:
        """Add a column.

        Raises:
            RefusedError: there is one of this name.
        """
        if name in self.rows.schema.names:
            raise RefusedError(f"there is a column {name} already; give the new one another name, or a join a prefix")
        self.rows = self.rows.append_column(name, values)


def assemble(lake: Lake, spec: SetSpec, rows: pa.Table) -> Assembly:
    """Take selected rows through the joins, columns, conditions, classes and limits of a spec.

    Raises:
        NotFoundError: no such stream or version.
        RefusedError: a column is missing or given twice, an expression does not fit, or a class is not listed.
        CorruptLakeError: a table cannot be read.
    """
    made = Assembly(rows)
    for join in spec.joins:
        _join(lake, made, join)
    for derived in spec.derive:
        with _named(f"derive {derived.name}"):
            _derive(made, derived)
    if spec.split.expression:
        with _named("split expression"):
            _derive(made, DerivedSpec(GROUP_COLUMN, spec.split.expression))
    with _named("where"):
        made.replace(filter_rows(made.rows, spec.where), "where is not true")
    if spec.label is not None:
        _classes(lake, made, spec.label)
    if spec.near_duplicates is not None and spec.near_duplicates.action == "drop":
        _drop_near_duplicates(made, spec.near_duplicates, spec.label)
    for cap in spec.caps:
        groups = group_rows(made.rows, cap.per)
        made.keep(capped(made.rows, groups.of_row, cap.rows, spec.seed), f"above {cap.rows:,} rows per {', '.join(cap.per)}")
    if spec.sample.share < 1 or spec.sample.rows:
        made.keep(sampled(made.rows, spec.seed, spec.sample.share, spec.sample.rows), "not in the sample")
    return made


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Name the key of the spec in an error of its expression."""
    try:
        yield
    except ExpressionError as error:
        raise ExpressionError(f"{key}: {error}") from error


def near_of(rows: pa.Table, rule: NearDuplicateSpec) -> Int64s:
    """The group of near-duplicates of each row.

    Raises:
        RefusedError: there is no such column of hashes, or too many rows to compare.
    """
    if rule.column not in rows.schema.names:
        raise RefusedError(
            f"no column {rule.column} of perceptual hashes; let a policy inspect the stream with `use: image`, or name the column"
        )
    if not pa.types.is_string(rows.schema.field(rule.column).type):
        raise RefusedError(f"{rule.column} holds {rows.schema.field(rule.column).type}, not hashes in hexadecimal")
    within_us = seconds_as_us(parse_duration_s(rule.within)) if rule.within else None
    return near_groups(rows.column(rule.column), rows.column("device"), times_us(rows), rule.bits, within_us)


def _join(lake: Lake, made: Assembly, join: JoinSpec) -> None:
    tolerance_us = seconds_as_us(parse_duration_s(join.tolerance))
    if join.pivot is None:
        names = {column: f"{join.prefix}{column}" for column in join.columns}
        wanted = [AsOf(names, tolerance_us, join.direction, join.age)]
    else:
        pivot = join.pivot
        wanted = [
            AsOf({pivot.value: f"{join.prefix}{name}"}, tolerance_us, join.direction, "", (pivot.name, name))
            for name in pivot.keep
        ]
    found = _candidates(lake, made.rows, join, tolerance_us)
    counted = _Counted(found)
    for joined, each in zip(join_as_of(made.rows, counted.batches(), wanted, found.schema), wanted, strict=True):
        for name in joined.columns.schema.names:
            made.add(name, joined.columns.column(name))
        lacking = len(made.rows) - joined.matched
        what = f"{join.stream} {each.where[1]}" if each.where else join.stream
        if lacking:
            made.notes.append(f"{lacking:,} of {len(made.rows):,} rows have no {what} within {join.tolerance}; they hold null")
    made.sources.append(Source(join.stream, found.version, counted.rows))


class _Counted:
    """Counts the rows that pass."""

    def __init__(self, found: StreamBatches) -> None:
        self._found = found
        self.rows = 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The batches."""
        for batch in self._found.batches:
            self.rows += batch.num_rows
            yield batch


def _candidates(lake: Lake, samples: pa.Table, join: JoinSpec, tolerance_us: int) -> StreamBatches:
    """The rows of a joined stream that can be near enough: of the samples' devices and times."""
    pivot = join.pivot
    columns = (*_KEY_OF_JOIN, *(join.columns if pivot is None else (pivot.name, pivot.value)))
    bounds: list[pc.Expression] = []
    times = pc.cast(samples.column("event_time"), pa.timestamp("us", "UTC"))
    span = pc.min_max(times).as_py()
    if span["min"] is not None:
        low, high = (pc.cast(pa.scalar(span[side], pa.timestamp("us", "UTC")), pa.int64()).as_py() for side in ("min", "max"))
        moments = [pa.scalar(each, pa.timestamp("us", "UTC")) for each in (low - tolerance_us, high + tolerance_us)]
        bounds += [pc.field("event_time") >= moments[0], pc.field("event_time") <= moments[1]]
    devices = pc.unique(samples.column("device"))
    if len(devices) <= _MAX_DEVICES_BY_NAME:
        bounds.append(pc.field("device").isin(devices))
    if pivot is not None:
        bounds.append(pc.field(pivot.name).isin(list(pivot.keep)))
    among = bounds[0] if bounds else None
    for bound in bounds[1:]:
        among = among & bound
    return stream_batches(lake, join.stream, columns, version=join.version, where=join.where, among=among)


def _derive(made: Assembly, derived: DerivedSpec) -> None:
    columns = expression_columns(made.rows.schema)
    value = compile_value(derived.value, columns, allow_tags="tags" in made.rows.schema.names).to_polars()
    frame = pl.DataFrame(pl.from_arrow(made.rows))
    computed = frame.select(value.alias(derived.name)).to_arrow().column(0)
    if pa.types.is_large_string(computed.type) or computed.type == pa.string_view():
        computed = pc.cast(computed, pa.string())
    made.add(derived.name, computed)


def _classes(lake: Lake, made: Assembly, label: LabelSpec) -> None:
    """The class column: mapped, merged, and what has none or another one treated as the spec says."""
    values = _labelled(lake, made, label) if label.task else _class_texts(made.rows, label.column)
    mapped = _mapped(values, label)
    if label.name in made.rows.schema.names:
        if label.name != label.column:
            raise RefusedError(f"there is a column {label.name} already; give the label another name")
        made.rows = made.rows.drop_columns([label.name])
    made.add(label.name, mapped)
    if label.other == "drop":
        unlisted = pc.and_(pc.is_valid(values), pc.is_null(mapped)).to_numpy()
        made.keep(~unlisted, "a class that is not listed")
    if label.unlabelled == "drop":
        made.keep(pc.is_valid(made.rows.column(label.name)).to_numpy(), "no class")


def _labelled(lake: Lake, made: Assembly, label: LabelSpec) -> pa.ChunkedArray:
    """What people said of each row, resolved by the spec's rule; null where nobody, or no majority, said anything."""
    labels, version = read_labels(lake, label.task, label.version)
    resolved = resolved_classes(labels, label.resolve)
    made.sources.append(Source(task_table(label.task), version, len(resolved)))
    key = list(KEY)
    found = pl.DataFrame(pl.from_arrow(resolved))
    frame = pl.DataFrame(pl.from_arrow(made.rows.select(key)))
    joined = frame.join(found, on=key, how="left", maintain_order="left")
    torn = int((joined["agreement"] < 1).sum())
    if torn:
        made.notes.append(f"{torn:,} rows have labels that differ between authors; `resolve: {label.resolve}` decided")
    made.notes += _label_notes(labels, made.rows, label, version)
    return pa.chunked_array([joined["value"].to_arrow().cast(pa.string())])


def _label_notes(labels: pa.Table, rows: pa.Table, label: LabelSpec, version: int) -> list[str]:
    """The labels' version and rule, who made them, and how far they agree on the rows of the set."""
    key = list(KEY)
    ours = pl.DataFrame(pl.from_arrow(labels)).join(pl.DataFrame(pl.from_arrow(rows.select(key))), on=key, how="semi")
    if ours.is_empty():
        return []
    found = agreement_of(ours.to_arrow().cast(labels.schema), label.resolve)
    authors = ", ".join(f"{author.author or '(unknown)'} {author.samples:,}" for author in found.authors[:_MAX_AUTHORS])
    more = f" and {len(found.authors) - _MAX_AUTHORS:,} others" if len(found.authors) > _MAX_AUTHORS else ""
    return [
        f"classes are labels of task {label.task} at version {version} by the rule {label.resolve}; labelled by {authors}{more}",
        *found.words,
    ]


def _class_texts(rows: pa.Table, column: str) -> pa.ChunkedArray:
    if column not in rows.schema.names:
        raise RefusedError(f"no column {column} for the label; there are {', '.join(rows.schema.names)}")
    if pa.types.is_nested(rows.schema.field(column).type):
        raise RefusedError(f"{column} holds {rows.schema.field(column).type}; a label is one class: derive one")
    return pc.cast(rows.column(column), pa.string())


def _mapped(values: pa.ChunkedArray, label: LabelSpec) -> pa.ChunkedArray:
    if not label.classes:
        return values
    names, targets = pa.array(list(label.classes), pa.string()), pa.array(list(label.classes.values()), pa.string())
    mapped = targets.take(pc.index_in(values, value_set=names).combine_chunks())
    unlisted = pc.and_(pc.is_valid(values), pc.is_null(mapped))
    if label.other == "keep":
        return pa.chunked_array([pc.coalesce(mapped, values.combine_chunks())])
    if label.other == "refuse" and pc.any(unlisted).as_py():
        others = sorted(pc.unique(values.filter(unlisted)).to_pylist())
        raise RefusedError(
            f"classes are not listed under label: {', '.join(others[:20])}; list them, or say what becomes of "
            "others (other: keep | drop)"
        )
    return pa.chunked_array([mapped])


def _drop_near_duplicates(made: Assembly, rule: NearDuplicateSpec, label: LabelSpec | None) -> None:
    """Keep the first of each group, and of each class in it: a defect that looks like a good part is not thinned away."""
    groups = near_of(made.rows, rule)
    kinds = class_numbers(made.rows.column(label.name)) if label is not None else np.zeros(len(made.rows), np.int64)
    epochs, seqs = (made.rows.column(name).to_numpy() for name in KEY[2:])
    order = np.lexsort((seqs, epochs, times_us(made.rows), kinds, groups))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (groups[order[1:]] != groups[order[:-1]]) | (kinds[order[1:]] != kinds[order[:-1]])
    kept = groups == NO_GROUP
    kept[order[is_first]] = True
    made.keep(kept, "near-duplicate of another row")
