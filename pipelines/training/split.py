"""Which split a row goes to, and in which order the rows of a split lie. Pure decisions over columns."""

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RefusedError
from pipelines.training.manifest import SplitRule
from pipelines.training.permutation import Permutation

Int64s = npt.NDArray[np.int64]
_SEPARATOR = "\x1f"


def group_unit(seed: int, group: str) -> float:
    """A number in [0, 1) that hangs on the seed and the group alone, so a group keeps its split as the lake grows."""
    digest = hashlib.sha256(f"{seed}{_SEPARATOR}{group}".encode()).digest()
    return int.from_bytes(digest[:7], "little") / 2**56


def split_of_rows(rows: pa.Table, rule: SplitRule, seed: int) -> Int64s:
    """The number of the split of each row, in the order of `rule.fractions`.

    Raises:
        RefusedError: there is no such group column.
    """
    missing = [name for name in rule.group if name not in rows.schema.names]
    if missing:
        raise RefusedError(f"no column {', '.join(missing)} to group by; there are {', '.join(rows.schema.names)}")
    texts = [pc.fill_null(pc.cast(rows.column(name), pa.string()), "") for name in rule.group]
    joined = pc.binary_join_element_wise(*texts, _SEPARATOR) if len(texts) > 1 else texts[0]
    encoded = pa.chunked_array(joined).combine_chunks().dictionary_encode()
    shares = np.cumsum([share for _, share in rule.fractions])
    units = np.array([group_unit(seed, group) for group in encoded.dictionary.to_pylist()], np.float64)
    picked = np.minimum(np.searchsorted(shares, units, side="right"), len(shares) - 1).astype(np.int64)
    return np.asarray(picked[encoded.indices.to_numpy(zero_copy_only=False)], np.int64)


def shuffled_rows(rows: pa.Table, splits: Int64s, number: int, seed: int) -> pa.Table:
    """The rows of one split in the order that the seed gives; it is the same wherever and whenever it is computed."""
    members = np.flatnonzero(splits == number)
    order = Permutation(len(members), seed, epoch=-1 - number).at(np.arange(len(members), dtype=np.int64))
    return rows.take(pa.array(members[order]))


def shard_bounds(sizes: Int64s, max_rows: int, max_bytes: int) -> list[tuple[int, int]]:
    """Half-open row spans of at most `max_rows` and about `max_bytes`; at least one span, even for no rows."""
    ends = np.concatenate(([0], np.cumsum(sizes)))
    bounds: list[tuple[int, int]] = []
    low = 0
    while low < len(sizes):
        fits = int(np.searchsorted(ends, ends[low] + max_bytes, side="right")) - 1
        high = min(max(fits, low + 1), low + max_rows, len(sizes))
        bounds.append((low, high))
        low = high
    return bounds or [(0, 0)]
