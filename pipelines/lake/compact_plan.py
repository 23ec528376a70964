"""Which small files become one. No IO.

Stands alone because it is a decision without IO, which `make mutants` changes.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SMALL_BYTES = 64 * 1024 * 1024
TARGET_BYTES = 128 * 1024 * 1024
SMALL_PAYLOAD_BYTES = 128 * 1024 * 1024
TARGET_PAYLOAD_BYTES = 512 * 1024 * 1024
TARGET_ROWS = 4_000_000
MIN_FILES = 4
# Of tables whose old versions stay readable for good.
MIN_LASTING_FILES = 16
COMPACTED = "compact-"


class Small(NamedTuple):
    """A live file: its path below the table's folder, rows, bytes, and the bytes of the payload shard that is its own."""

    path: str
    rows: int
    bytes: int
    payload_bytes: int = 0


def bins(files: Iterable[Small], min_files: int = MIN_FILES) -> list[tuple[Small, ...]]:
    """Neighbouring small files, put together up to the targets; a group of fewer than `min_files` is not worth a rewrite.

    A file is small if its rows are few or if its payload shard is small: a frequent run writes both.
    """
    found: list[tuple[Small, ...]] = []
    current: list[Small] = []
    for file in sorted(files):
        if not _is_small(file):
            continue
        if current and not _fits([*current, file]):
            found.append(tuple(current))
            current = []
        current.append(file)
    found.append(tuple(current))
    return [group for group in found if len(group) >= min_files]


def tiers(files: Iterable[Small], min_files: int) -> list[tuple[Small, ...]]:
    """The same for a table of which every version stays readable: what was put together before waits for as many of its kind.

    Each row is written again only once in so many commits, and once more in the square of so many: the old files stay, too.
    """
    made: list[Small] = []
    fresh: list[Small] = []
    for file in files:
        (made if file.path.startswith(COMPACTED) else fresh).append(file)
    return [*bins(fresh, min_files), *bins(made, min_files)]


def name_of(group: Sequence[Small], salt: str = "") -> str:
    """The name of the file that a group becomes: the same group gives the same name, so a repeated try replaces its own."""
    text = "\n".join([salt, *(file.path for file in group)])
    return f"{COMPACTED}{hashlib.sha256(text.encode()).hexdigest()[:24]}.parquet"


def _is_small(file: Small) -> bool:
    return file.payload_bytes < SMALL_PAYLOAD_BYTES if file.payload_bytes else file.bytes < SMALL_BYTES


def _fits(files: Sequence[Small]) -> bool:
    return (
        sum(file.bytes for file in files) <= TARGET_BYTES
        and sum(file.rows for file in files) <= TARGET_ROWS
        and sum(file.payload_bytes for file in files) <= TARGET_PAYLOAD_BYTES
    )
