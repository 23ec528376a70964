"""Lists of samples by name, as mining commands write them and as set specs and label queues take them: one a line.

A name is `stream/device/epoch/seq`, and of a chip its spec and number besides. Stands alone because labels and sets share it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import NotFoundError, RefusedError

MAX_SAMPLES = 100_000
_MAX_BYTES = 32 * 1024 * 1024
_KEY = ("stream", "device", "epoch", "seq")
_CHIP = ("spec", "chip_index")


def read_sample_list(path: Path) -> tuple[str, ...]:
    """The names in a file; empty lines and what follows a # are left out.

    Raises:
        NotFoundError: there is no such file.
        RefusedError: a line is no name of a sample, or there are too many.
    """
    try:
        with path.open("rb") as file:
            body = file.read(_MAX_BYTES + 1)
        text = body.decode()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file; `similar` and the like write one (--ids)") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}: not a list of samples: {error}") from error
    if len(body) > _MAX_BYTES:
        raise RefusedError(f"{path}: a list of samples above {_MAX_BYTES:,} bytes; split it")
    names = [line.partition("#")[0].strip() for line in text.splitlines()]
    return checked_samples([name for name in names if name], str(path))


def checked_samples(names: Sequence[str], where: str) -> tuple[str, ...]:
    """The names, each once, if all of them name samples.

    Raises:
        RefusedError: one does not, or there are too many.
    """
    for name in names:
        steps = name.split("/")
        is_key = len(steps) in (len(_KEY), len(_KEY) + len(_CHIP)) and all(steps)
        if not is_key or not (steps[2].isdecimal() and steps[3].isdecimal()):
            raise RefusedError(f"{where}: {name[:80]!r} names no sample; write stream/device/epoch/seq")
    if len(names) > MAX_SAMPLES:
        raise RefusedError(f"{where}: {len(names):,} samples are more than {MAX_SAMPLES:,}; choose by an expression (where)")
    return tuple(dict.fromkeys(names))


def write_sample_list(path: Path, names: Sequence[str]) -> None:
    """Write names, one a line."""
    write_atomic(path, "".join(f"{name}\n" for name in names).encode(), mode=0o644)


def places_in_list(rows: pa.Table, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """(rows,) the place of each row in a list of names; -1 where it is not listed. Rows have `stream` and the key.

    A chip is listed by its own name or by that of its slide.
    """
    listed = pl.DataFrame({"name": list(names), "place": np.arange(len(names))})
    frame = pl.DataFrame(pl.from_arrow(rows.select([name for name in (*_KEY, *_CHIP) if name in rows.schema.names])))
    whole = _placed(frame, _KEY, listed)
    if set(_CHIP) <= set(frame.columns):
        own = _placed(frame, (*_KEY, *_CHIP), listed)
        whole = np.where(own >= 0, own, whole)
    return whole


def _placed(frame: pl.DataFrame, key: Sequence[str], listed: pl.DataFrame) -> npt.NDArray[np.int64]:
    name = pl.concat_str([pl.col(column).cast(pl.String) for column in key], separator="/").alias("name")
    found = frame.select(name).join(listed, on="name", how="left", maintain_order="left")["place"].fill_null(-1)
    return found.to_numpy().astype(np.int64)
