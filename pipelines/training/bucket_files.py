"""The files of a set in a bucket: rows of payload shards come by range requests into a bounded cache on this machine's disk.

A cached shard is a sparse file in which each row has its place in the object, followed by one byte for each row that says
whether it is here. One file, so that both come and go together; any number of processes share it.
"""

import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.config import RemoteConfig
from pipelines.errors import CorruptLakeError, NotFoundError
from pipelines.lake.fetch_parts import Parts, fetch_parts
from pipelines.lake.payload import PREFIX_BYTES
from pipelines.lake.remote import Remote
from pipelines.training.manifest import MANIFEST_NAME, FileEntry, Manifest, load_manifest, map_set_file, open_set_file
from pipelines.training.set_files import Int64s, RowCache, ShardRows

DEFAULT_CACHE_BYTES = 16 * 1024**3
ROWS_FOLDER = "rows"
# Ranges nearer than this become one request; beyond it, a request of its own costs less than the bytes between.
_GAP_BYTES = 64 * 1024
# What comes along with a row where those around it will be wanted, too.
_PIECE_BYTES = 4 * 1024 * 1024
_MAX_RANGE_BYTES = 16 * 1024 * 1024
_BLOCK_BYTES = 8 * 1024 * 1024
# The cache is looked through after each 16th of its size.
_SWEEPS = 16
# Manifests, indexes and what describes arrays: small, and wanted as long as a set is read.
_KEPT = frozenset({".json", ".arrow"})
_PAGE_BYTES = mmap.ALLOCATIONGRANULARITY


@dataclass(frozen=True, slots=True)
class CacheRule:
    """Where copies of what a bucket holds are kept on this machine, and how many bytes of them."""

    folder: Path
    max_bytes: int = DEFAULT_CACHE_BYTES


def default_cache_folder() -> Path:
    """`$CATCHMENT_CACHE`, or `catchment` in the user's folder of caches."""
    named = os.environ.get("CATCHMENT_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "catchment"


def open_bucket(url: str, cache: CacheRule) -> tuple["BucketFiles", Manifest]:
    """A set at an address such as `s3://bucket/sets/braking/1`: its files and its manifest, of which a copy is kept.

    Raises:
        NotFoundError: there is no manifest.
        CorruptLakeError: it is not a manifest of this format.
        RetryLaterError: the storage is unavailable.
    """
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    config = RemoteConfig(url, os.environ.get("AWS_ENDPOINT_URL", ""), region)
    fetched = cache.folder / "manifests" / hashlib.sha256(f"{config.endpoint} {url} {os.getpid()}".encode()).hexdigest()
    fetched.mkdir(parents=True, exist_ok=True)
    path = fetched / MANIFEST_NAME
    try:
        fetch_parts(Parts(config, MANIFEST_NAME, str(path)))
        manifest, digest = load_manifest(path), hashlib.sha256(path.read_bytes()).hexdigest()
        files = BucketFiles(config, manifest, digest, cache)
        files.folder.mkdir(parents=True, exist_ok=True)
        path.replace(files.folder / MANIFEST_NAME)
    except FileNotFoundError as error:
        raise NotFoundError(f"{url}: no training set there") from error
    finally:
        path.unlink(missing_ok=True)
        fetched.rmdir()
    return files, manifest


class BucketFiles:
    """The files of one set below an address such as `s3://bucket/sets/braking/1`."""

    def __init__(self, config: RemoteConfig, manifest: Manifest, manifest_sha256: str, cache: CacheRule) -> None:
        self._parts = (config, manifest, manifest_sha256, cache)
        self._remote = Remote(config)
        self._entries = {entry.path: entry for entry in manifest.files}
        self._sparse = {entry.path for entry in manifest.shards} if manifest.has_payload else set()
        # By the manifest's bytes: whatever stands at that address one day, nothing is mixed.
        place = hashlib.sha256(f"{config.endpoint} {config.url} {manifest_sha256}".encode()).hexdigest()[:24]
        self.folder = cache.folder / place
        self._rows = CachedRows(config, self.folder / ROWS_FOLDER, cache)

    def __reduce__(self) -> tuple[type["BucketFiles"], tuple[RemoteConfig, Manifest, str, CacheRule]]:
        return BucketFiles, self._parts

    @property
    def rows(self) -> RowCache | None:
        """What brings rows here."""
        return self._rows

    def open(self, name: str) -> BinaryIO:
        """Open a file, fetched and compared with its sha256 unless it is here."""
        self._bring(name)
        return open_set_file(self.folder, name)

    def map(self, name: str) -> pa.Buffer:
        """Map a file into memory."""
        self._bring(name)
        return map_set_file(self.folder, name)

    def path(self, name: str) -> Path:
        """The path of the copy."""
        self._bring(name)
        return self.folder / name

    def open_shard(self, entry: FileEntry) -> BinaryIO:
        """Open the sparse copy of a shard; one of arrays comes whole, as its index lies at its end."""
        return self._rows.open(entry) if entry.path in self._sparse else self.open(entry.path)

    @contextmanager
    def reading(self, entry: FileEntry) -> Iterator[Iterator[bytes]]:
        """The object, a block at a time, past the cache."""
        try:
            yield (
                self._remote.part(entry.path, start, min(_BLOCK_BYTES, entry.bytes - start))
                for start in range(0, entry.bytes, _BLOCK_BYTES)
            )
        except FileNotFoundError as error:
            raise _is_gone(self._remote.where(entry.path)) from error

    def _bring(self, name: str) -> None:
        entry, path = self._entries.get(name), self.folder / name
        if entry is None:
            raise CorruptLakeError(f"{self._remote.where(name)}: the manifest lists no such file")
        with suppress(FileNotFoundError):
            if path.stat().st_size == entry.bytes:
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fetch_parts(Parts(self._remote.config, name, str(fresh)))
            with fresh.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != entry.sha256:
                raise CorruptLakeError(f"{self._remote.where(name)}: not the file that the manifest lists; restore the set")
            fresh.replace(path)
        except FileNotFoundError as error:
            raise _is_gone(self._remote.where(name)) from error
        finally:
            fresh.unlink(missing_ok=True)


class CachedRows:
    """Rows of payload shards in sparse files."""

    def __init__(self, config: RemoteConfig, folder: Path, cache: CacheRule) -> None:
        self._config = config
        self._folder = folder
        self._cache = cache
        self._present: dict[str, tuple[int, npt.NDArray[np.uint8]]] = {}
        self._unswept = 0

    def open(self, entry: FileEntry) -> BinaryIO:
        """Open the sparse file of a shard, made if there is none."""
        path = self._folder / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        size = _presence_at(entry) + entry.rows
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)
        return os.fdopen(descriptor, "r+b")

    def is_current(self, descriptor: int) -> bool:
        """Whether the file still has its name: one that was swept out is filled no more."""
        return os.fstat(descriptor).st_nlink > 0

    def hold(self, wanted: ShardRows, every: ShardRows | None = None) -> None:
        """Fetch what is missing, in as few requests as that takes."""
        came_bytes = None
        while came_bytes is None:
            with self.open(wanted.entry) as file:
                os.utime(file.fileno())
                came_bytes = self._held(file, wanted, every)
        if came_bytes:
            self._sweep(came_bytes, self._folder / wanted.entry.path)

    def _held(self, file: BinaryIO, wanted: ShardRows, every: ShardRows | None) -> int | None:
        """The bytes that came; None if the file was swept out meanwhile, and they may have gone to its successor."""
        present = self._presence(wanted.entry, file)
        if present[wanted.rows].all():
            return 0
        if every is not None:
            # One process fetches a piece, the others wait for it. A lock of a file goes with its process.
            fcntl.flock(file, fcntl.LOCK_EX)
            wanted = _pieces_around(wanted, every)
        missing = np.flatnonzero(present[wanted.rows] == 0)
        missing = missing[np.argsort(wanted.offsets[missing], kind="stable")]
        starts = wanted.offsets[missing] - PREFIX_BYTES
        ranges = merged_ranges(starts, starts + PREFIX_BYTES + wanted.lengths[missing])
        if ranges and ranges[-1][1] > wanted.entry.bytes:
            raise CorruptLakeError(f"{wanted.entry.path}: a row lies beyond its end; run `set verify`")
        try:
            for part in _by_size(ranges):
                self._fetch(wanted.entry, part)
        except FileNotFoundError as error:
            if self.is_current(file.fileno()):
                raise _is_gone(f"{self._config.url}/{wanted.entry.path}") from error
        if not self.is_current(file.fileno()):
            return None
        present[wanted.rows[missing]] = 1
        return sum(end - start for start, end in ranges)

    def forget(self, rows: ShardRows) -> None:
        """Mark rows as missing."""
        with self.open(rows.entry) as file:
            self._presence(rows.entry, file)[rows.rows] = 0

    def _presence(self, entry: FileEntry, file: BinaryIO) -> npt.NDArray[np.uint8]:
        """Of each row whether it is here; mapped, so that all processes see it."""
        inode = os.fstat(file.fileno()).st_ino
        known = self._present.get(entry.path)
        if known is None or known[0] != inode:
            mapped = np.memmap(file, np.uint8, "r+", _presence_at(entry), (entry.rows,))
            known = self._present[entry.path] = inode, mapped
        return known[1]

    def _fetch(self, entry: FileEntry, ranges: Sequence[tuple[int, int]]) -> None:
        starts, lengths = tuple(start for start, _ in ranges), tuple(end - start for start, end in ranges)
        fetch_parts(Parts(self._config, entry.path, str(self._folder / entry.path), starts, lengths))

    def _sweep(self, came_bytes: int, kept: Path) -> None:
        """Delete the shards used longest ago while the copies of all sets together are too many."""
        self._unswept += came_bytes
        if self._unswept < self._cache.max_bytes // _SWEEPS:
            return
        self._unswept = 0
        found: list[tuple[float, int, Path]] = []
        for path in self._cache.folder.glob("*/**/*"):
            with suppress(FileNotFoundError):
                seen = path.stat()
                if path.suffix not in _KEPT and S_ISREG(seen.st_mode):
                    found.append((seen.st_mtime, seen.st_blocks * 512, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._cache.max_bytes:
                break
            if path != kept:
                path.unlink(missing_ok=True)
                total -= size


def merged_ranges(starts: Int64s, ends: Int64s) -> list[tuple[int, int]]:
    """Ascending ranges as few larger ones: those less than 64 KiB apart become one, of at most 16 MiB unless a row is larger."""
    merged: list[tuple[int, int]] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if merged and start - merged[-1][1] <= _GAP_BYTES and end - merged[-1][0] <= _MAX_RANGE_BYTES:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _by_size(ranges: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Ranges in groups that fit into memory together."""
    group: list[tuple[int, int]] = []
    size = 0
    for start, end in ranges:
        if group and size + end - start > 4 * _MAX_RANGE_BYTES:
            yield group
            group, size = [], 0
        group.append((start, end))
        size += end - start
    if group:
        yield group


def _pieces_around(wanted: ShardRows, every: ShardRows) -> ShardRows:
    """All rows in those 4 MiB of a shard in which a wanted row begins."""
    pieces = np.unique(wanted.offsets // _PIECE_BYTES)
    near = np.isin(every.offsets // _PIECE_BYTES, pieces)
    return ShardRows(wanted.entry, every.rows[near], every.offsets[near], every.lengths[near])


def _presence_at(entry: FileEntry) -> int:
    """Where the bytes that say which rows are here begin: behind the shard, where memory can be mapped."""
    return -(-entry.bytes // _PAGE_BYTES) * _PAGE_BYTES


def _is_gone(where: str) -> CorruptLakeError:
    return CorruptLakeError(f"{where}: is gone, and the manifest lists it; restore the set or build it again")
