"""Find orphans: files that killed processes left half-written, and payloads that no table refers to any more.

Half-written files, unfinished work and copies of what the bucket has are found by name or place, because nothing refers to
them. Payloads that tables still need are the shards, objects and Zarr stores that a file of a stream's table refers to. The
vacuum decides whether an orphan is old enough to be deleted.
"""

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.bridge.segment import OPEN_SUFFIX, SEALED_SUFFIX, segment_number
from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import (
    ARCHIVE,
    CHIPS,
    COMMITS,
    LANDING,
    OBJECTS,
    PAYLOAD,
    QUALITY,
    QUARANTINE,
    QUARANTINE_CLOSED,
    REPLAYS,
    REQUESTS,
    ROLLUPS,
    RUNS,
    SET_DRAFT,
    SETS,
    STREAMS,
    backfills_folder,
    cut_prefix,
    landing_folder,
)
from pipelines.lake.ledger import KEPT_LEDGERS, Ledger
from pipelines.lake.store import Stored
from pipelines.lake.workplace import WORK_FOLDER as WORK
from pipelines.lake.workplace import workplace
from pipelines.training.manifest import MANIFEST_NAME

_HALF = re.compile(
    r"\..*\.(tmp|new)"  # our own, written next to
    r"|_commit_.*\.json\.tmp|.+#\d+"  # of the table library
    r"|.+\.[0-9a-f]{32}\.partial|.+\.[0-9a-f]{16}\.partial"  # of the array library
)
_TABLES_AND_PAYLOADS = (STREAMS, ROLLUPS, QUALITY, PAYLOAD, CHIPS, QUARANTINE, QUARANTINE_CLOSED, COMMITS, ARCHIVE)


_NAMING = ("payload_shard", "zarr_path")


def is_half_written(name: str) -> bool:
    """Whether a file's name, without its folders, is that of a file which is not yet what it is to become."""
    return _HALF.fullmatch(name) is not None


def half_written(lake: Lake) -> Iterator[Path]:
    """Files being written when their writer died, anywhere below the lake root."""
    for folder, folders, names in os.walk(lake.root):
        here = Path(folder)
        if here == lake.root:
            folders[:] = [name for name in folders if name != WORK]
        folders[:] = sorted(name for name in folders if not _is_draft(lake, here / name))
        yield from (here / name for name in sorted(names) if is_half_written(name))


def unfinished(lake: Lake, run: int, cut: int) -> Iterator[Path]:
    """Files and folders of work that did not come to its end: drafts of sets, backfills, lists of chips cut, replays unsealed.

    Args:
        lake: the lake.
        run: the last committed run.
        cut: the last committed cut of slides.
    """
    yield from sorted((lake.root / SETS).glob(f"*/{SET_DRAFT}*"))
    yield from sorted(backfills_folder(lake.root).glob("*"))
    yield from sorted((lake.root / WORK).glob("*"))
    in_hand = cut_prefix(cut + 1)
    yield from (path for path in sorted((lake.root / CHIPS / ".done").glob("*")) if not path.name.startswith(in_hand))
    replays = sorted(landing_folder(lake.root, REPLAYS).glob(f"*{OPEN_SUFFIX}"))
    yield from (path for path in replays if (segment_number(path) or 0) <= run)


def copies(lake: Lake, run: int, cut: int, cursors: Mapping[str, int]) -> Iterator[Path]:
    """Find copies of a remote lake's files that are not needed here: the bucket has them, or nobody does.

    Files of the run and the cut in hand stay, and sets that the bucket has whole: they were brought to be read.
    """
    in_hand = (f"{run + 1:012d}", cut_prefix(cut + 1))
    for parent in _TABLES_AND_PAYLOADS:
        found = (path for path in _copies(lake, parent) if not is_half_written(path.name))
        yield from (path for path in found if not any(part.startswith(in_hand) for part in path.relative_to(lake.root).parts))
    for path in _copies(lake, LANDING, f"*/*{SEALED_SUFFIX}"):
        number = segment_number(path)
        if number is not None and number < cursors.get(path.parent.name, run + 1 if path.parent.name == REPLAYS else 1):
            yield path
    yield from _not_here_for_long(lake, run)
    for manifest in _copies(lake, SETS, f"*/[0-9]*/{MANIFEST_NAME}"):
        if lake.size(manifest) is None:
            yield manifest.parent


def _copies(lake: Lake, name: str, pattern: str = "**/*") -> list[Path]:
    return [lake.root / each for each in lake.store.copies(name, pattern)]


def _not_here_for_long(lake: Lake, run: int) -> Iterator[Path]:
    objects = _copies(lake, OBJECTS, "[0-9a-f]*")
    whole = {file.name: file.bytes for file in lake.files(OBJECTS)} if objects else {}
    for path in objects:
        if whole.get(f"{OBJECTS}/{path.name}") == path.stat().st_size:
            yield path
    old = [path for path in _copies(lake, RUNS, "[0-9]*.*") if _run_of(path) <= run - KEPT_LEDGERS]
    old += _copies(lake, f"{RUNS}/{REQUESTS}", "[0-9]*.json")
    kept = {file.name for file in lake.files(RUNS)} if old else set()
    yield from (path for path in old if lake.name_of(path) not in kept)


def _run_of(path: Path) -> int:
    number = path.name.split(".", 1)[0]
    return int(number) if number.isdecimal() else 0


def _is_draft(lake: Lake, folder: Path) -> bool:
    """Drafts and backfills go, or stay, as wholes."""
    return (folder.name.startswith(SET_DRAFT) and folder.parent.parent == lake.root / SETS) or folder == backfills_folder(
        lake.root
    )


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
