"""Read who was right where a model and its candidate disagree: a CSV or Parquet file of judged pictures."""

from pathlib import Path

from pipelines.errors import RefusedError
from pipelines.rollout.fleet_evidence import JudgedPairs

_COLUMNS = ("sample", "current", "candidate", "truth")
_MAX_BYTES = 256 * 1024 * 1024


def read_verdicts(file: Path) -> JudgedPairs:
    """The pictures of a file on which one of two models was right.

    Args:
        file: with the columns `sample`, `current`, `candidate` and `truth`: the label that each model gave, and the right one.
            Rows where both agree, or neither is right, or `truth` is empty say nothing and are left out.

    Raises:
        RefusedError: the file is too large, is neither CSV nor Parquet, or lacks a column.
    """
    import polars as pl  # noqa: PLC0415  # the other commands start without it

    if file.stat().st_size > _MAX_BYTES:
        raise RefusedError(f"{file} has more than {_MAX_BYTES:,} bytes; judge fewer pictures at a time")
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
