"""The files of a table's Delta log: listed, read, and the notes that its commits carry."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipelines.errors import CorruptLakeError
from pipelines.lake.lake import Lake

FOLDER = "_delta_log"
HINT = "_last_checkpoint"
_KINDS = (
    (re.compile(r"(\d{20})\.json"), "entry"),
    (re.compile(r"(\d{20})\.checkpoint\.parquet"), "checkpoint"),
    (re.compile(r"(\d{20})\.(?:crc|\d{20}\.compacted\.json)"), "side"),
    (re.compile(r"(\d{20})\.checkpoint\..+"), "foreign"),
)


class LogKind(StrEnum):
    """What a file of a log holds: one commit, the state at a version, something derived, or a state in a foreign form."""

    ENTRY = "entry"
    CHECKPOINT = "checkpoint"
    SIDE = "side"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True)
class DeltaLogFile:
    """One file: its name below the lake root, its version and kind, its size, and when it was stored, in seconds since 1970."""

    name: str
    version: int
    kind: LogKind
    bytes: int
    modified_s: float


def log_files(lake: Lake, table: str) -> list[DeltaLogFile]:
    """The files of a table's log, by version. Of a remote lake: a listing.

    Raises:
        RetryLaterError: the storage is away.
    """
    prefix = f"{table}/{FOLDER}/"
    found: list[DeltaLogFile] = []
    for file in lake.files(f"{table}/{FOLDER}"):
        base = file.name.removeprefix(prefix)
        for pattern, kind in _KINDS:
            match = pattern.fullmatch(base)
            if match is not None:
                found.append(DeltaLogFile(file.name, int(match[1]), LogKind(kind), file.bytes, file.modified_s))
                break
        else:
            if base.startswith("_sidecars/"):
                found.append(DeltaLogFile(file.name, 0, LogKind.FOREIGN, file.bytes, file.modified_s))
    return sorted(found, key=lambda file: (file.version, file.name))


def entry_name(table: str, version: int) -> str:
    """The name of a log entry below the lake root."""
    return f"{table}/{FOLDER}/{version:020d}.json"


def checkpoint_name(table: str, version: int) -> str:
    """The name of a checkpoint below the lake root."""
    return f"{table}/{FOLDER}/{version:020d}.checkpoint.parquet"


def read_entry(lake: Lake, name: str) -> list[dict[str, Any]]:
    """The actions of one log entry.

    Raises:
        FileNotFoundError: there is no such entry.
        CorruptLakeError: it is not a log entry.
        RetryLaterError: the storage is away.
    """
    try:
        return [json.loads(line) for line in lake.read(lake.root / name).splitlines() if line.strip()]
    except ValueError as error:
        raise CorruptLakeError(f"{lake.root / name}: not an entry of a Delta log ({error}); restore _delta_log") from error


def commit_notes(lake: Lake, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """What each commit says of itself, newest first, with its version; of entries that are still there.

    The library's own history counts versions by their place, which is wrong where older entries have been deleted.

    Raises:
        CorruptLakeError: an entry cannot be read.
        RetryLaterError: the storage is away.
    """
    for file in reversed([file for file in log_files(lake, table) if file.kind is LogKind.ENTRY]):
        try:
            actions = read_entry(lake, file.name)
        except FileNotFoundError:
            continue  # maintenance has deleted it meanwhile
        for action in actions:
            if "commitInfo" in action:
                yield file.version, action["commitInfo"]
