"""The columns of a split by row number: mapped from the index file of a set with payload, read once from a tabular one."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.arrow_input import arrow_file
from pipelines.training.manifest import Manifest
from pipelines.training.select import expression_columns, policy_compiler, rows_that
from pipelines.training.set_files import SetFiles

_HIDDEN = ("payload_offset", "payload_length")


class SplitIndex:
    """Opened on first use, and opened again in another process after pickling."""

    def __init__(self, files: SetFiles, manifest: Manifest, split: str) -> None:
        self._files = files
        self._manifest = manifest
        self._split = split
        # To ask a batch for a column by its name costs more than to read a value of it.
        self._columns: dict[tuple[int, str], pa.Array] = {}

    def __reduce__(self) -> tuple[type["SplitIndex"], tuple[SetFiles, Manifest, str]]:
        return SplitIndex, (self._files, self._manifest, self._split)

    @cached_property
    def _batches(self) -> list[pa.RecordBatch]:
        try:
            batches = self._mapped() if self._manifest.has_payload else self._loaded()
        except (OSError, ValueError) as error:
            raise CorruptLakeError(
                f"{self._files.folder}: the index of {self._split} cannot be read: {error}; run `set verify`"
            ) from error
        if sum(batch.num_rows for batch in batches) != self._manifest.split_rows()[self._split]:
            raise CorruptLakeError(
                f"{self._files.folder}: {self._split} has other rows than its manifest lists; run `set verify`"
            )
        return batches

    @cached_property
    def _batch_rows(self) -> int:
        """Rows of each batch but the last."""
        return max(1, self._batches[0].num_rows) if self._batches else 1

    @cached_property
    def _places(self) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        return [(batch.column("payload_offset").to_numpy(), batch.column("payload_length").to_numpy()) for batch in self._batches]

    def place(self, index: int) -> tuple[int, int]:
        """Offset and length of a row's payload in its shard."""
        number, at = divmod(index, self._batch_rows)
        offsets, lengths = self._places[number]
        return int(offsets[at]), int(lengths[at])

    def places(self, indexes: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Offsets and lengths of many rows' payloads."""
        if len(self._places) == 1:
            offsets, lengths = self._places[0]
            return offsets[indexes], lengths[indexes]
        numbers, at = np.divmod(indexes, self._batch_rows)
        found = np.empty((2, len(indexes)), np.int64)
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            for row, column in enumerate(self._places[number]):
                found[row, chosen] = column[at[chosen]]
        return found[0], found[1]

    def row(self, index: int) -> dict[str, Any]:
        """All columns of a row as Python values."""
        number, at = divmod(index, self._batch_rows)
        batch = self._batches[number]
        return {name: batch.column(i)[at].as_py() for i, name in enumerate(batch.schema.names) if name not in _HIDDEN}

    def value(self, index: int, column: str) -> Any:
        """One column of a row.

        Raises:
            KeyError: no such column.
        """
        number, at = divmod(index, self._batch_rows)
        found = self._columns.get((number, column))
        if found is None:
            found = self._columns[number, column] = self._batches[number].column(column)
        return found[at].as_py()

    def take(self, indexes: npt.NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """These columns of these rows, in their order.

        Raises:
            RefusedError: no such column.
        """
        schema = self._checked(columns)
        numbers, at = np.divmod(indexes, self._batch_rows)
        order = np.argsort(numbers, kind="stable")
        parts = [
            self._batches[number].select(list(columns)).take(pa.array(at[order][numbers[order] == number]))
            for number in np.unique(numbers).tolist()
        ]
        rows = pa.Table.from_batches(parts, schema)
        return rows.take(pa.array(np.argsort(order, kind="stable"))) if len(parts) > 1 else rows

    def table(self, columns: Sequence[str]) -> pa.Table:
        """These columns of all rows, in their order.

        Raises:
            RefusedError: no such column.
        """
        schema = self._checked(columns)
        return pa.Table.from_batches([batch.select(list(columns)) for batch in self._batches], schema)

    def chosen_by(self, where: str) -> npt.NDArray[np.int64]:
        """The numbers of the rows for which an expression is true, ascending.

        Raises:
            RefusedError: the expression is not in the language.
        """
        if not self._batches:
            return np.zeros(0, np.int64)
        keep = policy_compiler(where, expression_columns(self._batches[0].schema)).to_polars()
        masks = [rows_that(keep, batch).to_numpy(zero_copy_only=False) for batch in self._batches]
        return np.flatnonzero(np.concatenate(masks)).astype(np.int64)

    def _checked(self, columns: Sequence[str]) -> pa.Schema:
        """The types of columns.

        Raises:
            RefusedError: there is no such column.
        """
        schema = self._batches[0].schema if self._batches else pa.schema([])
        missing = [name for name in columns if name not in schema.names]
        if missing:
            raise RefusedError(f"the set has no column {', '.join(missing)}; there are {', '.join(schema.names)}")
        return pa.schema([schema.field(name) for name in columns])

    def _mapped(self) -> list[pa.RecordBatch]:
        entry = next(entry for entry in self._manifest.indexes if entry.split == self._split)
        reader = pa.ipc.open_file(self._files.map(entry.path))
        return [reader.get_batch(i) for i in range(reader.num_record_batches)]

    def _loaded(self) -> list[pa.RecordBatch]:
        tables = []
        for shard in self._manifest.shards_of(self._split):
            with self._files.open(shard.path) as file:
                tables.append(pq.read_table(arrow_file(file)))
        batches: list[pa.RecordBatch] = pa.concat_tables(tables).combine_chunks().to_batches()
        return batches
