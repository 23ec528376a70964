"""Which training sets a lake holds."""

from pathlib import Path

from pipelines.errors import NotFoundError, RefusedError
from pipelines.training.manifest import MANIFEST_NAME, Manifest, checked_set_name, load_manifest


def list_sets(lake_root: Path) -> list[Manifest]:
    """Every version of every set, by name and version.

    Raises:
        CorruptLakeError: a manifest cannot be read.
    """
    homes = sorted(path for path in (lake_root / "sets").glob("*") if path.is_dir())
    return [load_manifest(home / str(number) / MANIFEST_NAME) for home in homes for number in _versions(home)]


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
    versions = _versions(home)
    wanted = int(version) if slash else max(versions, default=0)
    if wanted not in versions:
        raise NotFoundError(f"no set {reference} in {lake_root}; `set ls` shows what there is")
    return home / str(wanted)


def _versions(home: Path) -> list[int]:
    return sorted(int(path.name) for path in home.glob("*") if path.name.isdecimal() and path.name.isascii())
