"""The windows of a set before its splits are known: a key for each, and the values of all on the grid, in files.

Rows come a few devices at a time. Their values go to the files of the grid, and what stays in memory is the keys.
"""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.errors import RefusedError
from pipelines.training.array_rules import WindowRule
from pipelines.training.manifest import LeftOut
from pipelines.training.windows import MAX_WINDOWS, plan_windows, resample_blocks

Int64s = npt.NDArray[np.int64]
_BLOCK_STEPS = 1 << 18


@dataclass(frozen=True, slots=True)
class GridFiles:
    """Values and holes on the grid, (steps, channels) each, one device behind the other. The folder goes with `remove`."""

    folder: Path

    @classmethod
    def beneath(cls, parent: Path, prefix: str) -> "GridFiles":
        """New ones in a folder of their own, whose name begins with a prefix."""
        parent.mkdir(parents=True, exist_ok=True)
        return cls(Path(tempfile.mkdtemp(prefix=prefix, dir=parent)))

    @property
    def values_path(self) -> Path:
        """Numbers of 32 bits."""
        return self.folder / "values"

    @property
    def mask_path(self) -> Path:
        """A byte for each value: whether there is one."""
        return self.folder / "mask"

    def mapped(self, steps: int, channels: int) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays by name; nothing is read before it is used."""
        if not steps:
            return {"windows": np.zeros((0, channels), np.float32), "mask": np.zeros((0, channels), bool)}
        return {
            "windows": np.memmap(self.values_path, np.float32, "r", shape=(steps, channels)),
            "mask": np.memmap(self.mask_path, np.bool_, "r", shape=(steps, channels)),
        }

    def remove(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class WindowDraft:
    """All windows: `keys` a row for each, `first` (windows,) where each begins on the grid. `grid` None: no values were made."""

    rule: WindowRule
    keys: pa.Table
    first: Int64s
    steps: int
    left_out: tuple[LeftOut, ...]
    grid: GridFiles | None


def draft_windows(
    tables: Iterable[pa.Table], rule: WindowRule, carried: tuple[str, ...] = (), grid: GridFiles | None = None
) -> WindowDraft:
    """Cut rows into windows.

    Args:
        tables: selected rows, all of a device in one table, devices in ascending order.
        rule: how windows are cut.
        carried: columns in which a window has one value.
        grid: where the values go; None: windows are counted and described only.

    Raises:
        RefusedError: a column is missing or holds no numbers, or there are too many windows.
        OSError: the disk is full.
    """
    keys: list[pa.Table] = []
    first: list[Int64s] = []
    left_out: dict[str, int] = {}
    steps = windows = 0
    for rows in tables:
        plan = plan_windows(rows, rule, carried)
        windows += len(plan.first)
        if windows > MAX_WINDOWS:
            raise RefusedError(f"more than {MAX_WINDOWS:,} windows; choose a longer stride, or fewer rows (--where)")
        keys.append(plan.keys)
        first.append(plan.first + steps)
        for part in plan.left_out:
            left_out[part.reason] = left_out.get(part.reason, 0) + part.rows
        if grid is not None:
            with grid.values_path.open("ab") as values, grid.mask_path.open("ab") as mask:
                for _, numbers, there in resample_blocks(plan, _BLOCK_STEPS):
                    values.write(np.ascontiguousarray(numbers).data)
                    mask.write(np.ascontiguousarray(there).data)
        steps += plan.stretches.grid_steps
    parts = tuple(LeftOut(reason, rows) for reason, rows in left_out.items())
    return WindowDraft(rule, pa.concat_tables(keys), np.concatenate(first), steps, parts, grid)
