"""What decides the bytes of a version of a set: the spec with every version pinned, and the rule of the split.

Written into the work folder, from where each worker reads it: an item of a graph is a number.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.training.assemble import ResolvedLabels, assemble, near_of, resolve_labels
from pipelines.training.building.set_source import earlier_has_payload, pin_earlier_set
from pipelines.training.manifest import SplitRule, checked_set_name
from pipelines.training.select import KEY, PinnedStream, pin_stream, stream_batches
from pipelines.training.shards import REFERENCE_COLUMNS, ShardLimits
from pipelines.training.spec import SetSpec, SourceSpec
from schemas.ids import encode_json

# Raised when the same snapshot, spec and release would give other bytes.
BUILDER = 2
LINEAGE = (*KEY, "payload_sha256", "tags", "tag_rules")
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_NAME = "recipe.json"
_SCHEMA = "selected.schema"
_LABELS = "labels.arrow"


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How the rows of a set are made.

    `spec`: with a version for each source, join and task. `columns`: those to keep; None: all. `is_spec`: whether a person
    wrote the spec; else it was made of options. `carried`: columns that limits and splits need and the set does not hold.
    """

    spec: SetSpec
    rule: SplitRule
    where: str
    has_payload: bool
    limits: ShardLimits
    columns: tuple[str, ...] | None
    carried: tuple[str, ...] = ()
    is_spec: bool = False
    builder: int = BUILDER

    @property
    def order(self) -> Literal["shuffled", "time"]:
        """How rows lie."""
        return self.spec.order

    @property
    def samples_early(self) -> bool:
        """Whether a share can be sampled row by row: no step before the sample counts rows."""
        rule = self.spec.near_duplicates
        return not self.spec.caps and not (rule is not None and rule.action == "drop")

    def kept_columns(self, schema: pa.Schema) -> list[str]:
        """The columns of the set, those first that tell where a row came from.

        Raises:
            RefusedError: a column is missing.
        """
        missing = [name for name in self.columns or () if name not in schema.names]
        if missing:
            raise RefusedError(f"no column {', '.join(missing)}; there are {', '.join(schema.names)}")
        keep = set(schema.names) if self.columns is None else {*self.columns, *LINEAGE}
        keep = keep | set(REFERENCE_COLUMNS) if self.has_payload else keep - set(REFERENCE_COLUMNS)
        head = [name for name in KEY if name in keep]
        return head + [name for name in schema.names if name in keep and name not in head]


@dataclass(frozen=True, slots=True)
class PreparedRecipe:
    """A recipe and what was looked up for it: `selected` is the schema of selected rows, `made` that of assembled ones."""

    recipe: Recipe
    selected: pa.Schema
    made: pa.Schema
    labels: ResolvedLabels | None

    def digest(self, more: bytes) -> str:
        """A name for the work that follows from this recipe and some more bytes."""
        parts = (encode_json(self.recipe), self.selected.serialize().to_pybytes(), more)
        return hashlib.sha256(b"\x00".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]

    def save(self, work: Path) -> None:
        """Write it where workers read it."""
        (work / _SCHEMA).write_bytes(self.selected.serialize().to_pybytes())
        if self.labels is not None:
            with pa.OSFile(str(work / _LABELS), "wb") as sink, pa.ipc.new_file(sink, self.labels.rows.schema) as writer:
                writer.write_table(self.labels.rows)
        (work / _NAME).write_bytes(encode_json(self.recipe))


@dataclass(frozen=True, slots=True)
class WorkerRecipe:
    """The recipe as a worker reads it; `labels` is mapped, not read."""

    recipe: Recipe
    selected: pa.Schema
    labels: pa.Table | None


def load_recipe(work: Path) -> WorkerRecipe:
    """Read the recipe of a work folder.

    Raises:
        CorruptLakeError: it is not there, or not whole.
    """
    try:
        recipe = msgspec.json.decode((work / _NAME).read_bytes(), type=Recipe)
        schema = pa.ipc.read_schema(pa.py_buffer((work / _SCHEMA).read_bytes()))
        labels = pa.ipc.open_file(pa.memory_map(str(work / _LABELS))).read_all() if (work / _LABELS).exists() else None
    except (OSError, msgspec.MsgspecError, pa.ArrowInvalid) as error:
        raise CorruptLakeError(f"{work}: not the work folder of a build: {error}; build the set again") from error
    return WorkerRecipe(recipe, schema, labels)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asked for: a spec or options made into one, before versions are known. Fields as in `Recipe`."""

    spec: SetSpec
    rule: SplitRule
    where: str
    limits: ShardLimits
    columns: tuple[str, ...] | None
    is_spec: bool


def prepare(lake: Lake, wish: Wish) -> PreparedRecipe:
    """Pin every version, look at the schemas, and check the spec against them, before anything is read.

    Raises:
        NotFoundError: no such stream, version or task.
        RefusedError: a column is missing or given twice, an expression does not fit, or there is no payload.
        CorruptLakeError: a table cannot be read.
    """
    checked_set_name(wish.spec.id)
    texts = (encode_json(wish.spec).decode(), *(wish.columns or ()), *wish.rule.group, *wish.rule.stratify)
    pinned = [_pin(lake, source, texts) for source in wish.spec.sources]
    spec = _pinned(lake, wish.spec, pinned)
    labels = resolve_labels(lake, spec.label) if spec.label is not None and spec.label.task else None
    if labels is not None and spec.label is not None:
        spec = msgspec.structs.replace(spec, label=msgspec.structs.replace(spec.label, version=labels.source.delta_version))
    named = [
        each.schema if source.set_name else each.schema.append(pa.field("stream", pa.string()))
        for source, each in zip(spec.sources, pinned, strict=True)
    ]
    selected = pa.unify_schemas([schema.remove_metadata() for schema in named], promote_options="permissive")
    recipe = Recipe(
        spec=spec,
        rule=wish.rule,
        where=wish.where,
        has_payload=_has_payload(lake, spec, selected),
        limits=wish.limits,
        columns=wish.columns,
        is_spec=wish.is_spec,
    )
    empty = assemble(lake, spec, selected.empty_table(), labels.rows if labels is not None else None).rows
    if spec.near_duplicates is not None:
        near_of(empty, spec.near_duplicates)
    return _checked(PreparedRecipe(recipe, selected, empty.schema, labels))


def _pin(lake: Lake, source: SourceSpec, texts: tuple[str, ...]) -> PinnedStream:
    if source.set_name:
        return pin_earlier_set(lake, source)
    return pin_stream(lake, source.stream, source.version, source.where, texts, source.slide_version)


def _checked(prepared: PreparedRecipe) -> PreparedRecipe:
    """Name the columns that later steps need, and refuse those that are not there."""
    recipe, schema = prepared.recipe, prepared.made
    if not recipe.rule.stratify and "tags" in schema.names:
        recipe = msgspec.structs.replace(recipe, rule=msgspec.structs.replace(recipe.rule, stratify=("tags",)))
    rule, spec = recipe.rule, recipe.spec
    for names, purpose in ((rule.group, "group by"), (rule.stratify, "stratify by")):
        missing = [name for name in names if name not in schema.names]
        if missing:
            raise RefusedError(f"no column {', '.join(missing)} to {purpose}; there are {', '.join(schema.names)}")
    kept = recipe.kept_columns(schema)
    caps = [name for cap in spec.caps for name in cap.per]
    balance = [balance_column(spec)] if spec.balance is not None else []
    if balance and balance[0] not in schema.names:
        raise RefusedError(f"no column {balance[0]} to balance by; there are {', '.join(schema.names)}")
    weights = spec.balance.weights if spec.balance is not None else ""
    if weights and (not _COLUMN.fullmatch(weights) or weights in schema.names):
        raise RefusedError(f"{weights[:80]!r} cannot be the column of weights: give a new name of letters, digits and '_'")
    near = [spec.near_duplicates.column] if spec.near_duplicates is not None else []
    wanted = [*caps, *balance, *near, *rule.group, *rule.stratify, "device", "event_time", "spec", "chip_index"]
    if spec.label is not None:
        wanted.append(spec.label.name)
    carried = tuple(dict.fromkeys(name for name in wanted if name in schema.names and name not in kept))
    return PreparedRecipe(msgspec.structs.replace(recipe, carried=carried), prepared.selected, schema, prepared.labels)


def balance_column(spec: SetSpec) -> str:
    """The column of classes that a spec balances."""
    named = spec.balance.column if spec.balance is not None else ""
    return named or (spec.label.name if spec.label is not None else "")


def _pinned(lake: Lake, spec: SetSpec, pinned: list[PinnedStream]) -> SetSpec:
    sources = tuple(
        msgspec.structs.replace(source, version=found.version, slide_version=found.slides.version if found.slides else None)
        for source, found in zip(spec.sources, pinned, strict=True)
    )
    joins = tuple(
        msgspec.structs.replace(join, version=pin_stream(lake, join.stream, join.version, join.where).version)
        for join in spec.joins
    )
    return msgspec.structs.replace(spec, sources=sources, joins=joins)


def _has_payload(lake: Lake, spec: SetSpec, selected: pa.Schema) -> bool:
    """Whether the set carries payloads: as the spec says, else where any selected row has one."""
    possible = all(name in selected.names for name in REFERENCE_COLUMNS)
    if spec.payload and not possible:
        raise RefusedError("these streams have no payload; build the set without it (--tabular)")
    if not possible or spec.payload is not None:
        return bool(spec.payload)
    for source in spec.sources:
        if source.set_name:
            if earlier_has_payload(lake, source):
                return True
            continue
        found = stream_batches(
            lake,
            source.stream,
            ["payload_shard"],
            version=source.version,
            where=source.where,
            slide_version=source.slide_version,
        )
        if any(pc.any(pc.is_valid(batch.column(0))).as_py() for batch in found.batches if batch.num_columns):
            return True
    return False
