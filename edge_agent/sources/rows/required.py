"""Required columns that a source never fills: known from its names, or seen after so many samples. Pure.

A sample without a required column is refused by the core, so a source that fills none of one gives nothing but refusals.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from edge_agent.clock_quality import COLUMN
from edge_agent.sources.api import Scalar
from schemas.contract import Contract
from schemas.inspectors import PICTURE_COLUMNS, TEXT_COLUMNS
from schemas.source_names import match_columns

# Before a source is judged by what it gave: enough for one sensor among many to have had its turn.
JUDGED_SAMPLES = 100
# What the agent itself puts in behind the source: clock, model and inspectors.
_FILLED_LATER = frozenset({
    COLUMN, "model_name", "model_version", "predicted_label", "predicted_score",
    *(column.name for column in (*PICTURE_COLUMNS, *TEXT_COLUMNS)),
})  # fmt: skip


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
    """What is wrong with a source that fills none of these columns, and what to do."""
    listed = ", ".join(columns)
    kind = "required column" if len(columns) == 1 else "required columns"
    there = f"; the source has {', '.join(sorted(names)[:30])}" if names else ""
    return (
        f"{kind} {listed} of contract {contract.name} {contract.version} would never be filled, so the core refuses every sample"
        f"{there}: map the names by rename, or by physicalName in the contract"
    )


class FilledColumns:
    """Which required columns of a contract a source was seen to fill.

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
