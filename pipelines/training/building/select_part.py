"""The first graph's item: a part read, joined, derived, labelled, and written sorted, with what its groups hold."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.lake import Lake
from pipelines.training.assemble import Assembly, assemble
from pipelines.training.building.part_files import PartBody, PartSummary, SortedPart
from pipelines.training.building.parts import PartRef, read_part
from pipelines.training.building.recipe import WorkerRecipe
from pipelines.training.grouping import classes_of_rows, group_rows, tabulate_groups
from pipelines.training.thin import row_numbers, sampled

Int64s = npt.NDArray[np.int64]
NO_PAYLOAD = "no payload"
NOT_SAMPLED = "not in the sample"
_ORDER = "order"
_LAST = np.iinfo(np.int64).max


def select_part(lake: Lake, work: Path, found: WorkerRecipe, part: PartRef) -> None:
    """Write a part, unless it is there.

    Raises:
        RefusedError: an expression or a column does not fit these rows.
        CorruptLakeError: a table cannot be read.
    """
    files = SortedPart(work, part.number)
    if files.is_done:
        return
    recipe = found.recipe
    read = read_part(lake, recipe.spec, part, found.selected.names)
    rows = _conform(read.rows, found.selected)
    selected = len(rows)
    made = Assembly(rows)
    if recipe.has_payload:
        made.keep(pc.is_valid(rows.column("payload_shard")).to_numpy(), NO_PAYLOAD)
    done = assemble(lake, recipe.spec, made.rows, found.labels)
    done.left_out = {**made.left_out, **done.left_out}
    share = recipe.spec.sample.share
    if share < 1 and recipe.samples_early:
        done.keep(sampled(done.rows, recipe.spec.seed, share), NOT_SAMPLED)
    body, devices = _body(found, done.rows)
    summary = PartSummary(
        number=part.number,
        selected=selected,
        rows=len(body.rows),
        left_out=done.left_out,
        lacking=done.lacking,
        matched=tuple(done.matched),
        torn=done.torn,
        listed=read.listed,
        unlisted=done.unlisted,
        null_rows=body.groups.null_rows,
        classes=body.groups.classes,
        devices=devices,
    )
    files.write(body, summary)


def is_selected(work: Path, part: PartRef) -> bool:
    """Whether a part has been written whole."""
    return SortedPart(work, part.number).is_done


def _conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with the columns of all streams of the set, nulls where theirs has none."""
    if rows.schema.equals(schema):
        return rows
    columns = [
        rows.column(field.name).cast(field.type) if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _body(found: WorkerRecipe, rows: pa.Table) -> tuple[PartBody, tuple[str, ...]]:
    recipe, rule = found.recipe, found.recipe.rule
    groups = group_rows(rows, rule.group, rule.block_s)
    table = tabulate_groups(groups, classes_of_rows(rows, rule.stratify))
    devices: tuple[str, ...] = ()
    if recipe.order == "time":
        order, devices = time_order(rows)
    else:
        order = shuffle_order(rows, recipe.spec.seed)
    by = np.lexsort(order[::-1])
    lengths = np.zeros(len(rows), np.int64)
    if recipe.has_payload:
        lengths = np.asarray(pc.fill_null(pc.cast(rows.column("payload_length"), pa.int64()), -1).to_numpy(), np.int64)
    kept = rows.select([*recipe.kept_columns(rows.schema), *recipe.carried]).replace_schema_metadata(None)
    return PartBody(kept.take(pa.array(by)), order[:, by], groups.of_row[by], lengths[by], table), devices


def shuffle_order(rows: pa.Table, seed: int) -> Int64s:
    """(1, rows) numbers that hang on each row's key and the seed alone: rows that lie by them are shuffled."""
    return (row_numbers(rows, seed, _ORDER) >> np.uint64(1)).astype(np.int64)[np.newaxis]


def time_order(rows: pa.Table) -> tuple[Int64s, tuple[str, ...]]:
    """(4, rows) the place of each row's device among the devices, then time, epoch and seq; and the devices."""
    column = rows.column("device")
    devices = sorted(value for value in pc.unique(column).to_pylist() if value is not None)
    place = pc.fill_null(pc.index_in(column, value_set=pa.array(devices, pa.string())), len(devices))
    numbers = [np.asarray(place.to_numpy(), np.int64)]
    for name in ("event_time", "epoch", "seq"):
        if name not in rows.schema.names:
            numbers.append(np.zeros(len(rows), np.int64))
            continue
        values = rows.column(name)
        if pa.types.is_timestamp(values.type):
            values = pc.cast(values, pa.timestamp("us", "UTC"))
        numbers.append(np.asarray(pc.fill_null(pc.cast(values, pa.int64()), _LAST).to_numpy(), np.int64))
    return np.vstack(numbers), tuple(devices)
