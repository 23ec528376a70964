"""What a crash left in the landing folder: every open segment is cut to its whole messages and sealed.

A torn tail was never acknowledged (the ack follows the sync), so the broker sends those messages again. It is still set
aside rather than thrown away: nothing that arrived disappears without a trace.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from catchment.runtime.atomic_files import sync_folder, write_atomic
from pipelines.bridge.rows import SEGMENT_SCHEMA
from pipelines.bridge.segment import END_OF_STREAM, OPEN_SUFFIX, map_file, sealed_path, segment_number, walk

TORN_FOLDER = "torn"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of one open segment: `sealed` is None where no whole message was in it and its number is free again."""

    number: int
    sealed: Path | None
    messages: int
    torn_bytes: int
    reason: str


def recover_folder(folder: Path) -> tuple[int, list[Recovered]]:
    """Bring a landing folder to a state from which writing can go on.

    Returns:
        The number of the next segment (above every one that exists), and what was found.

    Raises:
        OSError: the disk refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [number for path in folder.iterdir() if (number := segment_number(path)) is not None]
    highest = max(numbers, default=0)
    found = [
        _recover(folder, path, is_last=segment_number(path) == highest)
        for path in sorted(folder.glob(f"*{OPEN_SUFFIX}"))
        if segment_number(path) is not None
    ]
    sync_folder(folder)
    is_free = bool(found) and found[-1].number == highest and found[-1].sealed is None
    return (highest if is_free else highest + 1), found


def whole_prefix(path: Path) -> tuple[int, int, str]:
    """How far an open segment is good.

    Returns:
        The byte behind the last whole batch (0 if there is none), the messages up to there, and what stood in the way of more.

    Raises:
        OSError: the file cannot be opened.
    """
    content = map_file(path)
    good_bytes = messages = 0
    try:
        for end, batch in walk(content):
            good_bytes, messages = end, messages + batch.num_rows
    except (OSError, pa.ArrowException) as error:
        return good_bytes, messages, str(error)
    return good_bytes, messages, ""


def _recover(folder: Path, path: Path, *, is_last: bool) -> Recovered:
    number = segment_number(path)
    assert number is not None, "the caller lists only segments"
    good_bytes, messages, reason = whole_prefix(path)
    torn_bytes = _move_to_corrupt(folder, path, number, good_bytes) if messages or reason else 0
    if messages:
        _end_at(path, good_bytes)
    elif is_last:
        path.unlink()
        return Recovered(number, None, 0, torn_bytes, reason)
    else:
        # Its number is given out and a gap would stop the reader: seal it empty.
        write_atomic(path, _empty_segment())
    sealed = sealed_path(folder, number)
    path.rename(sealed)
    return Recovered(number, sealed, messages, torn_bytes, reason)


def _move_to_corrupt(folder: Path, path: Path, number: int, good_bytes: int) -> int:
    """Keep what follows the whole batches as `torn/<number>-<offset>`, unless it is but the end-of-stream mark."""
    with path.open("rb") as file:
        file.seek(good_bytes)
        tail = file.read()
    if tail in (b"", END_OF_STREAM):
        return 0
    aside = folder / TORN_FOLDER
    aside.mkdir(exist_ok=True)
    write_atomic(aside / f"{number:012d}-{good_bytes}", tail)
    return len(tail)


def _end_at(path: Path, good_bytes: int) -> None:
    with path.open("r+b") as file:
        file.truncate(good_bytes)
        file.seek(good_bytes)
        file.write(END_OF_STREAM)
        file.flush()
        os.fsync(file.fileno())


def _empty_segment() -> bytes:
    return bytes(SEGMENT_SCHEMA.serialize()) + END_OF_STREAM
