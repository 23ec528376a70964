"""Build one version of a training set: select, split by group, shuffle once, write, publish by one rename."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version as distribution_version
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from catchment.runtime.atomic_files import sync_folder, write_atomic
from catchment.runtime.clock import Clock, SystemClock
from pipelines.errors import ConflictError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import SET_DRAFT
from pipelines.training.bucket_sets import share_set, take_number, taken_numbers
from pipelines.training.card import render_card
from pipelines.training.manifest import (
    MANIFEST_NAME,
    ColumnEntry,
    FileEntry,
    LeftOut,
    Manifest,
    SplitRule,
    TagCount,
    checked_set_name,
    encode_manifest,
)
from pipelines.training.select import KEY, Compiler, policy_compiler, select_rows
from pipelines.training.shards import (
    REFERENCE_COLUMNS,
    Progress,
    ShardLimits,
    write_payload_split,
    write_tabular_split,
)
from pipelines.training.split import Int64s, shuffled_rows, split_of_rows

DEFAULT_SPLIT: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}
_PUBLISH_ATTEMPTS = 100
_LINEAGE = (*KEY, "payload_sha256", "tags", "tag_rules")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to build, beyond which rows. `with_payload` None: with it where every stream has one."""

    split: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_SPLIT))
    group: tuple[str, ...] = ("device",)
    columns: tuple[str, ...] | None = None
    with_payload: bool | None = None
    versions: Mapping[str, int] = field(default_factory=dict)
    limits: ShardLimits = field(default_factory=ShardLimits)
    compiler: Compiler = policy_compiler


def build_set(
    lake: Lake,
    name: str,
    streams: tuple[str, ...],
    where: str = "",
    *,
    seed: int = 0,
    options: BuildOptions | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Build the next version of the set `name`.

    Args:
        lake: the lake.
        name: of the set.
        streams: the stream tables to select from.
        where: an expression over columns and tags; empty keeps all rows.
        seed: of split and shuffle; the same seed, rows and code give the same shards.
        options: split, group, columns, payload.
        clock: tells when it was built.
        progress: is told the rows in all, and each few rows written.

    Raises:
        RefusedError: nothing was selected, or a name, split or column does not fit.
        CorruptLakeError: the lake lacks a file that a row refers to.
    """
    options = options or BuildOptions()
    checked_set_name(name)
    if not streams:
        raise RefusedError("give at least one stream to build a set from")
    rule = SplitRule(options.group, tuple(options.split.items()))
    selection = select_rows(lake, streams, where, options.versions, options.compiler)
    rows, has_payload, left_out = _usable(selection.rows, options.with_payload)
    if not len(rows):
        raise RefusedError(f"no row of {', '.join(streams)} fulfils {where!r}; nothing to build")
    splits = split_of_rows(rows, rule, seed)
    rows = _project(rows, options.columns, has_payload)
    home = lake.root / "sets" / name
    folder = _fresh_folder(home)
    try:
        parts = [(split, shuffled_rows(rows, splits, number, seed)) for number, (split, _) in enumerate(rule.fractions)]
        shards, indexes = _write_splits(lake, folder, parts, has_payload, options.limits, progress or Progress())
        manifest = Manifest(
            name=name,
            version=0,
            created_ms=(clock or SystemClock()).now_ms(),
            code_version=distribution_version("catchment"),
            sources=selection.sources,
            where=where,
            seed=seed,
            split=rule,
            columns=_columns(rows),
            has_payload=has_payload,
            shards=shards,
            indexes=indexes,
            tags=_tag_counts(rows, splits, rule),
            policies=_policies(rows),
            left_out=left_out,
        )
        return _publish(lake, home, folder, manifest)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _columns(rows: pa.Table) -> tuple[ColumnEntry, ...]:
    return tuple(ColumnEntry(column.name, str(column.type)) for column in rows.schema if column.name not in REFERENCE_COLUMNS)


def _write_splits(
    lake: Lake, folder: Path, parts: list[tuple[str, pa.Table]], has_payload: bool, limits: ShardLimits, progress: Progress
) -> tuple[tuple[FileEntry, ...], tuple[FileEntry, ...]]:
    shards: list[FileEntry] = []
    indexes: list[FileEntry] = []
    progress.total(sum(len(rows) for _, rows in parts))
    for split, rows in parts:
        if has_payload:
            written, index = write_payload_split(lake, folder, split, rows, limits, progress)
            indexes.append(index)
        else:
            written = write_tabular_split(folder, split, rows, limits, progress)
        shards.extend(written)
    return tuple(shards), tuple(indexes)


def _usable(rows: pa.Table, wanted: bool | None) -> tuple[pa.Table, bool, tuple[LeftOut, ...]]:
    """Rows that can stand in the set; those without a payload are left out of a set with payload, and counted."""
    possible = all(name in rows.schema.names for name in REFERENCE_COLUMNS)
    if wanted and not possible:
        raise RefusedError("these streams have no payload; build the set without it (--tabular)")
    if not possible or wanted is False:
        return rows, False, ()
    there = rows.filter(pc.is_valid(rows.column("payload_shard")))
    gone = len(rows) - len(there)
    if not len(there) and wanted is None:
        return rows, False, ()
    return there, True, (LeftOut("no payload", gone),) if gone else ()


def _project(rows: pa.Table, columns: tuple[str, ...] | None, has_payload: bool) -> pa.Table:
    """The chosen columns beside those that tell where a row came from."""
    missing = [name for name in columns or () if name not in rows.schema.names]
    if missing:
        raise RefusedError(f"no column {', '.join(missing)}; there are {', '.join(rows.schema.names)}")
    keep = set(rows.schema.names) if columns is None else {*columns, *_LINEAGE}
    keep = keep | set(REFERENCE_COLUMNS) if has_payload else keep - set(REFERENCE_COLUMNS)
    head = [name for name in KEY if name in keep]
    return rows.select(head + [name for name in rows.schema.names if name in keep and name not in head])


def _tag_counts(rows: pa.Table, splits: Int64s, rule: SplitRule) -> tuple[TagCount, ...]:
    if "tags" not in rows.schema.names:
        return ()
    tags = rows.column("tags").combine_chunks()
    pairs = pa.table({
        "split": pa.array(splits).take(pc.list_parent_indices(tags)),
        "tag": pc.list_flatten(tags),
    })  # fmt: skip
    counted = (
        pairs.group_by(["split", "tag"]).aggregate([([], "count_all")]).sort_by([("split", "ascending"), ("tag", "ascending")])
    )
    return tuple(TagCount(rule.fractions[row["split"]][0], row["tag"], row["count_all"]) for row in counted.to_pylist())


def _policies(rows: pa.Table) -> tuple[str, ...]:
    """Every `<policy>@<version>` that gave a tag to a row of the set."""
    if "tag_rules" not in rows.schema.names:
        return ()
    return tuple(sorted(filter(None, pc.unique(pc.list_flatten(rows.column("tag_rules"))).to_pylist())))


def _fresh_folder(home: Path) -> Path:
    """A folder of this process's own beside the versions; one that an earlier process of the same id left is removed."""
    folder = home / f"{SET_DRAFT}{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _publish(lake: Lake, home: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Give the folder the next free version number; a number that somebody else took meanwhile is passed over.

    Raises:
        ConflictError: others were faster every time.
    """
    for _ in range(_PUBLISH_ATTEMPTS):
        taken = [int(path.name) for path in home.iterdir() if path.name.isdecimal()]
        taken += taken_numbers(lake, home.name)
        numbered = msgspec.structs.replace(manifest, version=max(taken, default=0) + 1)
        write_atomic(folder / MANIFEST_NAME, encode_manifest(numbered), mode=0o644)
        write_atomic(folder / "card.html", render_card(numbered, folder).encode(), mode=0o644)
        for path in folder.iterdir():
            path.chmod(0o444)
        sync_folder(folder)
        final = home / str(numbered.version)
        try:
            take_number(lake, home.name, numbered.version)
            folder.rename(final)
        except (OSError, ConflictError) as error:
            if isinstance(error, OSError) and not final.exists():
                raise
            continue
        sync_folder(home)
        share_set(lake, final)
        return numbered
    raise ConflictError(f"{home}: {_PUBLISH_ATTEMPTS} times another build took the version number first; try again")
