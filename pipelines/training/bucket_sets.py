"""Training sets of a remote lake: built and read on this machine's disk, kept in the bucket for every machine.

A number is taken by a put that the storage refuses if somebody has it; the manifest comes last, so a set is there whole or not
at all. For a lake that is a folder nothing here does anything.
"""

from pathlib import Path
from secrets import token_bytes

from pipelines.lake.lake import Lake
from pipelines.lake.layout import SET_NUMBERS, SETS
from pipelines.training.manifest import MANIFEST_NAME, Manifest


def take_number(lake: Lake, name: str, version: int) -> None:
    """Take a version number of a set for good.

    Raises:
        ConflictError: somebody has it.
        RetryLaterError: the storage is away.
    """
    if not lake.store.renames_folders:
        # No two takers write the same bytes: an answer that was lost is told from somebody else's.
        lake.store.create(f"{SETS}/{name}/{SET_NUMBERS}/{version}", token_bytes(16))


def share_set(lake: Lake, folder: Path) -> None:
    """Bring a finished set to the bucket.

    Raises:
        RetryLaterError: the storage is away; the set is not there for others, and its number stays empty.
    """
    manifest = folder / MANIFEST_NAME
    lake.upload(path for path in sorted(folder.rglob("*")) if path.is_file() and path != manifest)
    lake.upload([manifest])


def bring_set(lake: Lake, folder: Path, manifest: Manifest) -> None:
    """See to it that every file of a set lies in its folder here.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    for name in ("card.html", *(entry.path for entry in manifest.files)):
        lake.local(folder / name)


def taken_numbers(lake: Lake, name: str) -> list[int]:
    """The version numbers that builds on whatever machine have taken.

    Raises:
        RetryLaterError: the storage is away.
    """
    files = lake.files(f"{SETS}/{name}/{SET_NUMBERS}")
    return [int(last) for file in files if (last := file.name.rsplit("/", 1)[-1]).isdecimal()]
