"""The line of a set's versions: a group that one version assigned keeps its split in all later ones."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.lake.arrow_input import arrow_file
from pipelines.lake.lake import Lake
from pipelines.training.catalogue import set_folder
from pipelines.training.grouping import group_rows
from pipelines.training.manifest import MANIFEST_NAME, FileEntry, Manifest, SplitRule, load_manifest, open_set_file
from pipelines.training.open import TrainingSet
from pipelines.training.shards import file_entry
from pipelines.training.split import EarlierSplits

GROUPS_NAME = "groups.parquet"
_ALL = "all"


@dataclass(frozen=True, slots=True)
class SetLine:
    """What the newest version of a set has assigned: `number` is the version that began the line."""

    number: int
    version: int
    earlier: EarlierSplits


def line_of(lake: Lake, name: str, rule: SplitRule) -> SetLine | None:
    """The line that the next version of a set continues; None for a first version.

    Raises:
        RefusedError: the newest version is split by other groups, or into other splits.
        CorruptLakeError: its files cannot be read.
    """
    try:
        folder = set_folder(lake, name)
    except NotFoundError:
        return None
    manifest = load_manifest(lake.local(folder / MANIFEST_NAME))
    before = manifest.split
    names = [split for split, _ in rule.fractions]
    if (before.group, before.block_s) != (rule.group, rule.block_s) or {split for split, _ in before.fractions} != set(names):
        raise RefusedError(
            f"{name} {manifest.version} is split by {_words(before)}, this build by {_words(rule)}; groups would change sides: "
            "build under another name, or place all groups again (--reassign)"
        )
    assigned = _assigned(lake, folder, manifest)
    splits = np.array([names.index(split) for split in assigned.column("split").to_pylist()], np.int64)
    return SetLine(
        manifest.line or manifest.version, manifest.version, EarlierSplits(assigned.column("group").combine_chunks(), splits)
    )


def write_groups(folder: Path, groups: pa.Table) -> FileEntry:
    """Write which group went to which split, by name, so that the file is the same however the rows lay."""
    path = folder / GROUPS_NAME
    pq.write_table(groups.sort_by("group"), path, compression="zstd", write_page_checksum=True)
    return file_entry(path, _ALL, len(groups))


def _assigned(lake: Lake, folder: Path, manifest: Manifest) -> pa.Table:
    """The groups of a version: from its file, or, as earlier releases wrote none, from its rows."""
    if manifest.groups is None:
        return pa.concat_tables([_of_rows(lake, folder, manifest, split) for split, _ in manifest.split.fractions])
    lake.local(folder / manifest.groups.path)
    try:
        with open_set_file(folder, manifest.groups.path) as file:
            return pq.read_table(arrow_file(file), columns=["group", "split"])
    except (OSError, pa.ArrowInvalid) as error:
        raise CorruptLakeError(
            f"{folder / GROUPS_NAME}: cannot be read: {error}; restore the set, or build with --reassign"
        ) from error


def _of_rows(lake: Lake, folder: Path, manifest: Manifest, split: str) -> pa.Table:
    lacking = [column for column in manifest.split.group if column not in {each.name for each in manifest.columns}]
    if lacking:
        raise RefusedError(
            f"{manifest.name} {manifest.version} does not hold {', '.join(lacking)}, so its groups are not known; "
            "build with --reassign"
        )
    for entry in (*manifest.shards_of(split), *(index for index in manifest.indexes if index.split == split)):
        lake.local(folder / entry.path)
    rows = TrainingSet(folder, manifest, split).to_arrow(list(manifest.split.group))
    names = group_rows(rows, manifest.split.group).names
    return pa.table({"group": pa.chunked_array([names], pa.string()), "split": pa.array([split] * len(names), pa.string())})


def _words(rule: SplitRule) -> str:
    blocks = f" in blocks of {rule.block_s:g} s" if rule.block_s else ""
    return f"{', '.join(rule.group)}{blocks} into {', '.join(split for split, _ in rule.fractions)}"
