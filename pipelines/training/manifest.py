"""A training set's manifest: all that a reader needs, and all that explains where the set came from."""

import mmap
import re
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec
import pyarrow as pa

from catchment.runtime.beneath import RefusedFileError, binary_beneath
from pipelines.errors import BadReferenceError, CorruptLakeError, NotFoundError, RefusedError
from pipelines.training.array_rules import ArrayPart

FORMAT = "catchment.training-set/1"
SET_SOURCE = "sets/"
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
MAX_BLOCK_S = 366 * 86_400
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_FILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}(/[a-z0-9][a-z0-9._-]{0,127}){0,7}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Source(msgspec.Struct, frozen=True):
    """A stream table at the Delta version that was read, and how many of its rows were selected.

    Of a joined stream, `rows` are those of the set that found a row there. An earlier set is called `sets/<name>`, and its
    version is that of the set.
    """

    stream: str
    delta_version: int
    rows: int

    @property
    def version_words(self) -> str:
        """Its version, as people read it."""
        return f"{'version' if self.stream.startswith(SET_SOURCE) else 'Delta version'} {self.delta_version:,}"


class SplitRule(msgspec.Struct, frozen=True):
    """Rows whose `group` columns are equal go to the same split; `fractions` sum to 1.

    `stratify`: columns whose values are the classes that every split should hold. `block_s`: rows of one group in the same
    block of event time stay together, and blocks are what is split; 0: no blocks. `gap_s`: rows of different splits of one
    device lie at least so far apart. `method` "hash" is that of sets built by earlier releases.
    """

    group: tuple[str, ...]
    fractions: tuple[tuple[str, float], ...]
    stratify: tuple[str, ...] = ()
    block_s: float = 0.0
    gap_s: float = 0.0
    method: Literal["hash", "stratified"] = "hash"

    def __post_init__(self) -> None:
        names = [name for name, _ in self.fractions]
        if not self.group or not names or len(set(names)) != len(names) or any(not _NAME.fullmatch(name) for name in names):
            raise RefusedError("a split needs a group column, and distinct names of a-z, 0-9, '_' and '-'")
        total = sum(share for _, share in self.fractions)
        if any(not 0 < share <= 1 for _, share in self.fractions) or abs(total - 1) > 1e-9:
            raise RefusedError(f"the shares of a split must be above 0 and sum to 1, not to {total:g}")
        if not 0 <= self.block_s <= MAX_BLOCK_S or not 0 <= self.gap_s <= MAX_BLOCK_S:
            raise RefusedError(f"blocks and gaps of time must be from 0 to {MAX_BLOCK_S:,} s")


class FileEntry(msgspec.Struct, frozen=True):
    """One file of the set. `path` is relative to the manifest's folder; `sha256` is of the whole file."""

    split: str
    path: str
    rows: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not _FILE.fullmatch(self.path) or not _DIGEST.fullmatch(self.sha256) or self.rows < 0 or self.bytes < 0:
            raise CorruptLakeError(f"manifest: the entry of file {self.path[:80]!r} is malformed")


class ColumnEntry(msgspec.Struct, frozen=True):
    """A column of the set and its Arrow type, as text."""

    name: str
    type: str


class TagCount(msgspec.Struct, frozen=True):
    """How many rows of a split carry a tag."""

    split: str
    tag: str
    rows: int


class ClassCount(msgspec.Struct, frozen=True):
    """How many rows of a split are of a class, named `column=value`; 0 where the split lacks it."""

    split: str
    name: str
    rows: int


class LeftOut(msgspec.Struct, frozen=True):
    """Selected rows that did not enter the set, and why."""

    reason: str
    rows: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What one version of a training set holds. Never changes once written.

    `shards` of a split are in order: row i of the split is row i of its shards laid end to end. With a payload, `indexes`
    names for each split an Arrow IPC file of the same rows without payload, plus `payload_offset` and `payload_length`.
    `groups` is a Parquet file of every group and its split. Versions of the same `line` never move a group. `spec` is the set
    spec that it was built by, if any. `arrays` are the Zarr arrays of a set of windows or pixels, whose keys the shards hold;
    `array_files` are the files that they consist of. `builder` is the version of the order of rows: 1: drawn by the seed; 2: by
    a number of each row's key.
    """

    format: str = FORMAT
    name: str
    version: int
    created_ms: int
    code_version: str
    sources: tuple[Source, ...]
    where: str
    seed: int
    split: SplitRule
    columns: tuple[ColumnEntry, ...]
    has_payload: bool
    shards: tuple[FileEntry, ...]
    indexes: tuple[FileEntry, ...] = ()
    tags: tuple[TagCount, ...] = ()
    policies: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    groups: FileEntry | None = None
    coverage: tuple[ClassCount, ...] = ()
    line: int = 0
    notes: tuple[str, ...] = ()
    arrays: ArrayPart | None = None
    array_files: tuple[FileEntry, ...] = ()
    spec: dict[str, Any] | None = None
    builder: int = 1

    def __post_init__(self) -> None:
        for file in (*self.shards, *self.indexes, *((self.groups,) if self.groups else ())):
            if "/" in file.path:
                raise CorruptLakeError(f"manifest: the entry of file {file.path!r} is malformed: only arrays lie in folders")

    @property
    def rows(self) -> int:
        """Rows of all splits together."""
        return sum(shard.rows for shard in self.shards)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file that the manifest names."""
        return (*self.shards, *self.indexes, *self.array_files, *((self.groups,) if self.groups else ()))

    @property
    def bytes(self) -> int:
        """Bytes of all files that the manifest names."""
        return sum(file.bytes for file in self.files)

    def split_rows(self) -> dict[str, int]:
        """Rows of each split, in the order of the split rule."""
        return {name: sum(shard.rows for shard in self.shards_of(name)) for name, _ in self.split.fractions}

    def shards_of(self, split: str) -> tuple[FileEntry, ...]:
        """The shards of one split, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)


def checked_set_name(name: str) -> str:
    """The name itself, if a set may be called so.

    Raises:
        RefusedError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise RefusedError(f"set name {name[:80]!r} must be 1-63 of a-z, 0-9, '_' and '-', starting with a letter")
    return name


def encode_manifest(manifest: Manifest) -> bytes:
    """Readable JSON with a stable order."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def open_set_file(folder: Path, name: str) -> BinaryIO:
    """Open a file of a set. The set's folder may be a link; a file in it may not, for then it is not the set's.

    Raises:
        BadReferenceError: it is a link, or not a plain file.
        CorruptLakeError: it is missing or cannot be read.
    """
    try:
        return binary_beneath(folder, name)
    except RefusedFileError as error:
        raise BadReferenceError(f"{folder / name}: {error.strerror}; copy the file itself into the set's folder") from error
    except OSError as error:
        raise CorruptLakeError(
            f"{folder / name}: cannot be opened ({error.strerror}); restore the set or build it again"
        ) from error


def set_file_path(folder: Path, name: str) -> Path:
    """The path of a file of a set, for what opens by path only. Raises as `open_set_file`."""
    with open_set_file(folder, name):
        return folder / name


def map_set_file(folder: Path, name: str) -> pa.Buffer:
    """A file of a set mapped into memory, for as long as somebody holds the buffer. Raises as `open_set_file`.

    Raises:
        ValueError: it is empty.
    """
    with open_set_file(folder, name) as file:
        return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        NotFoundError: there is none at that path.
        BadReferenceError: it is a link.
        CorruptLakeError: it is not a manifest of this format.
    """
    try:
        with binary_beneath(path.parent, path.name) as file:
            body = file.read(MAX_MANIFEST_BYTES + 1)
    except RefusedFileError as error:
        raise BadReferenceError(f"{path}: {error.strerror}; copy the file itself into the set's folder") from error
    except OSError as error:
        raise NotFoundError(f"{path}: no training set there ({error.strerror}); `set ls` shows what there is") from error
    if len(body) > MAX_MANIFEST_BYTES:
        raise CorruptLakeError(f"{path}: a manifest above {MAX_MANIFEST_BYTES} bytes; restore the set or build it again")
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except (msgspec.MsgspecError, RefusedError) as error:
        raise CorruptLakeError(f"{path}: not a manifest ({error}); restore the set or build it again") from error
    if manifest.format != FORMAT:
        raise CorruptLakeError(f"{path}: format {manifest.format!r}, this version reads {FORMAT!r}")
    return manifest
