"""Which files of a lake something refers to, and which nothing does."""

from pathlib import Path

from tests.fakes.inventory import every_file, referenced


def files(root: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(root)) for path in root.glob(pattern) if path.is_file()}


def orphans(root: Path) -> set[str]:
    """Whatever nothing refers to; what is referred to must be there."""
    there, named = every_file(root), referenced(root)
    assert named <= there, sorted(named - there)
    return there - named
