"""Read a training set: any sample by index with one pread, any epoch in a seeded order, stop and resume anywhere."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from catchment.runtime.plain import html_text, plain
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.training.array_reader import ArrayReader, dask_array, xarray_dataset
from pipelines.training.batches import BatchOptions, OnBad, SetBatches
from pipelines.training.index import SplitIndex
from pipelines.training.manifest import (
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    encode_manifest,
    load_manifest,
    open_set_file,
    set_file_path,
)
from pipelines.training.order import EpochOrder, EpochState, Tail
from pipelines.training.payloads import Int64s, PayloadCheck, PayloadReader
from pipelines.training.permutation import Permutation
from pipelines.training.sample import Sample

if TYPE_CHECKING:
    from pipelines.training.torch_loader import TorchLoader

_HASH_BLOCK_BYTES = 4 * 1024 * 1024


class TrainingSet(Sequence[Sample]):
    """One split of a training set, as a sequence of samples. Safe to share between threads, to pickle and to fork."""

    def __init__(
        self, folder: Path, manifest: Manifest, split: str, check: PayloadCheck | str = PayloadCheck.FIRST, where: str = ""
    ) -> None:
        if split not in manifest.split_rows():
            raise NotFoundError(
                f"set {manifest.name} {manifest.version} has no split {split!r}; there are {', '.join(manifest.split_rows())}"
            )
        self.folder = folder
        self.manifest = manifest
        self.split = split
        self._shards = manifest.shards_of(split)
        self._rows = SplitIndex(folder, manifest, split)
        self._payloads = PayloadReader(folder, manifest, split, self._rows, PayloadCheck(check))
        self._arrays = ArrayReader(folder, manifest, split, PayloadCheck(check)) if manifest.arrays else None
        self._check = PayloadCheck(check)
        self.where = where
        self._chosen = self._rows.chosen_by(where) if where.strip() else None
        self._count = manifest.split_rows()[split] if self._chosen is None else len(self._chosen)
        self._digest = hashlib.sha256(_manifest_bytes(folder, manifest) + where.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        at = index + self._count if index < 0 else index
        if not 0 <= at < self._count:
            raise IndexError(f"sample {index} of {self._count}")
        at = at if self._chosen is None else int(self._chosen[at])
        if self._arrays is not None:
            return self._arrays.sample(at, self._rows)
        if not self.manifest.has_payload:
            return Sample(at, None, self._rows)
        return Sample(at, self._payloads.one(at), self._rows)

    def filter(self, where: str) -> "TrainingSet":
        """The samples for which an expression is true, for instance `has('night') AND speed_mps > 10`.

        It is resolved once, over the columns; the result is shuffled, resumed and loaded as any set. `Sample.index` stays the row
        in the split.

        Raises:
            RefusedError: the expression is not in the language; the message says where.
        """
        joined = f"({self.where}) AND ({where})" if self.where else where
        return TrainingSet(self.folder, self.manifest, self.split, self._check, joined)

    def samples(self, indexes: Int64s) -> Iterator[Sample]:
        """These samples, in their order."""
        rows = self._rows
        indexes = indexes if self._chosen is None else self._chosen[indexes]
        if self._arrays is not None:
            yield from self._arrays.samples(indexes, rows)
            return
        if not self.manifest.has_payload:
            yield from (Sample(index, None, rows) for index in indexes.tolist())
            return
        for index, payload in zip(indexes.tolist(), self._payloads.many(indexes), strict=True):
            yield Sample(index, payload, rows)

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

    def numpy(  # noqa: PLR0913 - each is a word of its own at the call
        self,
        batch_size: int,
        *,
        seed: int = 0,
        epoch: int | EpochState = 0,
        columns: Sequence[str] = (),
        image: tuple[int, int] | None = None,
        rank: int = 0,
        world: int = 1,
        tail: Tail | str = Tail.PAD,
        drop_last: bool = False,
        on_bad: OnBad | str = OnBad.RAISE,
    ) -> SetBatches:
        """An epoch as a sequence of batches: dicts of NumPy arrays and lists, which JAX takes as they are.

        Args:
            batch_size: samples of a batch.
            seed: of the order.
            epoch: its number, or a state to go on from.
            columns: in addition to `index` and `payload`.
            image: (height, width) to decode and scale pictures to, as (N, height, width, 3) uint8; None: bytes.
            rank: which of the readers this is.
            world: how many readers share the epoch.
            tail: as of `shuffled`: by default all ranks have the same number of batches.
            drop_last: leave out a last batch that is not full.
            on_bad: "raise", or "skip" and count samples that cannot be read or decoded.

        Raises:
            RefusedError: an argument does not fit the set, or the state is of another one.
        """
        options = BatchOptions(batch_size, tuple(columns), image, drop_last, OnBad(on_bad))
        start = epoch.position if isinstance(epoch, EpochState) else 0
        if isinstance(epoch, EpochState):
            self._check_state(epoch)
            seed, epoch = epoch.seed, epoch.epoch
        order = EpochOrder(Permutation(self._count, seed, epoch), rank, world, start, Tail(tail))
        return SetBatches(self, order, options, self._digest, self.split)

    def torch(  # noqa: PLR0913 - each is a word of its own at the call
        self,
        batch_size: int,
        *,
        seed: int = 0,
        columns: Sequence[str] = (),
        image: tuple[int, int] | None = None,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        tail: Tail | str = Tail.PAD,
        drop_last: bool = False,
        on_bad: OnBad | str = OnBad.RAISE,
        **options: Any,
    ) -> "TorchLoader":
        """A loader of ready batches of tensors with `state_dict` and `load_state_dict`, exact after any batch.

        Args:
            batch_size: samples of a batch.
            seed: of the order; each epoch has an order of its own.
            columns: as of `numpy`.
            image: as of `numpy`; decoded in the workers.
            workers: processes that read and decode.
            rank: which of the readers this is.
            world: how many readers share each epoch.
            tail: as of `shuffled`.
            drop_last: leave out a last batch that is not full.
            on_bad: as of `numpy`.
            options: of `torch.utils.data.DataLoader`.

        Raises:
            RefusedError: PyTorch is not installed, or an argument does not fit the set.
        """
        from pipelines.training.torch_loader import TorchLoader  # noqa: PLC0415 - loaded only for those who use it

        def batches_of(epoch: int | EpochState) -> SetBatches:
            return self.numpy(
                batch_size, seed=seed, epoch=epoch, columns=columns, image=image, rank=rank, world=world, tail=tail,
                drop_last=drop_last, on_bad=on_bad,
            )  # fmt: skip

        return TorchLoader(batches_of, workers, **options)

    def shuffled(
        self, seed: int, epoch: int = 0, *, rank: int = 0, world: int = 1, start: int = 0, tail: Tail | str = Tail.PAD
    ) -> "ShuffledSamples":
        """The samples of one epoch in a seeded order that takes no memory.

        Args:
            seed: of the order, together with `epoch`.
            epoch: each has an order of its own.
            rank: which of the readers this is.
            world: how many readers share the epoch; each sample goes to exactly one.
            start: samples of this epoch that are done already, by all ranks together.
            tail: of the samples left at the end: "pad" (the default) gives all ranks one length by reading a few again, "drop"
                by leaving them, "uneven" reads each exactly once.
        """
        order = EpochOrder(Permutation(self._count, seed, epoch), rank, world, start, Tail(tail))
        return ShuffledSamples(self, order, self._digest)

    def resume(self, state: EpochState, *, rank: int = 0, world: int = 1, tail: Tail | str = Tail.PAD) -> "ShuffledSamples":
        """Go on where a state says, with as many ranks as there are now.

        Raises:
            RefusedError: the state is of another set, version or split.
        """
        self._check_state(state)
        return self.shuffled(state.seed, state.epoch, rank=rank, world=world, start=state.position, tail=tail)

    def _check_state(self, state: EpochState) -> None:
        if (state.set_digest, state.split) != (self._digest, self.split):
            raise RefusedError(
                f"this state is of another set, split or filter than {self.manifest.name} {self.manifest.version} {self.split}"
            )

    def to_arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows as an Arrow table, in the set's own order; payloads only where `payload` is among the columns."""
        paths = [str(set_file_path(self.folder, shard.path)) for shard in self._shards]
        wanted = list(columns) if columns is not None else [column.name for column in self.manifest.columns]
        try:
            rows = ds.dataset(paths, format="parquet").to_table(columns=wanted)
            return rows if self._chosen is None else rows.take(pa.array(self._chosen))
        except (OSError, pa.ArrowInvalid) as error:
            raise RefusedError(f"set {self.manifest.name} {self.manifest.version}: {error}") from error

    def to_numpy(self, columns: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Columns as NumPy arrays; a number column with nulls becomes float64 with NaN."""
        table = self.to_arrow(columns)
        return {name: _numpy_of(table.column(name)) for name in columns}

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
        return dask_array(self.folder, self.manifest, self.split, name)

    def to_xarray(self) -> Any:
        """The arrays of this split as an xarray Dataset, with the columns of the rows as coordinates of its samples.

        Raises:
            RefusedError: this set has no arrays, or xarray is not installed.
        """
        return xarray_dataset(self.folder, self.manifest, self.split, self.to_arrow())

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
            _verify_file(self.folder, entry)
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


class ShuffledSamples:
    """An epoch in progress: iterate it, and ask for its state at any sample.

    Iterated again it goes on where it was left; once it came to its end, it begins again.
    """

    def __init__(self, samples: TrainingSet, order: EpochOrder, set_digest: str) -> None:
        self._samples = samples
        self._order = order
        self._set_digest = set_digest
        self._taken = 0

    def __len__(self) -> int:
        """Samples this rank has in all, from its start."""
        return len(self._order)

    def __iter__(self) -> Iterator[Sample]:
        if self._taken == len(self._order):
            self._taken = 0
        for block in self._order.blocks(self._taken):
            for sample in self._samples.samples(block):
                self._taken += 1
                yield sample

    def state(self) -> EpochState:
        """Where the epoch stands once every rank has taken as many samples as this one."""
        permutation = self._order.permutation
        position = self._order.position_after(self._taken)
        return EpochState(self._set_digest, self._samples.split, permutation.seed, permutation.epoch, position)


def open_set(uri: str | Path, split: str = "train", check: PayloadCheck | str = PayloadCheck.FIRST) -> TrainingSet:
    """Open one split of a training set by its folder or manifest. Only the manifest is read; no folder is walked.

    Args:
        uri: a path or file:// URI of `sets/<name>/<version>` or of its manifest.json.
        split: which split.
        check: when a payload is compared with its sha256: "first" (at its first read in this process), "always" or "never".

    Raises:
        NotFoundError: no manifest there, or no such split.
        CorruptLakeError: the manifest cannot be read.
        RefusedError: another scheme than file://.
    """
    path = _local_path(uri)
    manifest_path = path if path.name == MANIFEST_NAME else path / MANIFEST_NAME
    return TrainingSet(manifest_path.parent, load_manifest(manifest_path), split, check)


def _manifest_bytes(folder: Path, manifest: Manifest) -> bytes:
    """The manifest as it was written: what a release writes beside it later must not make old states another set's."""
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
        raise RefusedError(f"{uri}: only local folders and file:// can be opened; mount or copy the set first")
    return Path(unquote(parts.path)) if parts.scheme else Path(uri)


def _numpy_of(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    if column.null_count and pa.types.is_integer(column.type):
        column = pc.cast(column, pa.float64(), safe=False)
    return cast("np.ndarray[Any, Any]", column.to_numpy())


def _verify_file(folder: Path, entry: FileEntry) -> None:
    digest, path = hashlib.sha256(), folder / entry.path
    try:
        with open_set_file(folder, entry.path) as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                digest.update(block)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CorruptLakeError(f"{path}: cannot be read ({error.strerror}); restore the set or build it again") from error
    if size != entry.bytes or digest.hexdigest() != entry.sha256:
        raise CorruptLakeError(f"{path}: not the file that the manifest lists; restore the set or build it again")
