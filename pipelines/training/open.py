"""Read a training set: any sample by index with one pread, any epoch in a seeded order, stop and resume anywhere."""

import hashlib
from collections.abc import Iterator, Sequence
from copy import copy
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from catchment.runtime.plain import html_text, plain
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.lake.payload import PAYLOAD_COLUMN
from pipelines.training.array_reader import ArrayReader, dask_array, xarray_dataset
from pipelines.training.bucket_files import DEFAULT_CACHE_BYTES, CacheRule, default_cache_folder, open_bucket
from pipelines.training.index import SplitIndex
from pipelines.training.loading import Loading
from pipelines.training.manifest import MANIFEST_NAME, FileEntry, Manifest, encode_manifest, load_manifest, open_set_file
from pipelines.training.order import SampleOrder, Shuffle
from pipelines.training.payloads import CheckRule, Int64s, PayloadCheck, PayloadReader, check_rule
from pipelines.training.permutation import Permutation
from pipelines.training.sample import Sample
from pipelines.training.seeded_orders import BlockPermutation
from pipelines.training.set_files import FolderFiles, SetFiles

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_BLOCK = 4_096


class TrainingSet(Loading, Sequence[Sample]):
    """One split of a training set, as a sequence of samples. Safe to share between threads, to pickle and to fork."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        check: PayloadCheck | CheckRule | str | float = PayloadCheck.FIRST,
        where: str = "",
        files: SetFiles | None = None,
    ) -> None:
        """Read one split.

        Args:
            folder: the set's folder; for a set in a bucket, that of its copies.
            manifest: the set's.
            split: which split.
            check: as of `open_set`.
            where: an expression; only samples for which it is true are read.
            files: where files are read from; the folder by default.

        Raises:
            NotFoundError: there is no such split.
            RefusedError: the expression is not in the language, or `check` is no rule.
        """
        if split not in manifest.split_rows():
            raise NotFoundError(
                f"set {manifest.name} {manifest.version} has no split {split!r}; there are {', '.join(manifest.split_rows())}"
            )
        self.folder = folder
        self.manifest = manifest
        self.split = split
        self.where = where
        self._files = files if files is not None else FolderFiles(folder)
        self._check = check if isinstance(check, CheckRule) else check_rule(check)
        self._shards = manifest.shards_of(split)
        self._rows = SplitIndex(self._files, manifest, split)
        self._payloads = PayloadReader(self._files, manifest, split, self._rows, self._check)
        self._arrays = ArrayReader(self._files, manifest, split, self._check.kind) if manifest.arrays else None
        self._chosen = self._rows.chosen_by(where) if where.strip() else None
        self._count = manifest.split_rows()[split] if self._chosen is None else len(self._chosen)
        self._digest = hashlib.sha256(_manifest_bytes(folder, manifest) + where.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.__getitems__(range(*index.indices(self._count)))
        return self.__getitems__([index])[0]

    def __iter__(self) -> Iterator[Sample]:
        source = self.source(Shuffle.BLOCK)
        for low in range(0, self._count, _BLOCK):
            yield from chain.from_iterable(source.chunks(np.arange(low, min(low + _BLOCK, self._count), dtype=np.int64)))

    def filter(self, where: str) -> "TrainingSet":
        """The samples for which an expression is true, for instance `has('night') AND speed_mps > 10`.

        It is resolved once, over the columns; the result is shuffled, resumed and loaded as any set. `Sample.index` stays the row
        in the split.

        Raises:
            RefusedError: the expression is not in the language; the message says where.
        """
        joined = f"({self.where}) AND ({where})" if self.where else where
        return TrainingSet(self.folder, self.manifest, self.split, self._check, joined, self._files)

    def samples(self, indexes: Int64s) -> Iterator[Sample]:
        """These samples, in their order."""
        return chain.from_iterable(self.chunks(indexes))

    def chunks(self, indexes: Int64s) -> Iterator[list[Sample]]:
        """These samples, in their order, some at a time."""
        rows = self._rows
        indexes = indexes if self._chosen is None else self._chosen[indexes]
        if self._arrays is not None:
            for sample in self._arrays.samples(indexes, rows):
                yield [sample]
        elif not self.manifest.has_payload:
            yield [Sample(index, None, rows) for index in indexes.tolist()]
        else:
            numbers = iter(indexes.tolist())
            for payloads in self._payloads.chunks(indexes):
                yield list(map(Sample, islice(numbers, len(payloads)), payloads, repeat(rows)))

    @property
    def has_payload(self) -> bool:
        """Whether samples have payloads; those of a set of arrays have none."""
        return self.manifest.has_payload and self._arrays is None

    def payloads(self, indexes: Int64s) -> list[bytes]:
        """The payloads of these samples, in their order."""
        return list(self._payloads.many(indexes if self._chosen is None else self._chosen[indexes]))

    def mark_compared(self, indexes: Int64s) -> None:
        """Note that another process has compared the payloads of these samples with their sha256."""
        if self.has_payload:
            self._payloads.mark_compared(indexes if self._chosen is None else self._chosen[indexes])

    def trusted(self) -> "TrainingSet":
        """The same samples, not compared with their sha256: another process has done it."""
        twin = copy(self)
        twin._payloads = self._payloads.trusted()  # noqa: SLF001 - of the same class
        return twin

    def names(self, indexes: Int64s) -> dict[str, Any]:
        """What a batch says of which samples it holds: `index`, their rows in the split."""
        return {"index": indexes if self._chosen is None else self._chosen[indexes]}

    def expect(self, indexes: Int64s) -> None:
        """Have samples brought near that will be read next."""
        if self.has_payload:
            self._payloads.expect(indexes if self._chosen is None else self._chosen[indexes])

    def __getitems__(self, indexes: Sequence[int]) -> list[Sample]:
        """Several samples at once, as batch samplers ask for them.

        Raises:
            IndexError: one of them is outside the split.
        """
        wanted = np.asarray(indexes, np.int64)
        wanted = np.where(wanted < 0, wanted + self._count, wanted)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self._count):
            raise IndexError(f"samples {wanted.min()} to {wanted.max()} of {self._count}")
        return list(self.samples(wanted))

    def take(self, indexes: Int64s, columns: Sequence[str]) -> pa.Table:
        """These columns of these samples, in their order.

        Raises:
            RefusedError: no such column.
        """
        return self._rows.take(indexes if self._chosen is None else self._chosen[indexes], columns)

    def identity(self) -> tuple[str, str]:
        """What a state belongs to: a digest of manifest and filter, and the split."""
        return self._digest, self.split

    def order(self, seed: int, epoch: int, shuffle: Shuffle) -> SampleOrder:
        """The order of an epoch."""
        if shuffle is Shuffle.FULL:
            return Permutation(self._count, seed, epoch)
        ends = np.cumsum([shard.rows for shard in self._shards], dtype=np.int64)
        if self._chosen is not None:
            ends = np.searchsorted(self._chosen, ends)
        return BlockPermutation(tuple(np.diff(ends, prepend=0).tolist()), seed, epoch)

    def source(self, shuffle: Shuffle) -> "TrainingSet":
        """The same samples, read as suits an order: for one by blocks, rows next to each other come from a bucket together."""
        if shuffle is Shuffle.FULL or self._files.rows is None:
            return self
        twin = copy(self)
        twin._payloads = self._payloads.in_pieces()  # noqa: SLF001 - of the same class
        return twin

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows as an Arrow table, in the set's own order; payloads only where `payload` is among the columns.

        Raises:
            RefusedError: no such column.
        """
        wanted = list(columns) if columns is not None else [column.name for column in self.manifest.columns]
        if self.manifest.has_payload and PAYLOAD_COLUMN not in wanted:
            rows = self._rows.table(wanted)
        else:
            paths = [str(self._files.path(shard.path)) for shard in self._shards]
            try:
                rows = ds.dataset(paths, format="parquet").to_table(columns=wanted)
            except (OSError, pa.ArrowInvalid) as error:
                raise RefusedError(f"set {self.manifest.name} {self.manifest.version}: {error}") from error
        return rows if self._chosen is None else rows.take(pa.array(self._chosen))

    def to_numpy(self, columns: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Columns as NumPy arrays; a number column with nulls becomes float64 with NaN."""
        table = self.to_arrow(columns)
        return {name: _numpy_of(table.column(name)) for name in columns}

    def to_polars(self, columns: Sequence[str] | None = None) -> "pl.DataFrame":
        """The rows as a Polars frame. Arguments and errors are those of `to_arrow`."""
        import polars as pl  # noqa: PLC0415 - only for those who use it

        frame = pl.from_arrow(self.to_arrow(columns))
        return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()

    def to_pandas(self, columns: Sequence[str] | None = None) -> "pd.DataFrame":
        """The rows as a pandas frame. Arguments are those of `to_arrow`.

        Raises:
            RefusedError: no such column, or pandas is not installed.
        """
        try:
            frame: pd.DataFrame = self.to_arrow(columns).to_pandas()
        except ImportError as error:
            raise RefusedError("to_pandas needs pandas; install it (python -m pip install pandas)") from error
        return frame

    def to_duckdb(self, columns: Sequence[str] | None = None, connection: Any = None) -> Any:
        """The rows as a DuckDB relation, to be queried and joined. Arguments are those of `to_arrow`.

        Args:
            columns: which columns; all but the payload by default.
            connection: of DuckDB, in which the relation lives; DuckDB's default one if there is none.

        Raises:
            RefusedError: no such column, or DuckDB is not installed.
        """
        try:
            import duckdb  # noqa: PLC0415 - not among the dependencies
        except ImportError as error:
            raise RefusedError("to_duckdb needs DuckDB; install it (python -m pip install duckdb)") from error
        return duckdb.from_arrow(self.to_arrow(columns), connection=connection or duckdb.default_connection())

    def arrays(self, indexes: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of these samples, by name, samples first: `windows` and `mask`, or `pixels`.

        Raises:
            RefusedError: this set has no arrays.
            IndexError: a sample is outside the split.
        """
        if self._arrays is None:
            raise RefusedError(f"set {self.manifest.name} {self.manifest.version} has no arrays; build it with --format zarr")
        wanted = np.asarray(indexes, np.int64)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self._count):
            raise IndexError(f"samples {wanted.min()} to {wanted.max()} of {self._count}")
        return self.array_batch(wanted)

    def array_batch(self, indexes: Int64s) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of these samples, by name; none in a set without arrays."""
        chosen = indexes if self._chosen is None else self._chosen[indexes]
        return self._arrays.batch(chosen) if self._arrays is not None else {}

    def to_dask(self, name: str = "") -> Any:
        """An array of this split as a Dask array, read when it is computed; without a name, the one that holds the values.

        Raises:
            RefusedError: this set has no such array, or Dask is not installed.
        """
        return dask_array(self._files, self.manifest, self.split, name)

    def to_xarray(self) -> Any:
        """The arrays of this split as an xarray Dataset, with the columns of the rows as coordinates of its samples.

        Raises:
            RefusedError: this set has no arrays, or xarray is not installed.
        """
        return xarray_dataset(self._files, self.manifest, self.split, self.to_arrow())

    def verify(self) -> int:
        """Hash every file of this split against the manifest; with the first split, the list of groups too.

        Returns:
            The bytes that were checked.

        Raises:
            CorruptLakeError: a file is missing or is not what was written.
        """
        beside = (*self.manifest.indexes, *self.manifest.array_files)
        files = [*self._shards, *(entry for entry in beside if entry.split == self.split)]
        if self.manifest.groups is not None and self.split == next(iter(self.manifest.split_rows())):
            files.append(self.manifest.groups)
        for entry in files:
            _verify_file(self._files, entry)
        return sum(entry.bytes for entry in files)

    def __repr__(self) -> str:
        names = ", ".join(column.name for column in self.manifest.columns)
        kind = "payload and columns" if self.manifest.has_payload else "columns"
        return plain(
            f"<TrainingSet {self.manifest.name} {self.manifest.version} {self.split}: {self._count:,} samples, {kind} {names}>"
        )

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html_text(c.name)}</td><td>{html_text(c.type)}</td></tr>" for c in self.manifest.columns)
        title = html_text(f"{self.manifest.name} {self.manifest.version} · {self.split} · {self._count:,} samples")
        return f"<b>{title}</b><br>where <code>{html_text(self.manifest.where or 'all rows')}</code><table>{rows}</table>"


def open_set(
    uri: str | Path,
    split: str = "train",
    check: PayloadCheck | str | float = PayloadCheck.FIRST,
    *,
    cache: str | Path | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> TrainingSet:
    """Open one split of a training set by its folder, manifest or address. Only the manifest is read; no folder is walked.

    Of a set in a bucket, only what is read comes here, by range requests, and is kept in a cache. Endpoint, region and keys are
    those of the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, ...).

    Args:
        uri: a path, file:// or s3:// URI of `sets/<name>/<version>` or of its manifest.json.
        split: which split.
        check: when a payload is compared with its sha256: "first" (at its first read in this process), "always", "never", or
            a number such as 0.01 for a share of the reads.
        cache: folder for copies of what a bucket holds; `$CATCHMENT_CACHE`, or `~/.cache/catchment`, by default.
        cache_bytes: how many bytes of copies are kept, of all sets in that folder together.

    Raises:
        NotFoundError: no manifest there, or no such split.
        CorruptLakeError: the manifest cannot be read.
        RefusedError: another scheme, or `check` is no rule.
        RetryLaterError: the storage is unavailable.
    """
    if isinstance(uri, str) and uri.startswith("s3://"):
        rule = CacheRule(Path(cache) if cache is not None else default_cache_folder(), cache_bytes)
        files, manifest = open_bucket(uri.removesuffix(MANIFEST_NAME).rstrip("/"), rule)
        return TrainingSet(files.folder, manifest, split, check, files=files)
    path = _local_path(uri)
    manifest_path = path if path.name == MANIFEST_NAME else path / MANIFEST_NAME
    return TrainingSet(manifest_path.parent, load_manifest(manifest_path), split, check)


def _manifest_bytes(folder: Path, manifest: Manifest) -> bytes:
    """The manifest as it was written: what a release writes next to it later must not make old states another set's."""
    try:
        with open_set_file(folder, MANIFEST_NAME) as file:
            return file.read()
    except CorruptLakeError:
        # A manifest that was handed over without its file stands for itself.
        return encode_manifest(manifest)


def _local_path(uri: str | Path) -> Path:
    if isinstance(uri, Path):
        return uri
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        raise RefusedError(f"{uri}: only folders, file:// and s3:// can be opened; mount or copy the set first")
    return Path(unquote(parts.path)) if parts.scheme else Path(uri)


def _numpy_of(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    if column.null_count and pa.types.is_integer(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    return cast("np.ndarray[Any, Any]", column.to_numpy())


def _verify_file(files: SetFiles, entry: FileEntry) -> None:
    digest, path, size = hashlib.sha256(), files.folder / entry.path, 0
    try:
        with files.reading(entry) as blocks:
            for block in blocks:
                digest.update(block)
                size += len(block)
    except OSError as error:
        raise CorruptLakeError(f"{path}: cannot be read ({error.strerror}); restore the set or build it again") from error
    if size != entry.bytes or digest.hexdigest() != entry.sha256:
        raise CorruptLakeError(f"{path}: not the file that the manifest lists; restore the set or build it again")
