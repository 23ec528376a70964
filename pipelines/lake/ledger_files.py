"""The ledger on disk: two files per run, of settled ranges and of books, written before the run's commit.

A base holds all devices. A delta holds those that have changed since a base, each in full, and names that base in each row
(`base`) and in the file's metadata (`catchment.bases`, whose last number it is; the others are the older bases that ledgers still
kept need). Reading takes two steps at most, however many runs lie between, and no listing.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import CorruptLakeError
from pipelines.lake.arrow_input import arrow_bytes
from pipelines.lake.books import BOOKS_SCHEMA, with_later_columns
from pipelines.lake.lake import Lake
from pipelines.lake.layout import books_path, ledger_path
from pipelines.lake.ledger import KEPT_LEDGERS, Ledger
from pipelines.lake.ledger_rows import NO_ROWS, SETTLED_SCHEMA, LedgerRows

BASES = b"catchment.bases"
BASE_FIELD = pa.field("base", pa.int64(), nullable=False)


@dataclass(frozen=True, slots=True)
class _File:
    """One file: its rows without the column `base`, and the bases it names."""

    rows: pa.Table
    bases: tuple[int, ...]


def write_ledger(lake: Lake, ledger: Ledger) -> None:
    """Write both files of `ledger.run`, durable.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    rows = ledger.base if ledger.is_whole else ledger.delta
    lake.put(ledger_path(lake.root, ledger.run), _parquet(rows.settled, ledger))
    lake.put(books_path(lake.root, ledger.run), _parquet(rows.books, ledger))


def read_ledger(lake: Lake, run: int) -> Ledger:
    """The ledger after run `run`; an empty one for run 0.

    Raises:
        CorruptLakeError: a file is missing or does not say what it must.
        RetryLaterError: the storage is away.
    """
    if run == 0:
        return Ledger()
    rows, bases = _read_rows(lake, run)
    if bases[-1] == run:
        return Ledger(run, rows, NO_ROWS, bases)
    base, own = _read_rows(lake, bases[-1])
    if own[-1] != bases[-1]:
        raise CorruptLakeError(
            f"{ledger_path(lake.root, bases[-1])}: run {run} needs it whole, and it is not; restore it from a copy"
        )
    return Ledger(run, base, rows, bases)


def ledger_bases(lake: Lake, run: int) -> tuple[int, ...]:
    """The runs whose ledgers the last `KEPT_LEDGERS` ledgers up to `run` need, that of `run` last.

    Raises:
        CorruptLakeError: the ledger is gone or cannot be read.
        RetryLaterError: the storage is away.
    """
    return _read_rows(lake, run)[1] if run else ()


def prune_ledgers(lake: Lake, before: Ledger, after: Ledger) -> None:
    """Delete what the run after `before` has made superfluous: the ledger `KEPT_LEDGERS` back, and bases that none needs now.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    old = {run for run in before.bases if run <= after.run - KEPT_LEDGERS} | {after.run - KEPT_LEDGERS}
    for run in sorted(old - set(after.bases)):
        if run > 0:
            lake.delete(ledger_path(lake.root, run))
            lake.delete(books_path(lake.root, run))


def _read_rows(lake: Lake, run: int) -> tuple[LedgerRows, tuple[int, ...]]:
    settled = _read(lake, ledger_path(lake.root, run), run, SETTLED_SCHEMA)
    books = _read(lake, books_path(lake.root, run), run, BOOKS_SCHEMA)
    if settled.bases != books.bases:
        raise CorruptLakeError(
            f"{books_path(lake.root, run)}: it does not go with {ledger_path(lake.root, run)}; restore both from one copy"
        )
    rows = LedgerRows(settled.rows, books.rows)
    fault = rows.fault()
    if fault:
        raise CorruptLakeError(f"{ledger_path(lake.root, run)}: {fault}; restore it from a copy")
    return rows, settled.bases


def _parquet(table: pa.Table, ledger: Ledger) -> bytes:
    if not ledger.is_whole:
        # A reader that does not know deltas must not take one for the whole: it refuses a column that it does not know.
        table = table.append_column(BASE_FIELD, pa.repeat(pa.scalar(ledger.bases[-1], pa.int64()), table.num_rows))
    table = table.replace_schema_metadata({BASES: msgspec.json.encode(ledger.bases)})
    sink = pa.BufferOutputStream()
    # Every device is named about once: a dictionary of them would only be made and thrown away.
    pq.write_table(table, sink, compression="zstd", use_dictionary=["stream"], write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def _read(lake: Lake, path: Path, run: int, schema: pa.Schema) -> _File:
    try:
        table = pq.read_table(arrow_bytes(lake.read(path)), page_checksum_verification=True)
        encoded = (table.schema.metadata or {}).get(BASES, b"[]")
        # A file that tells of none is of the time before there were any: it is whole.
        bases = msgspec.json.decode(encoded, type=tuple[int, ...]) or (run,)
    except (OSError, pa.ArrowException, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{path}: the ledger cannot be read ({error}); restore it from a copy of runs/") from error
    if schema is BOOKS_SCHEMA:
        table = with_later_columns(table)
    if not table.schema.equals(schema if bases[-1] == run else schema.append(BASE_FIELD)):
        raise CorruptLakeError(f"{path}: not of the ledger's schema; read it with the version that wrote it")
    return _File(table.select(schema.names).replace_schema_metadata(None).combine_chunks(), bases)
