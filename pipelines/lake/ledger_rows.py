"""The state of many devices as two Arrow tables: a device that a run does not touch is never made a Python object. No IO.

Settled: device, stream, epoch, low, high (half-open), asked (whether the device still asks about this epoch).
Books: see `ledger_books`; counts since the lake began.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.books import BOOKS_SCHEMA, COUNTS, NO_REASONS, BooksKey, Counts, EpochKey, Reasons, books_after
from schemas.ranges import Ranges, Span

SETTLED_SCHEMA = pa.schema(
    [
        pa.field("device", pa.string(), nullable=False),
        pa.field("stream", pa.string(), nullable=False),
        pa.field("epoch", pa.int64(), nullable=False),
        pa.field("low", pa.int64(), nullable=False),
        pa.field("high", pa.int64(), nullable=False),
        pa.field("asked", pa.bool_(), nullable=False),
    ]
)
_SETTLED_ORDER = [(name, "ascending") for name in ("device", "stream", "epoch", "low")]
_BOUNDED = ("device", "stream", "epoch", "low", "high")
_BOOKS_ORDER = [(name, "ascending") for name in ("device", "stream")]


@dataclass(frozen=True, slots=True)
class LedgerRows:
    """Whole states of some devices: `settled` by device, stream, epoch and low, `books` by device and stream."""

    settled: pa.Table
    books: pa.Table

    @property
    def count(self) -> int:
        """Rows of both tables."""
        return int(self.settled.num_rows + self.books.num_rows)

    def devices(self) -> pa.Array:
        """Every device with a row in either table, once."""
        return pc.unique(pa.chunked_array([*self.settled["device"].chunks, *self.books["device"].chunks], pa.string()))

    def of(self, devices: pa.Array) -> "LedgerRows":
        """The rows of those of these devices that have any."""
        return LedgerRows(_among(self.settled, devices), _among(self.books, devices))

    def ranges(self) -> dict[EpochKey, Ranges]:
        """What is settled, by epoch."""
        spans: dict[EpochKey, list[Span]] = {}
        for device, stream, epoch, low, high in zip(*(self.settled[name].to_pylist() for name in _BOUNDED), strict=True):
            spans.setdefault(EpochKey(device, stream, epoch), []).append((low, high))
        return {key: Ranges(tuple(found)) for key, found in spans.items()}

    def still_requested(self) -> "LedgerRows":
        """Without the epochs that their device has forgotten."""
        return LedgerRows(self.settled.filter(self.settled["asked"]), self.books)

    def after(
        self,
        touched: Mapping[EpochKey, Ranges],
        counts: Mapping[BooksKey, Counts],
        listed: Mapping[str, frozenset[EpochKey]],
        reasons: Reasons = NO_REASONS,
    ) -> "LedgerRows":
        """The states after a run; one that it touched and is not here has none yet. See `Ledger.after`."""
        settled = pa.concat_tables([_with_requests(self.settled, listed, touched), _settled_table(touched)])
        # The ranges of an epoch that were there before the run make room for those that it leaves.
        is_new = np.arange(settled.num_rows) >= self.settled.num_rows
        order = pc.sort_indices(
            settled.append_column("old", pa.array(~is_new)), sort_keys=[*_SETTLED_ORDER[:3], ("old", "ascending")]
        )
        settled, is_new = settled.take(order), is_new[order.to_numpy()]
        is_first = ~same_epoch(settled)
        replaced = is_new[is_first][np.cumsum(is_first) - 1] & ~is_new
        return LedgerRows(settled.filter(pa.array(~replaced)), books_after(self.books, counts, reasons))

    def updated(self, newer: "LedgerRows") -> "LedgerRows":
        """These states, those of `newer` in the place of the same devices' states."""
        if not newer.count:
            return self
        devices = newer.devices()
        settled = pa.concat_tables([_without(self.settled, devices), newer.settled])
        books = pa.concat_tables([_without(self.books, devices), newer.books])
        return LedgerRows(
            settled.take(pc.sort_indices(settled, sort_keys=_SETTLED_ORDER)).combine_chunks(),
            books.take(pc.sort_indices(books, sort_keys=_BOOKS_ORDER)).combine_chunks(),
        )

    def unbalanced(self) -> list[BooksKey]:
        """The streams whose books do not balance."""
        received, *settled = (self.books[name].to_numpy() for name in COUNTS[:5])
        wrong = self.books.filter(pa.array(received != sum(settled)))
        return list(zip(wrong["device"].to_pylist(), wrong["stream"].to_pylist(), strict=True))

    def fault(self) -> str:
        """Why these rows cannot be states; empty if they can."""
        for table, order in ((self.settled, _SETTLED_ORDER), (self.books, _BOOKS_ORDER)):
            if not np.array_equal(pc.sort_indices(table, sort_keys=order).to_numpy(), np.arange(table.num_rows)):
                return "the rows are not in order"
        low, high = self.settled["low"].to_numpy(), self.settled["high"].to_numpy()
        is_same = same_epoch(self.settled)
        wrong = (low < 0) | (high <= low)
        wrong[1:] |= is_same[1:] & (low[1:] <= high[:-1])
        if not wrong.any():
            return ""
        row = self.settled.slice(int(np.flatnonzero(wrong)[0]), 1).to_pylist()[0]
        at = f"{row['device']}/{row['stream']} {row['epoch']}"
        return f"the ranges of {at} are not sorted, disjoint and not empty at [{row['low']}, {row['high']})"


NO_ROWS = LedgerRows(SETTLED_SCHEMA.empty_table(), BOOKS_SCHEMA.empty_table())


def same_epoch(settled: pa.Table) -> Any:
    """Per row, whether the row before is of the same device, stream and epoch: a numpy array of bools."""
    is_same = np.zeros(settled.num_rows, np.bool_)
    if settled.num_rows > 1:
        later, earlier = settled.slice(1), settled.slice(0, settled.num_rows - 1)
        equal = [pc.equal(later[name], earlier[name]).to_numpy() for name in ("device", "stream", "epoch")]
        is_same[1:] = equal[0] & equal[1] & equal[2]
    return is_same


def _among(table: pa.Table, devices: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["device"], value_set=devices))


def _without(table: pa.Table, devices: pa.Array) -> pa.Table:
    return table.filter(pc.invert(pc.is_in(table["device"], value_set=devices)))


def _with_requests(settled: pa.Table, listed: Mapping[str, frozenset[EpochKey]], touched: Mapping[EpochKey, Ranges]) -> pa.Table:
    """The rows with `asked` as the devices that reported in a run have it; the others' as they were."""
    if not listed:
        return settled
    keys = map(EpochKey, *(settled[name].to_pylist() for name in ("device", "stream", "epoch")))
    is_requested = [
        was if key.device not in listed else key in listed[key.device] or key in touched
        for key, was in zip(keys, settled["asked"].to_pylist(), strict=True)
    ]
    return settled.set_column(settled.num_columns - 1, SETTLED_SCHEMA.field("asked"), pa.array(is_requested, pa.bool_()))


def _settled_table(touched: Mapping[EpochKey, Ranges]) -> pa.Table:
    """Whole columns: a run may touch every device there is."""
    keys = list(touched)
    spans = [ranges.spans for ranges in touched.values()]
    counts = np.fromiter(map(len, spans), np.int64, len(spans))
    bounds = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int64, 2 * int(counts.sum()))
    owner = pa.array(np.repeat(np.arange(len(keys)), counts))
    own = (_texts(keys, 0), _texts(keys, 1), _whole(keys, itemgetter(2)))
    is_requested = pa.array(np.ones(len(owner), np.bool_))
    return pa.table(
        [*(column.take(owner) for column in own), pa.array(bounds[0::2]), pa.array(bounds[1::2]), is_requested],
        schema=SETTLED_SCHEMA,
    )


def _texts(keys: Sequence[tuple[Any, ...]], place: int) -> pa.Array:
    return pa.array(list(map(itemgetter(place), keys)), pa.string())


def _whole(values: Sequence[Any], number: Callable[[Any], int]) -> pa.Array:
    return pa.array(np.fromiter(map(number, values), np.int64, len(values)))
