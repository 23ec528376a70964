"""The rows of a set spec: streams joined in time, columns derived, classes mapped, and what was left out counted."""

from collections.abc import Iterable, Iterator
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
from pipelines.labels.chip_labels import WINDOW, ChipRule, labels_on_chips
from pipelines.labels.resolve import resolved_classes
from pipelines.labels.table import read_labels, task_table
from pipelines.lake.lake import Lake
from pipelines.training.asof import AsOf, join_as_of, seconds_as_us
from pipelines.training.grouping import times_us
from pipelines.training.manifest import Source
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
from schemas.chip_contract import CHIPS_SUFFIX

Int64s = npt.NDArray[np.int64]
GROUP_COLUMN = "split_group"
_KEY_OF_JOIN = ("device", "epoch", "seq", "event_time")
_MAX_DEVICES_BY_NAME = 1_000
_MAX_AUTHORS = 20


@dataclass(slots=True)
class Assembly:
    """Rows on their way through a spec, and what is to be said of them.

    `left_out`: rows by reason, in the order of the steps, zeros too, so that those of several parts add up. `lacking`: rows
    that found no row to join, by what they lack. `matched`: rows that found one, for each join. `torn`: rows whose labels
    differ between authors. `unlisted`: classes that the label does not list, where that is refused.
    """

    rows: pa.Table
    left_out: dict[str, int] = field(default_factory=dict)
    lacking: dict[str, int] = field(default_factory=dict)
    matched: list[int] = field(default_factory=list)
    torn: int = 0
    unlisted: tuple[str, ...] = ()

    def keep(self, kept: npt.NDArray[np.bool_], reason: str) -> None:
        """Keep some rows; the others are counted under a reason."""
        self.replace(self.rows if kept.all() else self.rows.filter(pa.array(kept)), reason)

    def replace(self, rows: pa.Table, reason: str) -> None:
        """Go on with fewer rows."""
        self.left_out[reason] = self.left_out.get(reason, 0) + len(self.rows) - len(rows)
        self.rows = rows

    def add(self, name: str, values: pa.ChunkedArray | pa.Array) -> None:
        """Add a column.

        Raises:
            RefusedError: there is one of this name.
        """
        if name in self.rows.schema.names:
            raise RefusedError(f"there is a column {name} already; give the new one another name, or a join a prefix")
        self.rows = self.rows.append_column(name, values)


def assemble(lake: Lake, spec: SetSpec, rows: pa.Table, labels: pa.Table | None) -> Assembly:
    """Take some of the selected rows through the joins, columns, conditions and classes of a spec.

    Each row is treated by itself: parts of the rows give the same as all of them at once.

    Args:
        lake: the lake.
        spec: its joins name the versions to read.
        rows: some selected rows; none: what the spec says is checked, and no joined stream is read.
        labels: what `resolve_labels` gave, if the spec names a task.

    Raises:
        NotFoundError: no such stream or version.
        RefusedError: a column is missing or given twice, or an expression does not fit.
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
    if spec.where.strip():
        with _named("where"):
            made.replace(filter_rows(made.rows, spec.where), "where is not true")
    if spec.label is not None:
        _classes(made, spec.label, labels)
    return made


def check_unlisted(unlisted: Iterable[str]) -> None:
    """Refuse classes that a label does not list.

    Raises:
        RefusedError: there are any.
    """
    others = sorted(set(unlisted))
    if others:
        raise RefusedError(
            f"classes are not listed under label: {', '.join(others[:20])}; list them, or say what becomes of "
            "others (other: keep | drop)"
        )


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
    matched = 0
    batches = found.batches if len(made.rows) else iter(())
    for joined, each in zip(join_as_of(made.rows, batches, wanted, found.schema), wanted, strict=True):
        for name in joined.columns.schema.names:
            made.add(name, joined.columns.column(name))
        what = f"{join.stream} {each.where[1]}" if each.where else join.stream
        made.lacking[f"{what} within {join.tolerance}"] = len(made.rows) - joined.matched
        matched = max(matched, joined.matched)
    made.matched.append(matched)


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


def _classes(made: Assembly, label: LabelSpec, labels: pa.Table | None) -> None:
    """The class column: mapped, merged, and what has none or another one treated as the spec says."""
    values = _class_texts(made.rows, label.column) if labels is None else _given(made, label, labels)
    mapped = _mapped(values, label)
    unlisted = pc.and_(pc.is_valid(values), pc.is_null(mapped))
    if label.other == "refuse" and label.classes:
        made.unlisted = tuple(sorted(pc.unique(values.filter(unlisted)).to_pylist()))
    if label.name in made.rows.schema.names:
        if label.name != label.column:
            raise RefusedError(f"there is a column {label.name} already; give the label another name")
        made.rows = made.rows.drop_columns([label.name])
    made.add(label.name, mapped)
    if label.other == "drop":
        made.keep(~unlisted.to_numpy(), "a class that is not listed")
    if label.unlabelled == "drop":
        made.keep(pc.is_valid(made.rows.column(label.name)).to_numpy(), "no class")


@dataclass(frozen=True, slots=True)
class ResolvedLabels:
    """What people said of each sample in a task: `rows` one for each sample, `given` every label; and the table's version.

    Where the shapes of slides are carried to chips, `rows` are the labels themselves.
    """

    rows: pa.Table
    given: pa.Table
    source: Source


def resolve_labels(lake: Lake, label: LabelSpec) -> ResolvedLabels:
    """Read the labels of a spec's task and resolve them by its rule.

    Raises:
        NotFoundError: no such task.
        CorruptLakeError: its table cannot be read.
    """
    labels, version = read_labels(lake, label.task, label.version)
    resolved = labels if label.chip else resolved_classes(labels, label.resolve)
    return ResolvedLabels(resolved, labels, Source(task_table(label.task), version, len(resolved)))


def _given(made: Assembly, label: LabelSpec, labels: pa.Table) -> pa.ChunkedArray:
    """The class of each row that a task gives, for chips by the shapes on their slides; these become a column, if wished."""
    if not label.chip:
        return _labelled(made, labels)
    needed = [name for name in (*WINDOW, "level") if name not in made.rows.schema.names]
    if needed:
        raise RefusedError(f"label: chip: these rows are no chips of slides: they have no column {', '.join(needed)}")
    found = labels_on_chips(made.rows, labels, ChipRule(label.chip, label.fraction))
    if label.shapes:
        made.add(label.shapes, found.shapes)
    return pa.chunked_array([found.classes])


def _labelled(made: Assembly, labels: pa.Table) -> pa.ChunkedArray:
    """What people said of each row, resolved by the spec's rule; null where nobody, or no majority, said anything.

    Chips have the class of their slide.
    """
    key = list(KEY)
    frame = _labelled_keys(made.rows)
    joined = frame.join(pl.DataFrame(pl.from_arrow(labels)), on=key, how="left", maintain_order="left")
    made.torn += int((joined["agreement"] < 1).sum())
    return pa.chunked_array([joined["value"].to_arrow().cast(pa.string())])


def _labelled_keys(rows: pa.Table) -> pl.DataFrame:
    """The keys by which labels name these rows: of a chip that of its slide."""
    frame = pl.DataFrame(pl.from_arrow(rows.select(list(KEY))))
    if not {"spec", "chip_index"} <= set(rows.schema.names):
        return frame
    # In a set of several streams a row that is no chip has no spec.
    is_chip = pl.Series(pl.from_arrow(rows.column("chip_index"))).is_not_null()
    return frame.with_columns(
        pl.when(is_chip).then(pl.col("stream").str.strip_suffix(CHIPS_SUFFIX)).otherwise("stream").alias("stream")
    )


def label_notes(labels: ResolvedLabels, label: LabelSpec, keys: Iterable[pa.Table]) -> tuple[str, ...]:
    """The labels' version and rule, who made them, and how far they agree on the rows of the set.

    Args:
        labels: of the spec's task.
        label: what the spec says of them.
        keys: the keys of the rows, in parts.
    """
    key = list(KEY)
    given = pl.DataFrame(pl.from_arrow(labels.given)).with_row_index("__row")
    chosen = [given.join(_labelled_keys(part), on=key, how="semi")["__row"] for part in keys]
    rows = pl.concat(chosen).unique().sort() if chosen else pl.Series("__row", [], pl.UInt32)
    if rows.is_empty():
        return ()
    if label.chip:
        rule = f"{label.chip} {label.fraction:g}" if label.chip == "fraction" else label.chip
        task, version = label.task, labels.source.delta_version
        return (f"classes of chips are by the rule {rule} of the shapes of task {task} at version {version}",)
    found = agreement_of(labels.given.take(rows.to_arrow()), label.resolve)
    authors = ", ".join(f"{author.author or '(unknown)'} {author.samples:,}" for author in found.authors[:_MAX_AUTHORS])
    more = f" and {len(found.authors) - _MAX_AUTHORS:,} others" if len(found.authors) > _MAX_AUTHORS else ""
    version = labels.source.delta_version
    return (
        f"classes are labels of task {label.task} at version {version} by the rule {label.resolve}; labelled by {authors}{more}",
        *found.words,
    )


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
    if label.other == "keep":
        return pa.chunked_array([pc.coalesce(mapped, values.combine_chunks())])
    return pa.chunked_array([mapped])


def firsts_of_near(groups: Int64s, kinds: Int64s, times: Int64s, epochs: Int64s, seqs: Int64s) -> npt.NDArray[np.bool_]:
    """Which rows stay if only the first of each group of near-duplicates, and of each class in it, does.

    A defect that looks like a good part is not thinned away.
    """
    order = np.lexsort((seqs, epochs, times, kinds, groups))
    is_first = np.ones(len(order), bool)
    is_first[1:] = (groups[order[1:]] != groups[order[:-1]]) | (kinds[order[1:]] != kinds[order[:-1]])
    kept = np.asarray(groups == NO_GROUP, bool)
    kept[order[is_first]] = True
    return kept
