"""Training sets of a remote lake: built and read on this machine's disk, kept in the bucket for every machine.

A number is taken by a put that the storage refuses if somebody has it; the manifest comes last, so a set is there whole or not
at all. For a lake that is a folder nothing here does anything.
"""

from pathlib import Path
from secrets import token_bytes

from pipelines.lake.copy import at_hand, name_of, send
from pipelines.lake.layout import SET_NUMBERS, SETS
from pipelines.lake.remote import remote_of
from pipelines.training.manifest import MANIFEST_NAME, Manifest


def take_number(lake_root: Path, name: str, version: int) -> None:
    """Take a version number of a set for good.

    Raises:
        ConflictError: somebody has it.
        RetryLaterError: the storage is away.
    """
    remote = remote_of(lake_root)
    if remote is not None:
        # No two takers write the same bytes: an answer that was lost is told from somebody else's.
        remote.create(f"{SETS}/{name}/{SET_NUMBERS}/{version}", token_bytes(16))


def share_set(lake_root: Path, folder: Path) -> None:
    """Bring a finished set to the bucket.

    Raises:
        RetryLaterError: the storage is away; the set is not there for others, and its number stays empty.
    """
    if remote_of(lake_root) is not None:
        manifest = folder / MANIFEST_NAME
        send(lake_root, sorted(path for path in folder.iterdir() if path.is_file() and path != manifest))
        send(lake_root, [manifest])


def bring_set(lake_root: Path, folder: Path, manifest: Manifest) -> None:
    """See to it that every file of a set lies in its folder here.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    for name in ("card.html", *(entry.path for entry in manifest.files)):
        at_hand(lake_root, folder / name)


def taken_numbers(lake_root: Path, name: str) -> list[int]:
    """The version numbers that builds on whatever machine have taken.

    Raises:
        RetryLaterError: the storage is away.
    """
    remote = remote_of(lake_root)
    if remote is None:
        return []
    folder = name_of(lake_root, lake_root / SETS / name / SET_NUMBERS)
    return [int(last) for file in remote.listed(folder) if (last := file.name.rsplit("/", 1)[-1]).isdecimal()]
