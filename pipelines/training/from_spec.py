"""A set drafted by its spec: rows assembled, split, and the splits that are to be balanced thinned."""

import re
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RefusedError
from pipelines.lake.lake import Lake
from pipelines.training.assemble import GROUP_COLUMN, assemble, near_of
from pipelines.training.build import BuildOptions, Chosen, SetDraft, draft_of, usable_rows
from pipelines.training.grouping import classes_of_rows
from pipelines.training.manifest import LeftOut
from pipelines.training.sample_list import places_in_list
from pipelines.training.select import Selection, select_rows
from pipelines.training.shards import ShardLimits
from pipelines.training.spec import BalanceSpec, SetSpec, parse_duration_s
from pipelines.training.spec_file import plain_spec
from pipelines.training.split import LEFT_OUT, count_coverage
from pipelines.training.thin import balanced, class_numbers, class_weights, row_numbers

_MIB = 1024 * 1024
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def spec_options(spec: SetSpec, *, allow_missing: bool = False, reassign: bool = False) -> BuildOptions:
    """How a set of this spec is split and written."""
    label = (spec.label.name,) if spec.label is not None else ()
    added = (*label, *(name for join in spec.joins for name in join.gives), *(each.name for each in spec.derive))
    return BuildOptions(
        split=spec.split.shares,
        group=(*spec.split.group, *((GROUP_COLUMN,) if spec.split.expression else ())),
        stratify=spec.split.stratify,
        block_s=parse_duration_s(spec.split.block),
        gap_s=parse_duration_s(spec.split.gap),
        allow_missing=allow_missing,
        reassign=reassign,
        columns=tuple(dict.fromkeys((*spec.columns, *added))) if spec.columns else None,
        with_payload=spec.payload,
        limits=ShardLimits(max_rows=spec.shards.max_rows, max_bytes=spec.shards.max_mib * _MIB),
    )


def draft_from_spec(lake: Lake, spec: SetSpec, options: BuildOptions) -> SetDraft:
    """Assemble the rows of a spec and plan their splits. Writes nothing.

    Raises:
        NotFoundError: no such stream or version.
        RefusedError: nothing was selected, or something in the spec does not fit the streams.
        CorruptLakeError: a table cannot be read.
    """
    streams = tuple(source.stream for source in spec.sources)
    pinned = {source.stream: source.version for source in spec.sources if source.version is not None}
    selection = select_rows(lake, streams, {source.stream: source.where for source in spec.sources}, pinned)
    listed, absent = _listed(selection, spec)
    rows, has_payload, without = usable_rows(listed.rows, spec.payload)
    made = assemble(lake, spec, rows)
    is_grouped = spec.near_duplicates is not None and spec.near_duplicates.action == "group"
    near = near_of(made.rows, spec.near_duplicates) if spec.near_duplicates is not None and is_grouped else None
    chosen = Chosen(
        made.rows, has_payload, (*listed.sources, *made.sources), (*without, *made.left_out), _where(spec), near,
        (*absent, *made.notes),
    )  # fmt: skip
    draft = draft_of(lake, spec.id, chosen, spec.seed, options)
    if spec.balance is not None:
        draft = _balanced(draft, made.rows, spec.balance, spec)
    return replace(draft, order=spec.order, spec=plain_spec(spec))


def _listed(selection: Selection, spec: SetSpec) -> tuple[Selection, tuple[str, ...]]:
    """Of sources that list samples only those, and a note of listed ones that are not there."""
    rows, sources, notes = selection.rows, [], []
    for source, found in zip(spec.sources, selection.sources, strict=True):
        if source.samples:
            own = np.asarray(pc.equal(rows.column("stream"), source.stream).to_numpy(), bool)
            place = places_in_list(rows, source.samples)
            taken = own & (place >= 0)
            lacking = len(source.samples) - len(np.unique(place[taken]))
            if lacking:
                notes.append(f"{lacking:,} of {len(source.samples):,} listed samples are not in {source.stream}")
            rows = rows.filter(pa.array(taken | ~own))
            found = msgspec.structs.replace(found, rows=int(taken.sum()))  # noqa: PLW2901 - counted again
        sources.append(found)
    return Selection(rows, tuple(sources)), tuple(notes)


def _where(spec: SetSpec) -> str:
    """The conditions of a spec in one line, for lists and cards."""
    parts = [source.where for source in spec.sources if source.where] + ([spec.where] if spec.where else [])
    return parts[0] if len(parts) == 1 else " AND ".join(f"({part})" for part in parts)


def _balanced(draft: SetDraft, rows: pa.Table, rule: BalanceSpec, spec: SetSpec) -> SetDraft:
    column = rule.column or (spec.label.name if spec.label is not None else "")
    if column not in rows.schema.names:
        raise RefusedError(f"no column {column} to balance by; there are {', '.join(rows.schema.names)}")
    classes, numbers = class_numbers(rows.column(column)), row_numbers(rows, spec.seed, "balance")
    names = [name for name, _ in draft.rule.fractions]
    splits, weights = draft.plan.splits, np.ones(len(rows))
    for name in rule.splits:
        splits = balanced(classes, splits, names.index(name), numbers, rule.rows_per_class, is_even=rule.undersample)
    for name in rule.splits:
        within = splits == names.index(name)
        weights = np.where(within, class_weights(classes, splits, names.index(name)), weights)
    gone = int((splits == LEFT_OUT).sum()) - int((draft.plan.splits == LEFT_OUT).sum())
    coverage = count_coverage(splits, classes_of_rows(rows, draft.rule.stratify), draft.rule)
    left_out = (*draft.left_out, LeftOut(f"balance of {', '.join(rule.splits)} by {column}", gone)) if gone else draft.left_out
    return replace(
        draft,
        plan=replace(draft.plan, splits=splits, coverage=coverage),
        rows=_weighted(draft.rows, rule.weights, weights) if rule.weights else draft.rows,
        left_out=left_out,
    )


def _weighted(rows: pa.Table, name: str, weights: np.ndarray[tuple[int], np.dtype[np.float64]]) -> pa.Table:
    if not _COLUMN.fullmatch(name) or name in rows.schema.names:
        raise RefusedError(f"{name[:80]!r} cannot be the column of weights: give a new name of letters, digits and '_'")
    return rows.append_column(name, pa.array(weights))
