"""The books: how many samples of each device's stream came, and what became of them; of many devices as an Arrow table. No IO.

`refused_in_row`: samples quarantined since one was last committed. `reason`: the commonest reason of refusals, with the weight
that it has over all others (a majority vote, so that no tally of all reasons is kept). `floor_epoch`, `floor_seq`: the stream's
floor; 0 and 0: none.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from schemas.receipts import Floor, RefusedStream

BooksKey: TypeAlias = tuple[str, str]
"""A device and one of its streams; the stream "" holds messages that told none."""


class EpochKey(NamedTuple):
    """One epoch of one device's stream."""

    device: str
    stream: str
    epoch: int


class Counts(msgspec.Struct, frozen=True):
    """The books of one device's stream, in samples: `quarantined` wait there, `discarded` were discarded by a person.

    `closed` are seqs of gaps that were closed unseen, because the device had more ranges than the ledger keeps.
    """

    received: int = 0
    committed: int = 0
    quarantined: int = 0
    discarded: int = 0
    duplicate: int = 0
    dropped: int = 0
    closed: int = 0

    @property
    def is_balanced(self) -> bool:
        """Promise 3: received = committed + quarantined + discarded + duplicate. What was dropped was never received."""
        return self.received == self.committed + self.quarantined + self.discarded + self.duplicate

    def plus(self, other: "Counts") -> "Counts":
        """The sum, count by count."""
        return Counts(
            self.received + other.received,
            self.committed + other.committed,
            self.quarantined + other.quarantined,
            self.discarded + other.discarded,
            self.duplicate + other.duplicate,
            self.dropped + other.dropped,
            self.closed + other.closed,
        )


def books_by_stream(books: Mapping[BooksKey, Counts]) -> dict[str, Counts]:
    """The books of each stream over all its devices."""
    total: dict[str, Counts] = {}
    for (_device, stream), counts in sorted(books.items()):
        total[stream] = total.get(stream, Counts()).plus(counts)
    return total


COUNTS = ("received", "committed", "quarantined", "discarded", "duplicate", "dropped", "closed")
IN_ROW = "refused_in_row"
BOOKS_SCHEMA = pa.schema(
    [pa.field("device", pa.string(), nullable=False), pa.field("stream", pa.string(), nullable=False)]
    + [pa.field(name, pa.int64(), nullable=False) for name in (*COUNTS, IN_ROW)]
    + [pa.field("reason", pa.string(), nullable=False)]
    + [pa.field(name, pa.int64(), nullable=False) for name in ("reason_weight", "floor_epoch", "floor_seq")]
)
LATER_COLUMNS = ("discarded", "closed", IN_ROW, "reason", "reason_weight", "floor_epoch", "floor_seq")
"""Columns that older books lack; there they are 0 or empty."""
MAX_COUNT = 2**53
"""A device may claim to have dropped more samples than a sum of them could hold: counts stop here."""

_SUMMED = (*COUNTS, IN_ROW, "gained")
_LAST = ("reason", "reason_weight", "floor_epoch", "floor_seq")
_AGGREGATES = [*((name, "sum") for name in _SUMMED), *((name, "last") for name in _LAST)]

Reasons = Mapping[BooksKey, Mapping[str, int]]
NO_REASONS: Reasons = MappingProxyType({})
NO_FLOORS: Mapping[BooksKey, Floor] = MappingProxyType({})


def books_after(
    books: pa.Table,
    counts: Mapping[BooksKey, Counts],
    reasons: Reasons = NO_REASONS,
    floors: Mapping[BooksKey, Floor] = NO_FLOORS,
) -> pa.Table:
    """The books of the same devices with counts added, refusals noted and floors raised; unordered.

    Args:
        books: as they were.
        counts: what to add.
        reasons: how many samples were refused for which reason; keys are among those of `counts`.
        floors: new floors; keys are among those of `counts`.
    """
    before = books.append_column("gained", pa.array(np.zeros(books.num_rows, np.int64)))
    before = before.cast(pa.schema([field.with_nullable(True) for field in before.schema]))
    added = _added(counts, _voted(books, reasons), floors, before.schema)
    merged = pa.concat_tables([before, added]).group_by(["device", "stream"], use_threads=False).aggregate(_AGGREGATES)
    merged = merged.rename_columns([name.removesuffix("_sum").removesuffix("_last") for name in merged.column_names])
    quarantined, gained = merged["quarantined"].to_numpy(), merged["gained"].to_numpy()
    is_clean = pa.array(quarantined <= 0)
    columns = {name: merged[name] for name in BOOKS_SCHEMA.names}
    columns[IN_ROW] = pa.array(np.where((gained > 0) | (quarantined <= 0), 0, merged[IN_ROW].to_numpy()))
    columns["reason"] = pc.if_else(is_clean, "", pc.fill_null(merged["reason"], ""))
    columns["reason_weight"] = pc.if_else(is_clean, 0, pc.fill_null(merged["reason_weight"], 0))
    for name in ("floor_epoch", "floor_seq"):
        columns[name] = pc.fill_null(merged[name], 0)
    for name in ("dropped", "closed"):
        columns[name] = pa.array(np.minimum(merged[name].to_numpy(), MAX_COUNT))
    return pa.table(columns).cast(BOOKS_SCHEMA)


def with_later_columns(books: pa.Table) -> pa.Table:
    """The same books with the columns that were added since they were written; others that are missing stay missing."""
    for name in LATER_COLUMNS:
        if name not in books.column_names:
            place = min(BOOKS_SCHEMA.get_field_index(name), books.num_columns)
            field = BOOKS_SCHEMA.field(name)
            empty = pa.scalar("" if field.type == pa.string() else 0, field.type)
            books = books.add_column(place, field, pa.repeat(empty, books.num_rows))
    return books


def counts_of(books: pa.Table) -> dict[BooksKey, Counts]:
    """The counts of each device and stream as Python objects."""
    rows = zip(*(books[name].to_pylist() for name in ("device", "stream", *COUNTS)), strict=True)
    return {(device, stream): Counts(*counts) for device, stream, *counts in rows}


def floors_of(books: pa.Table) -> dict[BooksKey, Floor]:
    """The floors of the streams that have one."""
    found = books.filter(pc.greater(books["floor_seq"], 0))
    names = ("device", "stream", "floor_epoch", "floor_seq")
    rows = zip(*(found[name].to_pylist() for name in names), strict=True)
    return {(device, stream): Floor(str(epoch), seq) for device, stream, epoch, seq in rows}


def refused_of(books: pa.Table) -> dict[BooksKey, RefusedStream]:
    """What waits in the quarantine, for the streams of which anything does."""
    found = books.filter(pc.greater(books["quarantined"], 0))
    names = ("device", "stream", "quarantined", "committed", IN_ROW, "reason")
    rows = zip(*(found[name].to_pylist() for name in names), strict=True)
    return {(device, stream): RefusedStream(*values) for device, stream, *values in rows}


def streams_of(books: pa.Table) -> dict[str, frozenset[str]]:
    """The streams that each device has books of."""
    streams: dict[str, set[str]] = {}
    for device, stream in zip(books["device"].to_pylist(), books["stream"].to_pylist(), strict=True):
        if stream:
            streams.setdefault(device, set()).add(stream)
    return {device: frozenset(names) for device, names in streams.items()}


def _voted(books: pa.Table, reasons: Reasons) -> dict[BooksKey, tuple[str, int]]:
    """The commonest reason of each key with refusals: the one before, unless the new ones outweigh it."""
    if not reasons:
        return {}
    wanted = books.filter(pc.is_in(books["device"], value_set=pa.array({device for device, _ in reasons}, pa.string())))
    names = ("device", "stream", "reason", "reason_weight")
    rows = zip(*(wanted[name].to_pylist() for name in names), strict=True)
    known = {(device, stream): (reason, weight) for device, stream, reason, weight in rows}
    voted: dict[BooksKey, tuple[str, int]] = {}
    for key, tally in reasons.items():
        reason, weight = known.get(key, ("", 0))
        for other, count in sorted(tally.items(), key=lambda pair: (pair[1], pair[0])):
            weight = weight + count if other == reason else weight - count
            if weight < 0:
                reason, weight = other, -weight
        voted[key] = (reason, min(weight, MAX_COUNT))
    return voted


def _added(
    counts: Mapping[BooksKey, Counts],
    voted: Mapping[BooksKey, tuple[str, int]],
    floors: Mapping[BooksKey, Floor],
    schema: pa.Schema,
) -> pa.Table:
    keys, added = list(counts), list(counts.values())
    raised = [floors.get(key) for key in keys]
    columns = {
        "device": _texts(keys, 0),
        "stream": _texts(keys, 1),
        **{name: whole(added, attrgetter(name)) for name in COUNTS},
        IN_ROW: whole(added, lambda one: max(0, one.quarantined)),
        "reason": pa.array([voted[key][0] if key in voted else None for key in keys], pa.string()),
        "reason_weight": pa.array([voted[key][1] if key in voted else None for key in keys], pa.int64()),
        "floor_epoch": pa.array([None if floor is None else int(floor.epoch) for floor in raised], pa.int64()),
        "floor_seq": pa.array([None if floor is None else floor.seq for floor in raised], pa.int64()),
        "gained": whole(added, attrgetter("committed")),
    }
    # Only what changes is filled in: the rest stays null, and the last value that is not null counts.
    return pa.table(columns).select(schema.names)


def _texts(keys: Sequence[tuple[Any, ...]], place: int) -> pa.Array:
    return pa.array(list(map(itemgetter(place), keys)), pa.string())


def whole(values: Sequence[Any], number: Callable[[Any], int]) -> pa.Array:
    """A number of each value as int64; no more than `MAX_COUNT`."""
    return pa.array(np.fromiter((min(number(value), MAX_COUNT) for value in values), np.int64, len(values)))
