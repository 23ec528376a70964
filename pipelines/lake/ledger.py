"""The core's state after a run: which seqs of which devices are settled, and the books that say how. No IO.

A run touches few devices of many. So a ledger is a base, the whole as an earlier run left it, and a delta: the devices that
have changed since, each in full. A delta that has grown to a share of its base is put into it, which makes the next base.
What is base and what is delta follows from the runs alone, so a run done again after a crash gives the same.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter

import pyarrow as pa

from pipelines.lake.books import BooksKey, Counts, EpochKey
from pipelines.lake.ledger_books import COUNTS, NO_REASONS, Reasons, counts_of
from pipelines.lake.ledger_bounds import MAX_DEVICE_RANGES, bounded
from pipelines.lake.ledger_rows import NO_ROWS, LedgerRows
from schemas.ranges import Ranges

KEPT_LEDGERS = 20
DELTA_SHARE = 8
"""A delta holds at most one row for so many of its base."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The state of the core after run `run`. Never changed; a run makes the next one.

    `bases` are the runs that left a whole ledger which one of the last `KEPT_LEDGERS` ledgers needs; `base` is that of the
    last of them, `delta` the devices that have changed since.
    """

    run: int = 0
    base: LedgerRows = NO_ROWS
    delta: LedgerRows = NO_ROWS
    bases: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether this ledger is a base itself."""
        return self.bases[-1:] == (self.run,)

    def after(
        self,
        run: int,
        touched: Mapping[EpochKey, Ranges],
        counts: Mapping[BooksKey, Counts],
        listed: Mapping[str, frozenset[EpochKey]],
        *,
        reasons: Reasons = NO_REASONS,
        max_ranges: int = MAX_DEVICE_RANGES,
    ) -> "Ledger":
        """The ledger after a run.

        Args:
            run: its number.
            touched: the new ranges of every epoch that changed.
            counts: what to add to the books.
            listed: per device that reported in this run, the epochs it still knows.
            reasons: how many samples of a stream in `counts` were refused for which reason.
            max_ranges: how many ranges a device may have; beyond it the oldest gaps are closed.
        """
        devices = {*map(itemgetter(0), touched), *map(itemgetter(0), counts), *listed}
        after = self.of(devices).after(touched, counts, listed, reasons)
        return self._next(run, self.delta.updated(bounded(after, max_ranges)))

    def _next(self, run: int, delta: LedgerRows) -> "Ledger":
        if self.bases and delta.count * DELTA_SHARE <= self.base.count:
            return Ledger(run, self.base, delta, needed_bases(self.bases, run))
        return Ledger(run, self.base.updated(delta), NO_ROWS, needed_bases((*self.bases, run), run))

    def of(self, devices: Iterable[str]) -> LedgerRows:
        """The states of those of these devices that the ledger knows."""
        wanted = pa.array(list(devices), pa.string())
        return self.base.of(wanted).updated(self.delta.of(wanted))

    def whole(self) -> LedgerRows:
        """The states of all devices."""
        return self.base.updated(self.delta)

    @property
    def books(self) -> dict[BooksKey, Counts]:
        """The books of every device and stream: for looking, not for what every run does."""
        return counts_of(self.whole().books)

    def books_by_stream(self) -> dict[str, Counts]:
        """The books of each stream over all its devices, by name."""
        totals = (
            self.whole()
            .books.group_by("stream", use_threads=False)
            .aggregate([(name, "sum") for name in COUNTS])
            .sort_by("stream")
        )
        rows = zip(totals["stream"].to_pylist(), *(totals[f"{name}_sum"].to_pylist() for name in COUNTS), strict=True)
        return {stream: Counts(*counts) for stream, *counts in rows}

    def unbalanced(self) -> list[BooksKey]:
        """The streams whose books do not balance: must be empty."""
        if not self.base.unbalanced():
            return self.delta.unbalanced()
        return self.whole().unbalanced()

    def devices(self) -> set[str]:
        """Every device with a settled sample."""
        chunks = [*self.base.settled["device"].chunks, *self.delta.settled["device"].chunks]
        return set(pa.chunked_array(chunks, pa.string()).unique().to_pylist())

    def devices_with_receipt(self) -> set[str]:
        """Every device to which the core has something to say: with a settled sample, or with books."""
        chunks = [*self.base.books["device"].chunks, *self.delta.books["device"].chunks]
        return (self.devices() | set(pa.chunked_array(chunks, pa.string()).unique().to_pylist())) - {""}


def needed_bases(bases: tuple[int, ...], run: int) -> tuple[int, ...]:
    """Of these bases, those that the ledgers of the last `KEPT_LEDGERS` runs up to `run` need."""
    oldest = run - KEPT_LEDGERS + 1
    while len(bases) > 1 and bases[1] <= oldest:
        bases = bases[1:]
    return bases
