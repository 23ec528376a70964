"""Bringing what a run has written to the lake's store, before its commit names it."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipelines.errors import CorruptLakeError
from pipelines.lake.files import NewFile
from pipelines.lake.lake import Lake
from pipelines.lake.layout import CHIPS, LANDING, PAYLOAD, STREAMS, cut_prefix, prepared_path
from pipelines.lake.polling import polled


def upload_files(lake: Lake, files: Sequence[NewFile]) -> None:
    """See to it that every file that a commit will name is in the lake, as it was written.

    Raises:
        CorruptLakeError: one is gone, or of another size.
        RetryLaterError: the storage is unavailable.
    """
    lake.upload(path for file in files if (path := lake.root / file.path).is_file())
    for file in files:
        path = lake.root / file.path
        size = path.stat().st_size if path.is_file() else lake.size(path)
        if size != file.bytes:
            raise CorruptLakeError(f"{path}: prepared with {file.bytes} bytes and no longer so; delete its run's prepared.json")


def upload_payloads(lake: Lake, files: Sequence[NewFile]) -> None:
    """Bring the payload shards of a run's rows to the store.

    Raises:
        RetryLaterError: the storage is unavailable.
    """
    lake.upload(payload_paths(lake, files))


def upload_run(lake: Lake, run: int, files: Sequence[NewFile]) -> None:
    """Bring all that a run has prepared to the store, and last the word that it is prepared.

    From here on any machine ends the run in the same way. No commit names payload shards, but rows will.

    Raises:
        CorruptLakeError: a file is gone, or of another size.
        RetryLaterError: the storage is unavailable.
    """
    upload_payloads(lake, files)
    upload_files(lake, files)
    lake.upload(path for path in (prepared_path(lake.root, run),) if path.is_file())


def payload_paths(lake: Lake, files: Iterable[NewFile]) -> Iterator[Path]:
    """The files in the lake's folder that hold the payloads of a run's rows."""
    rows = (lake.root / file.path for file in files if file.table.startswith(f"{STREAMS}/"))
    yield from filter(Path.is_file, (lake.root / PAYLOAD / path.parent.name / path.name for path in rows))


def upload_cut(lake: Lake, cut: int) -> None:
    """Bring the pixels and pictures of a cut to the store, before rows name them.

    Raises:
        RetryLaterError: the storage is unavailable.
    """
    lake.upload(cut_paths(lake, cut))


def cut_paths(lake: Lake, cut: int) -> Iterator[Path]:
    """The files in the lake's folder that hold the pixels and pictures of a cut."""
    for found in (lake.root / CHIPS).glob(f"[!.]*/*/{cut_prefix(cut)}-*"):
        yield from filter(Path.is_file, ([found], found.rglob("*"))[found.is_dir()])


def bridges_of(lake: Lake) -> list[str]:
    """The bridges that have landed anything, by name.

    Raises:
        RetryLaterError: the storage is unavailable.
    """
    return polled(lake, LANDING, lambda: [name for name in lake.folders(LANDING) if not name.startswith(".")])
