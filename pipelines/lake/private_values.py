"""Keeps values of private columns out of what lies next to the rows: statistics, roll-ups, profiles.

What this code writes has none. But a contract may call a column private later than its first rows, and other tools write bounds
of every column into files that they rewrite. So maintenance looks at each file once, and rewrites what shows a private value.
"""

import hashlib
from collections.abc import Collection, Iterable

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import structlog
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import ConflictError
from pipelines.lake.commit import live_sizes, swap_files
from pipelines.lake.files import NewFile, write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import looked_at_path
from pipelines.lake.reference import read_footer
from pipelines.lake.table import HOOKS, open_table, private_of, read_files, shown_columns, sync_log
from pipelines.lake.workplace import workplace

log = structlog.get_logger(__name__)
_COLUMN = "column"
_VALUES = ("minimum", "maximum", "mean", "bins")  # of a profile


class _LookedAt(msgspec.Struct, frozen=True):
    """Which files of a table show no value of these columns. A cache: losing it costs a look at each file's footer."""

    private: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def private_of_stream(lake: Lake, name: str, declared: Collection[str]) -> frozenset[str]:
    """What is private in a stream's table: what contracts say today, what the table was told, and what was private before."""
    table = open_table(lake, name)
    numbers = frozenset() if table is None else hidden_numbers(table)
    return frozenset(declared) | numbers | frozenset(_read(lake, name).private)


def hidden_numbers(table: DeltaTable) -> frozenset[str]:
    """The columns of numbers and times whose bounds the table's log must not show."""
    shown = shown_columns(table)
    schema = pa.schema(table.schema().to_arrow())
    numbers = (field.name for field in schema if pa.types.is_primitive(field.type) and not pa.types.is_boolean(field.type))
    return frozenset() if shown is None else frozenset(numbers) - shown


def hide_statistics(lake: Lake, name: str, private: Collection[str]) -> int:
    """Write every file of a table again whose footer or log entry shows bounds of private columns; how many those were.

    Raises:
        ConflictError: runs kept committing meanwhile.
        CorruptLakeError: a file cannot be read.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    table = open_table(lake, name)
    if table is None or not private:
        return 0
    table = _with_private_noted(lake, name, table, private)
    looked = _looked_at(lake, name, private)
    bounds = _bounded(table, private)
    showing = [
        path
        for path in sorted(live_sizes(table))
        if path in bounds or (path not in looked and _footer_shows(lake, f"{name}/{path}", private))
    ]
    hidden = frozenset(private) | private_of(table, pa.schema(table.schema().to_arrow()))
    with workplace(lake, "private") as there:
        for path in showing:
            rows = read_files(there, name, table, [path])
            _swap(
                there,
                name,
                path,
                write_table_file(there, name, _name_of(path, private), rows, hidden, lasting=True),
            )
    _keep_looked_at(lake, name, private, [path for path in live_sizes(table) if path not in showing])
    if showing:
        log.info("private_statistics_hidden", table=name, files=len(showing), columns=sorted(private))
    return len(showing)


def forget_values(lake: Lake, name: str, private: Collection[str]) -> int:
    """Take what a table says about private columns out of it; how many of its lines there were.

    Of a table of one line per column (`column`): roll-ups lose the line, profiles the values in it and keep the counts.

    Raises:
        ConflictError: somebody else kept rewriting the table.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    table = open_table(lake, name)
    if table is None or not private:
        return 0
    looked = _looked_at(lake, name, private)
    paths = sorted(live_sizes(table))
    with workplace(lake, "private") as there:
        counts = {path: 0 if path in looked else _rewrite_without(there, name, table, path, private) for path in paths}
    _keep_looked_at(lake, name, private, [path for path, lines in counts.items() if not lines])
    count = sum(counts.values())
    if count:
        log.info("private_values_forgotten", table=name, lines=count, columns=sorted(private))
    return count


def _rewrite_without(lake: Lake, name: str, table: DeltaTable, path: str, private: Collection[str]) -> int:
    rows = read_files(lake, name, table, [path])
    count = _lines(rows, private)
    if count:
        kept = _without(rows, private)
        new = [write_table_file(lake, name, _name_of(path, private), kept, private_of(table, kept.schema))] if len(kept) else []
        _swap(lake, name, path, *new)
    lake.evict([lake.root / name / path])
    return count


def _with_private_noted(lake: Lake, name: str, table: DeltaTable, private: Collection[str]) -> DeltaTable:
    """The table, told to keep bounds of these columns out of its log no matter what writes to it."""
    shown = shown_columns(table)
    if shown is None or shown.isdisjoint(private):
        return table
    left = [each for each in pa.schema(table.schema().to_arrow()).names if each in shown and each not in private]
    try:
        table.alter.set_table_properties({"delta.dataSkippingStatsColumns": ",".join(left)}, post_commithook_properties=HOOKS)
    except CommitFailedError as error:
        raise ConflictError(f"{name}: somebody changed the table meanwhile; look again") from error
    sync_log(lake, name)
    return open_table(lake, name) or table


def _bounded(table: DeltaTable, private: Collection[str]) -> set[str]:
    """The files whose log entry has bounds of private columns."""
    actions = pa.table(table.get_add_actions(flatten=True))
    paths = actions.column("path").to_pylist()
    found: set[str] = set()
    for column in actions.column_names:
        side, _, rest = column.partition(".")
        if side in ("min", "max") and rest.split(".", 1)[0] in private:
            is_there = actions.column(column).is_valid().to_pylist()
            found |= {path for path, shown in zip(paths, is_there, strict=True) if shown}
    return found


def _footer_shows(lake: Lake, name: str, private: Collection[str]) -> bool:
    metadata = read_footer(lake, name, "the log of a table")
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(place)
            if chunk.path_in_schema.split(".", 1)[0] in private and (chunk.is_stats_set or chunk.has_column_index):
                return True
    return False


def _lines(rows: pa.Table, private: Collection[str]) -> int:
    """How many lines tell values of private columns."""
    mine = rows.filter(pc.is_in(rows.column(_COLUMN), pa.array(sorted(private), pa.string())))
    if "bins" not in mine.column_names:
        return int(mine.num_rows)
    are_valid = [pc.is_valid(mine.column(name)) for name in _VALUES]
    return sum(any(values) for values in zip(*(each.to_pylist() for each in are_valid), strict=True))


def _without(rows: pa.Table, private: Collection[str]) -> pa.Table:
    is_private = pc.is_in(rows.column(_COLUMN), pa.array(sorted(private), pa.string()))
    if "bins" not in rows.column_names:
        return rows.filter(pc.invert(is_private))
    for name in _VALUES:
        column = rows.column(name).combine_chunks()
        shown = [None if hides else value for hides, value in zip(is_private.to_pylist(), column.to_pylist(), strict=True)]
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(shown, column.type))
    return rows


def _swap(lake: Lake, name: str, path: str, *new: NewFile) -> None:
    if not swap_files(lake, name, [path], new, {"catchment.private": str(len(new))}):
        log.info("private_rewrite_overtaken", table=name, file=path)  # the next maintenance looks at what took its place
    lake.evict([lake.root / name / path, *(lake.root / file.path for file in new)])


def _name_of(path: str, private: Collection[str]) -> str:
    digest = hashlib.sha256("\n".join([path, *sorted(private)]).encode()).hexdigest()[:24]
    return f"hide-{digest}.parquet"


def _looked_at(lake: Lake, name: str, private: Collection[str]) -> frozenset[str]:
    found = _read(lake, name)
    return frozenset(found.files) if set(private) <= set(found.private) else frozenset()


def _read(lake: Lake, name: str) -> _LookedAt:
    try:
        return msgspec.json.decode(looked_at_path(lake.root, name).read_bytes(), type=_LookedAt)
    except (FileNotFoundError, msgspec.MsgspecError):
        return _LookedAt()


def _keep_looked_at(lake: Lake, name: str, private: Collection[str], clean: Iterable[str]) -> None:
    found = _LookedAt(tuple(sorted(private)), tuple(sorted(clean)))
    if found != _read(lake, name):
        path = looked_at_path(lake.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.encode(found), mode=0o644)
