"""What a test split knows of a train split: neighbours in time, near-duplicate or equal payloads, groups on two sides."""

from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RefusedError, UninspectableError
from pipelines.inspect.image import image_facts
from pipelines.lake.lake import Lake
from pipelines.training.bucket_sets import bring_set
from pipelines.training.compare import SPLIT, SetFolder, read_rows
from pipelines.training.grouping import group_rows, neighbours_elsewhere, times_us
from pipelines.training.near_duplicates import NO_GROUP, near_groups
from pipelines.training.open import TrainingSet

Int64s = npt.NDArray[np.int64]
HASH_COLUMN = "image_phash"
_HASH = 7  # its place among the facts of a picture
_THREADS = 4
_BLOCK = 256


class Leak(msgspec.Struct, frozen=True):
    """Rows of a split that another split has something of."""

    kind: str
    split: str
    rows: int
    share: float


class LeakReport(msgspec.Struct, frozen=True):
    """All leaks by kind and split, zeros included, and what could not be checked, with the reason."""

    leaks: tuple[Leak, ...]
    unchecked: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Leaked rows of all kinds and splits."""
        return sum(leak.rows for leak in self.leaks)


def find_leaks(
    lake: Lake, found: SetFolder, *, near_s: float, bits: int, within_s: float = 0.0, with_pictures: bool = False
) -> LeakReport:
    """Check a set for leaks between its splits.

    Args:
        lake: where it lies.
        found: the set.
        near_s: rows of one device nearer than this are neighbours.
        bits: perceptual hashes that differ in so many bits are of near-duplicates.
        within_s: near-duplicates count only within this time of one device; 0: anywhere.
        with_pictures: whether payloads are decoded where the set has no column of hashes.

    Raises:
        CorruptLakeError: a file is missing or cannot be read.
    """
    rule = found.manifest.split
    wanted = {"device", "event_time", "payload_sha256", HASH_COLUMN, *rule.group} & found.columns
    rows = read_rows(lake, found, tuple(sorted(wanted)))
    names = list(found.manifest.split_rows())
    splits = np.asarray(pc.index_in(rows.column(SPLIT), pa.array(names)).to_numpy(), np.int64)
    leaks: list[Leak] = []
    unchecked: list[str] = []

    def count(kind: str, leaked: npt.NDArray[np.bool_]) -> None:
        for number, name in enumerate(names):
            own = splits == number
            hits = int((leaked & own).sum())
            leaks.append(Leak(kind, name, hits, hits / max(1, int(own.sum()))))

    if "event_time" in wanted:
        count(f"neighbour within {near_s:g} s", neighbours_elsewhere(rows, splits, near_s))
    else:
        unchecked.append("neighbours in time: the set has no event_time")
    if missing := [name for name in rule.group if name not in wanted]:
        unchecked.append(f"groups: the set does not hold {', '.join(missing)}")
    else:
        count("group in two splits", _in_two(group_rows(rows, rule.group, rule.block_s).of_row, splits))
    if "payload_sha256" in wanted:
        count("equal payload", _in_two(_numbers(rows.column("payload_sha256")), splits))
    hashes = _hashes(lake, found, rows, with_pictures=with_pictures)
    if hashes is None:
        unchecked.append("near-duplicate pictures: the set has no image_phash (--pictures decodes its payloads)")
    else:
        try:
            near = _near(rows, hashes, bits, within_s)
            count(f"near-duplicate within {bits} bits", _in_two(near, splits))
        except RefusedError as error:
            unchecked.append(f"near-duplicate pictures: {error}")
    return LeakReport(tuple(leaks), tuple(unchecked))


def _in_two(groups: Int64s, splits: Int64s) -> npt.NDArray[np.bool_]:
    """Which rows are of a group, -1 for none, that has rows in another split."""
    inside = groups >= 0
    count = int(groups.max(initial=-1)) + 1
    low, high = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    np.minimum.at(low, groups[inside], splits[inside])
    np.maximum.at(high, groups[inside], splits[inside])
    leaked = np.zeros(len(groups), bool)
    leaked[inside] = (low != high)[groups[inside]]
    return leaked


def _near(rows: pa.Table, hashes: pa.ChunkedArray, bits: int, within_s: float) -> Int64s:
    within_us = round(within_s * 1_000_000) if within_s else None
    times = times_us(rows) if "event_time" in rows.schema.names else np.zeros(len(rows), np.int64)
    found = near_groups(hashes, rows.column("device"), times, bits, within_us)
    return np.where(found == NO_GROUP, -1, found)


def _numbers(values: pa.ChunkedArray) -> Int64s:
    indices = values.combine_chunks().dictionary_encode().indices
    return np.asarray(pc.fill_null(indices, -1).to_numpy(zero_copy_only=False), np.int64)


def _hashes(lake: Lake, found: SetFolder, rows: pa.Table, *, with_pictures: bool) -> pa.ChunkedArray | None:
    if HASH_COLUMN in rows.schema.names:
        return rows.column(HASH_COLUMN)
    if not with_pictures or not found.manifest.has_payload:
        return None
    bring_set(lake, found.folder, found.manifest)
    hashes: list[str | None] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for split in found.manifest.split_rows():
            samples = TrainingSet(found.folder, found.manifest, split)
            for low in range(0, len(samples), _BLOCK):
                block = np.arange(low, min(low + _BLOCK, len(samples)), dtype=np.int64)
                hashes += pool.map(_hash_of, [sample.payload for sample in samples.samples(block)])
    return pa.chunked_array([hashes], pa.string())


def _hash_of(body: bytes | None) -> str | None:
    """The hash of a picture; None for a payload that is none."""
    if not body:
        return None
    try:
        return str(image_facts(body)[_HASH])
    except UninspectableError:
        return None
