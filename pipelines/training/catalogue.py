"""Which training sets a lake holds."""

from pathlib import Path

from pipelines.errors import NotFoundError, RefusedError
from pipelines.lake.copy import at_hand, folders_of
from pipelines.lake.layout import SETS
from pipelines.lake.remote import remote_of
from pipelines.training.manifest import MANIFEST_NAME, Manifest, checked_set_name, load_manifest


def list_sets(lake_root: Path) -> list[Manifest]:
    """Every version of every set, by name and version.

    Raises:
        CorruptLakeError: a manifest cannot be read.
    """
    found = [(name, number) for name in folders_of(lake_root, SETS) for number in _versions(lake_root, name)]
    return [load_manifest(lake_root / SETS / name / str(number) / MANIFEST_NAME) for name, number in found]


def set_folder(lake_root: Path, reference: str) -> Path:
    """The folder of `name` (its newest version), or of `name/version`.

    Raises:
        NotFoundError: no such set or version.
        RefusedError: not of that form.
    """
    name, slash, version = reference.partition("/")
    home = lake_root / "sets" / checked_set_name(name)
    if slash and not version.isdecimal():
        raise RefusedError(f"{reference[:80]!r}: give name or name/version, the version a number")
    versions = _versions(lake_root, home.name)
    wanted = int(version) if slash else max(versions, default=0)
    if wanted not in versions:
        raise NotFoundError(f"no set {reference} in {lake_root}; `set ls` shows what there is")
    return home / str(wanted)


def _versions(lake_root: Path, name: str) -> list[int]:
    numbers = sorted(int(each) for each in folders_of(lake_root, f"{SETS}/{name}") if each.isdecimal() and each.isascii())
    if remote_of(lake_root) is None:
        return numbers
    # The manifest comes last: without one, a set is still on its way, or its builder died.
    home = lake_root / SETS / name
    return [number for number in numbers if at_hand(lake_root, home / str(number) / MANIFEST_NAME).exists()]
