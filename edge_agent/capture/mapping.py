"""From the columns a file has to the columns a contract asks for."""

from collections.abc import Mapping, Sequence

import msgspec
import structlog

from edge_agent.capture.batch import Scalar
from edge_agent.capture.cells import CellError, convert_column, to_time_us
from edge_agent.capture.rejects import Rejects
from edge_agent.capture.tables import RawChunk
from schemas.contract import Contract

ATTRIBUTES = "attributes"
TIME_NAMES = ("event_time", "ts", "timestamp", "time")

log = structlog.get_logger(__name__)


class ColumnMapper:
    """Renames, converts, and keeps what the contract does not name as JSON in `attributes`, if the contract has that.

    Args:
        contract: what the columns must become.
        rename: name in the file -> contract column.
        unset: text that means "nothing".
        rejects: where refused cells are counted.
    """

    def __init__(self, contract: Contract, rename: Mapping[str, str], unset: frozenset[str], rejects: Rejects) -> None:
        self._contract = contract
        self._rename = {old: new for old, new in rename.items() if contract.column(new) is not None}
        self._unset = unset
        self._rejects = rejects
        self._keeps_rest = contract.column(ATTRIBUTES) is not None
        self._told: set[str] = set()

    def convert(self, chunk: RawChunk, beside: frozenset[str] = frozenset()) -> dict[str, Sequence[Scalar]]:
        """The contract's columns of a chunk; names in `beside` are used elsewhere and are not kept as attributes."""
        out: dict[str, Sequence[Scalar]] = {}
        rest: dict[str, Sequence[object]] = {}
        for name, cells in chunk.columns.items():
            column = self._contract.column(self._rename.get(name, name))
            if column is not None and column.name not in out:
                out[column.name] = convert_column(cells, column, self._unset, self._rejects)
            elif name not in beside:
                rest[name] = cells
        if rest and self._keeps_rest and ATTRIBUTES not in out:
            out[ATTRIBUTES] = self._attributes(rest, chunk.rows)
        elif rest:
            self._tell(rest)
        return out

    def _attributes(self, rest: Mapping[str, Sequence[object]], rows: int) -> list[Scalar]:
        kept: list[Scalar] = []
        for row in range(rows):
            item = {name: cells[row] for name, cells in rest.items() if not self._is_unset(cells[row])}
            kept.append(msgspec.json.encode(item).decode() if item else None)
        return kept

    def _is_unset(self, cell: object) -> bool:
        return cell is None or (isinstance(cell, str) and cell in self._unset)

    def _tell(self, rest: Mapping[str, Sequence[object]]) -> None:
        fresh = set(rest) - self._told
        if fresh:
            self._told |= fresh
            log.info("columns are not in the contract and are left out", contract=self._contract.name, columns=sorted(fresh))


def read_times(cells: Sequence[object], unit: str, rejects: Rejects) -> list[int | None]:
    """Event times of n cells, microseconds since 1970 UTC; None, counted, where a cell tells no time."""
    out: list[int | None] = []
    for cell in cells:
        try:
            out.append(to_time_us(cell, unit))
        except CellError as error:
            rejects.count(f"row: event time is {error}", cell)
            out.append(None)
    return out


def keep_rows(chunk: RawChunk, times: Sequence[int | None]) -> tuple[RawChunk, list[int]]:
    """The rows that have an event time, and those times: without one a row cannot become a sample."""
    good = [time for time in times if time is not None]
    if len(good) == chunk.rows:
        return chunk, good
    kept = [index for index, time in enumerate(times) if time is not None]
    columns: dict[str, Sequence[object]] = {name: [cells[index] for index in kept] for name, cells in chunk.columns.items()}
    return RawChunk(columns, len(kept)), good
