"""A set by its spec: what the spec asks for, in the words of a build."""

from pipelines.training.assemble import GROUP_COLUMN
from pipelines.training.building.recipe import Wish
from pipelines.training.manifest import SplitRule
from pipelines.training.shards import ShardLimits
from pipelines.training.spec import SetSpec, parse_duration_s

_MIB = 1024 * 1024


def wish_of_spec(spec: SetSpec) -> Wish:
    """What a set of this spec is made of, and how it is split and written.

    Raises:
        RefusedError: a duration or the split does not fit.
    """
    label = (spec.label.name,) if spec.label is not None else ()
    added = (*label, *(name for join in spec.joins for name in join.gives), *(each.name for each in spec.derive))
    rule = SplitRule(
        (*spec.split.group, *((GROUP_COLUMN,) if spec.split.expression else ())),
        tuple(spec.split.shares.items()),
        spec.split.stratify,
        parse_duration_s(spec.split.block),
        parse_duration_s(spec.split.gap),
        "stratified",
    )
    return Wish(
        spec=spec,
        rule=rule,
        where=_where(spec),
        limits=ShardLimits(max_rows=spec.shards.max_rows, max_bytes=spec.shards.max_mib * _MIB),
        columns=tuple(dict.fromkeys((*spec.columns, *added))) if spec.columns else None,
        is_spec=True,
    )


def _where(spec: SetSpec) -> str:
    """The conditions of a spec in one line, for lists and cards."""
    parts = [source.where for source in spec.sources if source.where] + ([spec.where] if spec.where else [])
    return parts[0] if len(parts) == 1 else " AND ".join(f"({part})" for part in parts)
