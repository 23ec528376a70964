"""The state of many devices as two Arrow tables: a device that a run does not touch is never made a Python object. No IO.

Settled: device, stream, epoch, low, high (half-open), asked (whether the device still asks about this epoch).
Books: device, stream, received, committed, quarantined, duplicate, dropped; counts since the lake began.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lake.books import BooksKey, Counts, DeviceState, EpochKey
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
COUNTS = ("received", "committed", "quarantined", "duplicate", "dropped")
BOOKS_SCHEMA = pa.schema(
    [pa.field("device", pa.string(), nullable=False), pa.field("stream", pa.string(), nullable=False)]
    + [pa.field(name, pa.int64(), nullable=False) for name in COUNTS]
)
_SETTLED_ORDER = [(name, "ascending") for name in ("device", "stream", "epoch", "low")]
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

    def states(self, devices: Iterable[str]) -> dict[str, DeviceState]:
        """The states of those of these devices that have any."""
        wanted = pa.array(list(devices), pa.string())
        if not len(wanted) or not self.count:
            return {}
        settled, books = _among(self.settled, wanted), _among(self.books, wanted)
        keys, spans, forgotten = _decoded(settled)
        found: dict[str, tuple[dict[EpochKey, Ranges], dict[str, Counts], set[EpochKey]]] = {}
        for key, ranges in zip(keys, spans, strict=True):
            found.setdefault(key.device, ({}, {}, set()))[0][key] = Ranges(tuple(ranges))
        for key in forgotten:
            found[key.device][2].add(key)
        for device, stream, *counts in zip(*(books[name].to_pylist() for name in BOOKS_SCHEMA.names), strict=True):
            found.setdefault(device, ({}, {}, set()))[1][stream] = Counts(*counts)
        return {device: DeviceState(own, of, frozenset(quiet)) for device, (own, of, quiet) in found.items()}

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
        received, committed, quarantined, duplicate = (self.books[name].to_numpy() for name in COUNTS[:4])
        wrong = self.books.filter(pa.array(received != committed + quarantined + duplicate))
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


def rows_of(states: Mapping[str, DeviceState]) -> LedgerRows:
    """Devices' states as rows."""
    ordered = [states[device] for device in sorted(states)]
    return LedgerRows(_settled_table(ordered), _books_table({device: states[device].books for device in sorted(states)}))


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


def _decoded(settled: pa.Table) -> tuple[list[EpochKey], list[list[Span]], set[EpochKey]]:
    keys: list[EpochKey] = []
    spans: list[list[Span]] = []
    forgotten: set[EpochKey] = set()
    columns = [settled[name].to_pylist() for name in SETTLED_SCHEMA.names]
    for device, stream, epoch, low, high, asked in zip(*columns, strict=True):
        key = EpochKey(device, stream, epoch)
        if keys and keys[-1] == key:
            spans[-1].append((low, high))
            continue
        keys.append(key)
        spans.append([(low, high)])
        if not asked:
            forgotten.add(key)
    return keys, spans, forgotten


def _settled_table(states: Sequence[DeviceState]) -> pa.Table:
    """Whole columns, whoever is in them: a run may touch every device there is."""
    pairs = [(state, key) for state in states for key in sorted(state.settled)]
    keys = [key for _state, key in pairs]
    spans = [state.settled[key].spans for state, key in pairs]
    counts = np.fromiter(map(len, spans), np.int64, len(spans))
    bounds = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int64, 2 * int(counts.sum()))
    asked = np.fromiter((key not in state.forgotten for state, key in pairs), np.bool_, len(pairs))
    own = [_texts(keys, 0), _texts(keys, 1), _whole(keys, itemgetter(2)), pa.array(asked)]
    owner = pa.array(np.repeat(np.arange(len(keys)), counts))
    device, stream, epoch, is_asked = (column.take(owner) for column in own)
    return pa.table([device, stream, epoch, pa.array(bounds[0::2]), pa.array(bounds[1::2]), is_asked], schema=SETTLED_SCHEMA)


def _books_table(books: Mapping[str, Mapping[str, Counts]]) -> pa.Table:
    keys = [(device, stream) for device, own in books.items() for stream in sorted(own)]
    counts = [books[device][stream] for device, stream in keys]
    return pa.table(
        [_texts(keys, 0), _texts(keys, 1), *(_whole(counts, attrgetter(name)) for name in COUNTS)], schema=BOOKS_SCHEMA
    )


def _texts(keys: Sequence[tuple[Any, ...]], place: int) -> pa.Array:
    return pa.array(list(map(itemgetter(place), keys)), pa.string())


def _whole(values: Sequence[Any], number: Callable[[Any], int]) -> pa.Array:
    return pa.array(np.fromiter(map(number, values), np.int64, len(values)))
