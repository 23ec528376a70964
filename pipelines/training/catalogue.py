"""Which training sets a lake holds."""

from pathlib import Path

from pipelines.errors import NotFoundError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import SETS
from pipelines.training.manifest import MANIFEST_NAME, Manifest, checked_set_name, load_manifest


def list_sets(lake: Lake) -> list[Manifest]:
    """Every version of every set, by name and version.

    Raises:
        CorruptLakeError: a manifest cannot be read.
    """
    found = [(name, number) for name in lake.folders(SETS) for number in _versions(lake, name)]
    return [load_manifest(lake.root / SETS / name / str(number) / MANIFEST_NAME) for name, number in found]


def set_folder(lake: Lake, reference: str) -> Path:
    """The folder of `name` (its newest version), or of `name/version`.

    Raises:
        NotFoundError: no such set or version.
        RefusedError: not of that form.
    """
    name, slash, version = reference.partition("/")
    home = lake.root / "sets" / checked_set_name(name)
    if slash and not version.isdecimal():
        raise RefusedError(f"{reference[:80]!r}: give name or name/version, the version a number")
    versions = _versions(lake, home.name)
    wanted = int(version) if slash else max(versions, default=0)
    if wanted not in versions:
        raise NotFoundError(f"no set {reference} in {lake.root}; `set ls` shows what there is")
    return home / str(wanted)


def _versions(lake: Lake, name: str) -> list[int]:
    numbers = sorted(int(each) for each in lake.folders(f"{SETS}/{name}") if each.isdecimal() and each.isascii())
    if lake.store.renames_folders:
        return numbers
    # The manifest comes last: without one, a set is still on its way, or its builder died.
    home = lake.root / SETS / name
    return [number for number in numbers if lake.local(home / str(number) / MANIFEST_NAME).exists()]
