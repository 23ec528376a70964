"""Which payloads the tables still need: every shard, object and Zarr store that a file of a stream's table refers to."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import QUARANTINE, STREAMS
from pipelines.lake.ledger import Ledger
from pipelines.lake.store import Stored
from pipelines.lake.workplace import workplace

_NAMING = ("payload_shard", "zarr_path")


def referenced_payloads(lake: Lake, gone: Collection[str]) -> set[str]:
    """The names, be the file that tells of them live or kept for readers of older versions.

    Args:
        lake: the lake.
        gone: files that count as deleted, though a dry run has left them there.

    Raises:
        CorruptLakeError: a file cannot be read; nothing may be deleted on a guess.
    """
    referenced: set[str] = set()
    with workplace(lake, "vacuum") as there:
        for file in lake.files(STREAMS):
            is_data = file.name.count("/") == STREAMS.count("/") + 2 and file.name.endswith(".parquet")
            if is_data and file.name not in gone:
                referenced |= _named(there.local(there.root / file.name))
                there.evict([there.root / file.name])
    return referenced


def never_filled(ledger: Ledger, table: str) -> bool:
    """Whether the books say that no sample ever entered a table. If they do not, a table without a log has lost it."""
    parent, _, stream = table.partition("/")
    if parent == STREAMS:
        names = {stream, stream.removesuffix("_chips")}
        return not any(counts.committed for name, counts in ledger.books_by_stream().items() if name in names)
    return table == QUARANTINE and not any(counts.quarantined or counts.discarded for counts in ledger.books_by_stream().values())


def chip_places(files: Iterable[Stored]) -> dict[str, list[Stored]]:
    """The files below `chips/` by what a row names: a file of pictures, or a Zarr store with all its files."""
    return _by_folder((file for file in files if not any(step.startswith(".") for step in file.name.split("/"))), 4)


def set_versions(files: Iterable[Stored]) -> dict[str, list[Stored]]:
    """The files below `sets/` by the version of a set that they belong to."""
    return {name: found for name, found in _by_folder(files, 3).items() if name.rsplit("/", 1)[-1].isdecimal()}


def _by_folder(files: Iterable[Stored], steps: int) -> dict[str, list[Stored]]:
    found: dict[str, list[Stored]] = defaultdict(list)
    for file in files:
        path = file.name.split("/")
        if len(path) >= steps:
            found["/".join(path[:steps])].append(file)
    return found


def _named(path: Path) -> set[str]:
    try:
        columns = [name for name in _NAMING if name in pq.read_schema(path).names]
        found = pq.read_table(path, columns=columns, partitioning=None).columns if columns else []
    except (OSError, pa.ArrowException) as error:
        raise CorruptLakeError(f"{path}: cannot be read ({error}), so nobody knows which payloads it needs") from error
    return {name for column in found for name in pc.unique(column).to_pylist() if name is not None}
