"""What is exported: the samples of each split in the set's own order, each payload compared with its sha256."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from catchment.runtime.atomic_files import sync_file
from pipelines.errors import RefusedError
from pipelines.training.manifest import Manifest
from pipelines.training.open import TrainingSet
from pipelines.training.payloads import PayloadCheck
from schemas.picture_format import HEAD_BYTES, picture_format

BATCH_SAMPLES = 512
_EXTENSIONS = {"jpeg": "jpg"}


@dataclass(frozen=True, slots=True)
class ExportSample:
    """One sample: its number in the split, its payload (None in a set without), its columns, and its arrays by name."""

    number: int
    payload: bytes | None
    columns: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]

    @property
    def extension(self) -> str:
        """What a file of the payload should end in, by its content."""
        kind = picture_format((self.payload or b"")[:HEAD_BYTES])
        return _EXTENSIONS.get(kind, str(kind)) if kind is not None else "bin"


@dataclass(frozen=True, slots=True)
class ExportSource:
    """The set that is exported, from its folder."""

    folder: Path
    manifest: Manifest

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have samples."""
        return tuple(split for split, rows in self.manifest.split_rows().items() if rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of every sample."""
        return tuple(column.name for column in self.manifest.columns)

    def samples(self, split: str) -> Iterator[ExportSample]:
        """The samples of a split.

        Raises:
            CorruptLakeError: a payload is missing, or is not the one that was captured.
        """
        opened = TrainingSet(self.folder, self.manifest, split, PayloadCheck.ALWAYS)
        for indexes in _batches(len(opened)):
            rows = opened.take(indexes, self.columns).to_pylist()
            arrays = opened.array_batch(indexes)
            for at, (sample, columns) in enumerate(zip(opened.samples(indexes), rows, strict=True)):
                yield ExportSample(sample.index, sample.payload, columns, {name: block[at] for name, block in arrays.items()})

    def tables(self, split: str) -> Iterator[pa.Table]:
        """The rows of a split with their payloads, a batch at a time.

        Raises:
            CorruptLakeError: a payload is missing, or is not the one that was captured.
        """
        opened = TrainingSet(self.folder, self.manifest, split, PayloadCheck.ALWAYS)
        for indexes in _batches(len(opened)):
            rows = opened.take(indexes, self.columns)
            if self.manifest.has_payload:
                bodies = [sample.payload for sample in opened.samples(indexes)]
                rows = rows.append_column("payload", pa.array(bodies, pa.binary()))
            yield rows

    def refuse_arrays(self, form: str) -> None:
        """Refuse a set of arrays, for a format that has no place for them.

        Raises:
            RefusedError: it is one.
        """
        if self.manifest.arrays is not None:
            raise RefusedError(
                f"{form}: {self.manifest.name} holds arrays, which this format does not; export to webdataset, or open its Zarr"
            )

    def refuse_without_payload(self, form: str) -> None:
        """Refuse a set without payloads, for a format that consists of them.

        Raises:
            RefusedError: it has none.
        """
        self.refuse_arrays(form)
        if not self.manifest.has_payload:
            raise RefusedError(f"{form}: {self.manifest.name} has no payloads; export to huggingface, lance or tfrecord")


def columns_json(columns: dict[str, Any]) -> bytes:
    """Columns as JSON: times in ISO form, bytes in base64, a number that is none as null."""
    return msgspec.json.encode({name: _plain(value) for name, value in columns.items()})


def finish_file(path: Path) -> None:
    """Make a written file durable."""
    sync_file(path)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.isoformat() if isinstance(value, datetime) else value


def _batches(count: int) -> Iterator[npt.NDArray[np.int64]]:
    for low in range(0, count, BATCH_SAMPLES):
        yield np.arange(low, min(low + BATCH_SAMPLES, count), dtype=np.int64)
