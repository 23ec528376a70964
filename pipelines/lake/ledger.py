"""The ledger: which seqs are settled, and the books that say how. Two files per run, written before the run's commit.

Ledger file: device, stream, epoch, low, high (half-open), asked (whether the device still asks about this epoch).
Books file: device, stream, received, committed, quarantined, discarded, duplicate, dropped; counts since the lake began.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import numpy as np
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
COUNTS = ("received", "committed", "quarantined", "discarded", "duplicate", "dropped")
BOOKS_SCHEMA = pa.schema(
    [pa.field("device", pa.string(), nullable=False), pa.field("stream", pa.string(), nullable=False)]
    + [pa.field(name, pa.int64(), nullable=False) for name in COUNTS]
)
_DISCARDED = COUNTS.index("discarded") + 2
# Books of before discarded samples were told apart from quarantined ones.
_OLD_BOOKS_SCHEMA = BOOKS_SCHEMA.remove(_DISCARDED)
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
    books = _read(fresh(root, books_path(root, run)), BOOKS_SCHEMA, _OLD_BOOKS_SCHEMA)
    if books.schema.equals(_OLD_BOOKS_SCHEMA):
        books = books.add_column(_DISCARDED, BOOKS_SCHEMA.field(_DISCARDED), pa.array(np.zeros(books.num_rows, np.int64)))
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
    """Whole columns: the ledger is written with every run, however many devices it knows."""
    keys = sorted(ledger.settled)
    spans = [ledger.settled[key].spans for key in keys]
    counts = np.fromiter(map(len, spans), np.int64, len(spans))
    bounds = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int64, 2 * int(counts.sum()))
    asked = np.fromiter((key not in ledger.forgotten for key in keys), np.bool_, len(keys))
    own = [*_names(keys), _whole(keys, itemgetter(2)), pa.array(asked)]
    owner = pa.array(np.repeat(np.arange(len(keys)), counts))
    device, stream, epoch, is_asked = (column.take(owner) for column in own)
    return pa.table([device, stream, epoch, pa.array(bounds[0::2]), pa.array(bounds[1::2]), is_asked], schema=LEDGER_SCHEMA)


def _books_table(books: Mapping[BooksKey, Counts]) -> pa.Table:
    keys = sorted(books)
    counts = [books[key] for key in keys]
    return pa.table([*_names(keys), *(_whole(counts, attrgetter(name)) for name in COUNTS)], schema=BOOKS_SCHEMA)


def _names(keys: Sequence[EpochKey] | Sequence[BooksKey]) -> tuple[pa.Array, pa.Array]:
    return pa.array(list(map(itemgetter(0), keys)), pa.string()), pa.array(list(map(itemgetter(1), keys)), pa.string())


def _whole(values: Sequence[Any], number: Callable[[Any], int]) -> pa.Array:
    return pa.array(np.fromiter(map(number, values), np.int64, len(values)))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    # Every device is named about once: a dictionary of them would only be made and thrown away.
    pq.write_table(table, sink, compression="zstd", use_dictionary=["stream"], write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def _read(path: Path, *schemas: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise CorruptLakeError(f"{path}: the ledger cannot be read ({error}); restore it from a copy of runs/") from error
    if not any(table.schema.equals(schema) for schema in schemas):
        raise CorruptLakeError(f"{path}: not of the ledger's schema; read it with the version that wrote it")
    return table
