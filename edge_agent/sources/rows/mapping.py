"""Map a source's columns to those of its contract, and find required columns that it never fills.

A sample without a required column is refused by the core, so a source that fills none of one gives nothing but refusals.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
import structlog

from edge_agent.clock_quality import COLUMN
from edge_agent.sources.api import Rejects, Scalar
from edge_agent.sources.rows.cells import PLAIN_NUMBERS, PLAIN_TIMES, convert_column
from edge_agent.sources.rows.tables import RawChunk
from schemas.contract import Column, ColumnType, Contract
from schemas.inspectors import PICTURE_COLUMNS, TEXT_COLUMNS
from schemas.model_tasks import PREDICTION_COLUMNS
from schemas.source_names import match_columns
from schemas.written_values import NumberForm, TimeForm

NO_COLUMN = "row: none of its columns is one of the contract's; are path, format and rename right?"

ATTRIBUTES = "attributes"
_MAX_LEFT_OUT = 1_000

log = structlog.get_logger(__name__)

# Before a source is judged by what it gave: enough for one sensor among many to have had its turn.
JUDGED_SAMPLES = 100
# What the agent itself puts in behind the source: clock, model and inspectors.
_FILLED_LATER = frozenset({
    COLUMN, *PREDICTION_COLUMNS,
    *(column.name for column in (*PICTURE_COLUMNS, *TEXT_COLUMNS)),
})  # fmt: skip


class ColumnMapper:
    """Renames, converts, and keeps what the contract does not name as JSON in `attributes`, if the contract has that.

    A name fills the column that `rename` says; else the one whose source name in the contract it is; else the one so called.

    Args:
        contract: what the columns must become.
        rename: name in the source -> contract column, from the configuration.
        unset: text that means "nothing".
        rejects: where refused cells are counted.
        usual: name in the source -> contract column: a format's own names, which hold where nothing else fits.
        numbers: how numbers are written.
        times: how times are written.

    Attributes:
        left_out: names of the source that fill no column and are kept nowhere.
    """

    def __init__(
        self,
        contract: Contract,
        rename: Mapping[str, str],
        unset: frozenset[str],
        rejects: Rejects,
        usual: Mapping[str, str] | None = None,
        numbers: NumberForm = PLAIN_NUMBERS,
        times: TimeForm = PLAIN_TIMES,
    ) -> None:
        self._contract = contract
        self._rename = rename
        self._usual = usual
        self._numbers = numbers
        self._times = times
        self._unset = unset
        self._rejects = rejects
        self._keeps_rest = contract.column(ATTRIBUTES) is not None
        self._matched: tuple[tuple[str, ...], dict[str, Column]] = ((), {})
        self.left_out: set[str] = set()

    @property
    def matched(self) -> dict[str, str]:
        """Column -> the source's name that filled it last."""
        return {column.name: name for name, column in self._matched[1].items()}

    def convert(
        self, chunk: RawChunk, extra: frozenset[str] = frozenset(), read_times: Mapping[str, Sequence[int]] | None = None
    ) -> dict[str, Sequence[Scalar]]:
        """The contract's columns of a chunk.

        Args:
            chunk: the rows.
            extra: names that are used elsewhere and are not kept as attributes.
            read_times: name -> its cells as times, where they were read already.
        """
        matched = self._match(tuple(chunk.columns))
        out: dict[str, Sequence[Scalar]] = {}
        rest: dict[str, Sequence[object]] = {}
        for name, cells in chunk.columns.items():
            column = matched.get(name)
            if column is not None and column.type is ColumnType.TIMESTAMP and name in (read_times or {}):
                out[column.name] = list((read_times or {})[name])
            elif column is not None:
                out[column.name] = convert_column(cells, column, self._unset, self._rejects, self._numbers, self._times)
                if column.fields:
                    self._note_left_out(_unknown_fields(name, cells, column))
            elif name not in extra:
                rest[name] = cells
        if rest and self._keeps_rest and ATTRIBUTES not in out:
            out[ATTRIBUTES] = self._attributes(rest, chunk.rows)
        elif rest:
            self._note_left_out(rest)
        return out

    def _match(self, names: tuple[str, ...]) -> dict[str, Column]:
        """Chunks of one source have the same names again and again: matched once."""
        if self._matched[0] != names:
            self._matched = (names, match_columns(names, self._contract.columns, self._rename, self._usual))
        return self._matched[1]

    def _attributes(self, rest: Mapping[str, Sequence[object]], rows: int) -> list[Scalar]:
        kept: list[Scalar] = []
        for row in range(rows):
            item = {name: cells[row] for name, cells in rest.items() if not self._is_unset(cells[row])}
            kept.append(msgspec.json.encode(item).decode() if item else None)
        return kept

    def _is_unset(self, cell: object) -> bool:
        return cell is None or (isinstance(cell, str) and cell in self._unset)

    def _note_left_out(self, names: Iterable[str]) -> None:
        fresh = set(names) - self.left_out
        if fresh and len(self.left_out) < _MAX_LEFT_OUT:
            self.left_out |= fresh
            log.info("columns_not_in_contract", contract=self._contract.name, columns=sorted(fresh))


class MappedRows:
    """Reports of a source whose rows a mapper converts; the source sets both attributes when it is built."""

    _rejects: Rejects
    _mapper: ColumnMapper

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how much was refused since the source was built."""
        return dict(self._rejects.counts)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names in the source that fill no column."""
        return tuple(sorted(self._mapper.left_out))

    @property
    def matched(self) -> dict[str, str]:
        """Column -> the source's name that filled it last."""
        return self._mapper.matched


def _unknown_fields(name: str, cells: Sequence[object], column: Column) -> set[str]:
    """Fields of objects that the struct does not have."""
    fields = {field for cell in cells if isinstance(cell, Mapping) for field in cell}
    return {f"{name}.{field}" for field in fields - match_columns(fields, column.fields, {}).keys()}


def keep_rows(chunk: RawChunk, times: Sequence[int | None]) -> tuple[RawChunk, list[int]]:
    """The rows that have an event time, and those times: without one a row cannot become a sample."""
    good = [time for time in times if time is not None]
    if len(good) == chunk.rows:
        return chunk, good
    kept = [index for index, time in enumerate(times) if time is not None]
    columns: dict[str, Sequence[object]] = {name: [cells[index] for index in kept] for name, cells in chunk.columns.items()}
    return RawChunk(columns, len(kept)), good


def unfilled_columns(
    contract: Contract,
    names: Iterable[str],
    rename: Mapping[str, str] | None = None,
    usual: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """The required columns of a contract that none of these names fills."""
    filled = {column.name for column in match_columns(names, contract.columns, rename or {}, usual).values()}
    return tuple(column.name for column in contract.columns if column.required and column.name not in filled | _FILLED_LATER)


def explain_unfilled(contract: Contract, columns: Sequence[str], names: Collection[str] = ()) -> str:
    """Describe the fault of a source that fills none of these columns, and what to do."""
    listed = ", ".join(columns)
    kind = "required column" if len(columns) == 1 else "required columns"
    there = f"; the source has {', '.join(sorted(names)[:30])}" if names else ""
    return (
        f"{kind} {listed} of contract {contract.name} {contract.version} would never be filled, so the core refuses every sample"
        f"{there}: map the names by rename, or by physicalName in the contract"
    )


class FilledColumns:
    """The required columns of a contract that a source was seen to fill.

    Args:
        contract: of the stream.
        judged_samples: how many samples are looked at before the source is judged.
    """

    def __init__(self, contract: Contract, judged_samples: int = JUDGED_SAMPLES) -> None:
        self._empty = {column.name for column in contract.columns if column.required} - _FILLED_LATER
        self._left = judged_samples
        self._has_seen = False

    @property
    def never_filled(self) -> tuple[str, ...]:
        """Required columns that no sample filled; none before enough samples were seen."""
        return tuple(sorted(self._empty)) if self._left <= 0 else ()

    def see(self, columns: Mapping[str, Sequence[Scalar]], rows: int) -> None:
        """Look at the columns of so many samples."""
        if not self._empty:
            return
        self._empty -= {name for name in self._empty if any(value is not None for value in columns.get(name, ()))}
        self._left -= rows
        self._has_seen = self._has_seen or rows > 0

    def end(self) -> None:
        """Judge by what there was: no more comes."""
        if self._has_seen:
            self._left = 0
