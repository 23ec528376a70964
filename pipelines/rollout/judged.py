"""Who was right where a model and the version before disagree: read from a file of judged pictures, kept with the rollout."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import CorruptLakeError, RefusedError

_COLUMNS = ("sample", "current", "candidate", "truth")
_MAX_FILE_BYTES = 256 * 1024 * 1024
_MAX_JUDGED_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """Pictures on which a version and the one before disagreed, with what was right: `True` for the version before."""

    by_sample: Mapping[str, bool]

    @property
    def old_right(self) -> int:
        """On how many the version before was right."""
        return sum(self.by_sample.values())

    @property
    def new_right(self) -> int:
        """On how many this version was right."""
        return len(self.by_sample) - self.old_right


def read_judged(rollouts: Path, name: str) -> JudgedPairs:
    """The judged pictures of a rollout, from `judged/<name>.json` in the folder of the rollouts.

    Raises:
        CorruptLakeError: the file is damaged.
    """
    path = rollouts / "judged" / f"{name}.json"
    try:
        with path.open("rb") as file:
            plain = json.loads(file.read(_MAX_JUDGED_BYTES))
    except FileNotFoundError:
        return JudgedPairs({})
    except (OSError, ValueError) as error:
        raise CorruptLakeError(f"{path} is damaged: {error}; delete it, and judge the pictures again") from error
    if not isinstance(plain, dict) or not all(isinstance(each, bool) for each in plain.values()):
        raise CorruptLakeError(f"{path}: not a table of samples and verdicts; delete it, and judge the pictures again")
    return JudgedPairs(plain)


def add_judged(rollouts: Path, name: str, pairs: JudgedPairs) -> JudgedPairs:
    """Add judged pictures to those of a rollout; a picture that was judged before counts once, as it is judged now.

    Raises:
        CorruptLakeError: as `read_judged`.
    """
    together = JudgedPairs({**read_judged(rollouts, name).by_sample, **pairs.by_sample})
    folder = rollouts / "judged"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{name}.json", json.dumps(together.by_sample, sort_keys=True).encode(), mode=0o644)
    return together


def read_verdicts(file: Path) -> JudgedPairs:
    """The pictures of a file on which one of two models was right.

    Args:
        file: with the columns `sample`, `current`, `candidate` and `truth`: the label that each model gave, and the right one.
            Rows where both agree, or neither is right, or `truth` is empty say nothing and are left out.

    Raises:
        RefusedError: the file is too large, is neither CSV nor Parquet, or lacks a column.
    """
    import polars as pl  # noqa: PLC0415  # the other commands start without it

    if file.stat().st_size > _MAX_FILE_BYTES:
        raise RefusedError(f"{file} has more than {_MAX_FILE_BYTES:,} bytes; judge fewer pictures at a time")
    try:
        table = pl.read_parquet(file) if file.suffix == ".parquet" else pl.read_csv(file, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RefusedError(f"{file} is neither CSV nor Parquet: {error}") from error
    if missing := [name for name in _COLUMNS if name not in table.columns]:
        raise RefusedError(f"{file} lacks the columns {', '.join(missing)}; it needs {', '.join(_COLUMNS)}")
    texts = table.select(pl.col(name).cast(pl.String) for name in _COLUMNS).drop_nulls()
    old_right, new_right = pl.col("current") == pl.col("truth"), pl.col("candidate") == pl.col("truth")
    telling = texts.filter(old_right != new_right).select("sample", old_right=old_right)
    return JudgedPairs(dict(zip(telling["sample"].to_list(), telling["old_right"].to_list(), strict=True)))
