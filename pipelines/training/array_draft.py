"""From the selected rows to the rows of a set of arrays, and from those to its arrays: what `build` does beyond Parquet."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.lake.lake import Lake
from pipelines.training.array_rules import PictureRule, WindowRule
from pipelines.training.manifest import LeftOut
from pipelines.training.shards import REFERENCE_COLUMNS, Progress
from pipelines.training.window_draft import WindowDraft
from pipelines.training.zarr_set import WrittenArrays, write_pictures, write_windows

ArrayRule = WindowRule | PictureRule
ArraySource = WindowDraft | PictureRule
# The number of a window in the plan; it goes with the row until the arrays are written.
ARRAY_ROW = "window_number"
_NO_CLASS_COLUMN = frozenset({"device", "epoch", "stream", "seq", "event_time", "tags", "tag_rules"})


@dataclass(frozen=True, slots=True)
class ArrayDraft:
    """The rows of a set of arrays: `rows` one for each sample, `gap_s` what splits need between starts beyond the rule's gap."""

    rows: pa.Table
    left_out: tuple[LeftOut, ...]
    source: ArraySource
    gap_s: float

    def near(self, groups: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64] | None:
        """Groups of near-duplicates of the rows, for the samples; windows have none."""
        return groups if isinstance(self.source, PictureRule) else None


def carried_columns(rule: WindowRule, group: tuple[str, ...], stratify: tuple[str, ...]) -> tuple[str, ...]:
    """The columns in which a window has one value: what splits group by, and classes but for the label."""
    carried = tuple(name for name in dict.fromkeys((*group, *stratify)) if name not in {rule.label, *_NO_CLASS_COLUMN})
    return (*carried, *(("stream",) if "stream" in group else ()))


def draft_of_windows(windows: WindowDraft) -> ArrayDraft:
    """A row for each window."""
    keys = windows.keys.append_column(ARRAY_ROW, pa.array(np.arange(len(windows.first), dtype=np.int64)))
    return ArrayDraft(keys, windows.left_out, windows, windows.rule.window_s)


def draft_of_pictures(rows: pa.Table, rule: PictureRule) -> ArrayDraft:
    """A row for each picture; `rows` have a payload."""
    return ArrayDraft(rows, (), rule, 0.0)


def write_arrays(
    lake: Lake, folder: Path, source: ArraySource, parts: list[tuple[str, pa.Table]], progress: Progress
) -> tuple[list[tuple[str, pa.Table]], WrittenArrays]:
    """Write the arrays of a set.

    Returns:
        The rows that stand in Parquet next to the arrays, in the same order, and what was written.
    """
    progress.total(sum(len(rows) for _, rows in parts))
    if isinstance(source, PictureRule):
        written = write_pictures(lake, folder, source, parts, progress)
    else:
        members = [(split, rows.column(ARRAY_ROW).to_numpy()) for split, rows in parts]
        written = write_windows(folder, source, members, progress)
    hidden = (ARRAY_ROW, *REFERENCE_COLUMNS)
    return [(split, rows.drop_columns([name for name in hidden if name in rows.schema.names])) for split, rows in parts], written
