"""Which entries of a table's log stay. No IO.

Stands alone because it is a decision without IO.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pipelines.lake.delta_log import DeltaLogFile, LogKind


@dataclass(frozen=True, slots=True)
class KeepLog:
    """How long older versions can be opened: for `age_s`, but no more than the last `versions`; none goes before `grace_s`."""

    age_s: float
    versions: int
    grace_s: float

    def __post_init__(self) -> None:
        if self.age_s < 0 or self.versions < 1 or self.grace_s < 0:
            raise ValueError(f"keep at least one version, and for no negative time: {self}")


def first_kept(files: Sequence[DeltaLogFile], keep: KeepLog, now_s: float) -> int | None:
    """The oldest version whose entry stays; None where no entry goes. The newest always stays: a commit follows from it."""
    entries = [file for file in files if file.kind is LogKind.ENTRY]
    for place, file in enumerate(entries):
        age_s = now_s - file.modified_s
        is_beyond = age_s >= keep.age_s or file.version <= entries[-1].version - keep.versions
        if file.version == entries[-1].version or not is_beyond or age_s < keep.grace_s:
            return file.version if place else None
    return None


def superfluous(files: Sequence[DeltaLogFile], first: int, pinned: Collection[int]) -> list[DeltaLogFile]:
    """The files that no version from `first` on needs, oldest first, and neither do the pinned ones.

    A pinned version and the one before it can be opened: the entry of the first stays, and the checkpoint of the other.
    """
    entries, states = set(pinned), {version - 1 for version in pinned}
    return [
        file
        for file in files
        if file.version < first
        and not (file.kind is LogKind.ENTRY and file.version in entries)
        and not (file.kind is LogKind.CHECKPOINT and file.version in states)
        and file.kind is not LogKind.FOREIGN
    ]
