"""The ledger: which seqs are settled, and the books that say how. Two files per run, written before the run's commit.

Ledger file: device, stream, epoch, low, high (half-open), asked (whether the device still asks about this epoch).
Books file: device, stream, received, committed, quarantined, duplicate, dropped; counts since the lake began.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError
from pipelines.lake.books import BooksKey, Counts, EpochKey, Ledger
from pipelines.lake.copy import discard, fresh, keep
from pipelines.lake.layout import books_path, ledger_path
from schemas.errors import SchemaError
from schemas.ranges import Ranges, Span

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("device", pa.string(), nullable=False),
        pa.field("stream", pa.string(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("low", pa.int64(), nullable=False),
        pa.field("high", pa.int64(), nullable=False),
        pa.field("asked", pa.bool_(), nullable=False),
    ]
)
COUNTS = ("received", "committed", "quarantined", "duplicate", "dropped")
BOOKS_SCHEMA = pa.schema(
    [pa.field("device", pa.string(), nullable=False), pa.field("stream", pa.string(), nullable=False)]
    + [pa.field(name, pa.int64(), nullable=False) for name in COUNTS]
)
KEPT_LEDGERS = 20


def write_ledger(root: Path, ledger: Ledger) -> None:
    """Write both files of `ledger.run`, durable.

    Raises:
        OSError: the disk refused.
    """
    keep(root, ledger_path(root, ledger.run), _parquet(_ledger_table(ledger)))
    keep(root, books_path(root, ledger.run), _parquet(_books_table(ledger.books)))


def read_ledger(root: Path, run: int) -> Ledger:
    """The ledger after run `run`; an empty one for run 0.

    Raises:
        CorruptLakeError: a file is missing or does not say what it must.
    """
    if run == 0:
        return Ledger()
    rows = _read(fresh(root, ledger_path(root, run)), LEDGER_SCHEMA)
    books = _read(fresh(root, books_path(root, run)), BOOKS_SCHEMA)
    columns = [rows.column(name).to_pylist() for name in LEDGER_SCHEMA.names]
    spans: dict[EpochKey, list[Span]] = {}
    forgotten: set[EpochKey] = set()
    for device, stream, epoch, low, high, asked in zip(*columns, strict=True):
        key = EpochKey(device, stream, epoch)
        spans.setdefault(key, []).append((low, high))
        if not asked:
            forgotten.add(key)
    try:
        settled = {key: Ranges(tuple(found)) for key, found in spans.items()}
    except SchemaError as error:
        raise CorruptLakeError(f"{ledger_path(root, run)}: {error}; restore it from a copy") from error
    counts = zip(*(books.column(name).to_pylist() for name in BOOKS_SCHEMA.names), strict=True)
    return Ledger(run, settled, {(row[0], row[1]): Counts(*row[2:]) for row in counts}, frozenset(forgotten))


def prune_ledgers(root: Path, run: int) -> None:
    """Delete the ledger of the run that is `KEPT_LEDGERS` back; each ledger is the whole truth, so old ones are only history."""
    old = run - KEPT_LEDGERS
    if old > 0:
        discard(root, ledger_path(root, old))
        discard(root, books_path(root, old))


def _ledger_table(ledger: Ledger) -> pa.Table:
    keys = sorted(ledger.settled)
    spans = [(key, span) for key in keys for span in ledger.settled[key].spans]
    columns: Iterable[list[object]] = (
        [key[0] for key, _ in spans],
        [key[1] for key, _ in spans],
        [key[2] for key, _ in spans],
        [span[0] for _, span in spans],
        [span[1] for _, span in spans],
        [key not in ledger.forgotten for key, _ in spans],
    )
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, LEDGER_SCHEMA, strict=True)], schema=LEDGER_SCHEMA
    )


def _books_table(books: Mapping[BooksKey, Counts]) -> pa.Table:
    rows = sorted(books.items())
    columns = [[key[0] for key, _ in rows], [key[1] for key, _ in rows]]
    counts = [[getattr(value, name) for _, value in rows] for name in COUNTS]
    arrays = [pa.array(column, field.type) for column, field in zip([*columns, *counts], BOOKS_SCHEMA, strict=True)]
    return pa.table(arrays, schema=BOOKS_SCHEMA)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise CorruptLakeError(f"{path}: the ledger cannot be read ({error}); restore it from a copy of runs/") from error
    if not table.schema.equals(schema):
        raise CorruptLakeError(f"{path}: not of the ledger's schema; read it with the version that wrote it")
    return table
