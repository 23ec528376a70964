"""The ledger as a base and what has changed since: the same as if it were kept whole, no matter what reads it, and when."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import CorruptLakeError
from pipelines.ingest.receipts import receipts_of
from pipelines.lake.books import BOOKS_SCHEMA, BooksKey, Counts, EpochKey
from pipelines.lake.lake import lake_at
from pipelines.lake.layout import RUNS, books_path, ledger_path
from pipelines.lake.ledger import KEPT_LEDGERS, Ledger, gaps
from pipelines.lake.ledger_files import ledger_bases, prune_ledgers, read_ledger, write_ledger
from pipelines.lake.ledger_rows import SETTLED_SCHEMA
from pipelines.maintenance import vacuum
from schemas.ranges import Ranges

STREAM = "vehicle_telemetry"


@dataclass
class Plain:
    """The ledger as plain dicts, all of it."""

    settled: dict[EpochKey, Ranges] = field(default_factory=dict)
    books: dict[BooksKey, Counts] = field(default_factory=dict)
    forgotten: set[EpochKey] = field(default_factory=set)

    def take(self, run: "Run") -> None:
        self.settled.update({key: ranges for key, ranges in run.touched.items() if ranges})
        for key, more in run.counts.items():
            self.books[key] = self.books.get(key, Counts()).plus(more)
        for device, known in run.listed.items():
            own = {key for key in self.settled if key.device == device}
            self.forgotten = (self.forgotten - own) | (own - known)
        self.forgotten -= set(run.touched)


@dataclass
class Run:
    touched: dict[EpochKey, Ranges]
    counts: dict[BooksKey, Counts]
    listed: dict[str, frozenset[EpochKey]]


DEVICES = st.sampled_from([f"car-{number}" for number in range(12)])
KEYS = st.builds(EpochKey, DEVICES, st.sampled_from(["a", "b"]), st.integers(1, 3))
RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4).map(Ranges.of).filter(bool)
COUNTS = st.integers(0, 9).flatmap(lambda count: st.just(Counts(received=count, committed=count)))
RUN = st.builds(
    Run,
    st.dictionaries(KEYS, RANGES, max_size=3),
    st.dictionaries(st.tuples(DEVICES, st.sampled_from(["a", "b", ""])), COUNTS, max_size=3),
    st.dictionaries(DEVICES, st.frozensets(KEYS, max_size=4), max_size=2),
)


def first_of(count: int) -> Ledger:
    keys = [EpochKey(f"car-{number}", STREAM, 7) for number in range(count)]
    books = {(key.device, key.stream): Counts(received=10, committed=10) for key in keys}
    return Ledger().after(1, {key: Ranges(((0, 10),)) for key in keys}, books, {})


def one_more(ledger: Ledger, device: str) -> Ledger:
    key = EpochKey(device, STREAM, 7)
    after = {key: ledger.of([device]).ranges().get(key, Ranges()).union([(20, 30)])}
    return ledger.after(ledger.run + 1, after, {(device, STREAM): Counts(received=10, committed=10)}, {})


def kept(root: Path) -> set[int]:
    assert {path.name[:12] for path in (root / RUNS).glob("*.books.parquet")} == {
        path.name[:12] for path in (root / RUNS).glob("*.ledger.parquet")
    }
    return {int(path.name[:12]) for path in (root / RUNS).glob("*.ledger.parquet")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / RUNS).mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lakes")
    (root / RUNS).mkdir()
    return root


@given(st.lists(st.tuples(RUN, st.booleans()), min_size=1, max_size=8))
@settings(max_examples=15, deadline=None)
def test_a_ledger_of_base_and_delta_is_the_same_as_a_whole_one_before_and_after_it_was_read(lakes: Path, runs: list[Any]) -> None:
    ledger, plain = Ledger(), Plain()
    for number, (run, is_restart) in enumerate(runs, 1):
        ledger = ledger.after(number, run.touched, run.counts, run.listed)
        plain.take(run)
        if is_restart:
            write_ledger(lake_at(lakes), ledger)
            if ledger.bases[-1] != number:  # the run that made it wrote it
                write_ledger(lake_at(lakes), Ledger(ledger.bases[-1], ledger.base, bases=ledger.bases))
            read = read_ledger(lake_at(lakes), number)
            assert (read.bases, read.base, read.delta) == (ledger.bases, ledger.base, ledger.delta)
            ledger = read
        whole = ledger.whole()
        assert whole.ranges() == plain.settled
        assert whole.still_requested().ranges() == {
            key: ranges for key, ranges in plain.settled.items() if key not in plain.forgotten
        }
        assert ledger.books == plain.books
        assert not ledger.unbalanced()
        assert ledger.devices() == {key.device for key in plain.settled}
        own = {key: ranges for key, ranges in plain.settled.items() if key.device == "car-1"}
        assert ledger.of(["car-1", "unknown"]).ranges() == own
        wanted = [
            (*key, low, high, key not in plain.forgotten)
            for key in sorted(plain.settled)
            for low, high in plain.settled[key].gaps(plain.settled[key].spans[-1][1])
        ]
        found = [(one.device, one.stream, one.epoch, one.low, one.high, one.is_awaited) for one in gaps(ledger)]
        assert found == wanted


def test_a_run_that_touches_one_device_of_many_writes_one_device(root: Path) -> None:
    ledger = one_more(first_of(100), "car-7")
    write_ledger(lake_at(root), ledger)
    rows = pq.read_table(ledger_path(root, 2)).to_pylist()
    assert rows == [
        {"device": "car-7", "stream": STREAM, "epoch": 7, "low": low, "high": low + 10, "asked": True, "base": 1}
        for low in (0, 20)
    ]
    assert receipts_of(ledger, ["car-7", "car-8"])["car-8"].settled == {STREAM: {"7": [(0, 10)]}}


def test_a_run_that_changes_nothing_leaves_a_ledger_that_is_read(root: Path) -> None:
    ledger = Ledger().after(1, {}, {}, {})
    write_ledger(lake_at(root), ledger)
    ledger = read_ledger(lake_at(root), 1).after(2, {}, {}, {})
    write_ledger(lake_at(root), ledger)
    assert read_ledger(lake_at(root), 2).books == {}


def test_a_ledger_of_the_time_before_there_were_bases_is_read_and_gone_on_from(root: Path) -> None:
    whole = first_of(100).whole()
    for path, table, schema in (
        (ledger_path(root, 41), whole.settled, SETTLED_SCHEMA),
        (books_path(root, 41), whole.books, BOOKS_SCHEMA),
    ):
        pq.write_table(pa.table(table.columns, schema=schema), path, compression="zstd", write_page_checksum=True)
    old = read_ledger(lake_at(root), 41)
    ledger = one_more(old, "car-7")
    assert (old.bases, ledger.bases, ledger.run) == ((41,), (41,), 42)
    write_ledger(lake_at(root), ledger)
    assert read_ledger(lake_at(root), 42).of(["car-7"]).ranges() == {EpochKey("car-7", STREAM, 7): Ranges(((0, 10), (20, 30)))}


def test_bases_are_kept_as_long_as_a_kept_ledger_needs_them_and_no_longer(root: Path) -> None:
    ledger = first_of(60)
    write_ledger(lake_at(root), ledger)
    for run in range(2, 60):
        before, ledger = ledger, one_more(ledger, f"car-{run % 60}")
        write_ledger(lake_at(root), ledger)
        prune_ledgers(lake_at(root), before, ledger)
        recent = set(range(max(1, run - KEPT_LEDGERS + 1), run + 1))
        assert kept(root) == recent | set(ledger.bases)
        assert ledger_bases(lake_at(root), run) == ledger.bases
        assert read_ledger(lake_at(root), min(recent)).run == min(recent)
    assert len(ledger.bases) > 1


def test_a_vacuum_leaves_a_base_that_is_needed_however_old_it_is(root: Path) -> None:
    base = first_of(100)
    write_ledger(lake_at(root), base)
    write_ledger(lake_at(root), one_more(base, "car-7"))
    write_ledger(lake_at(root), Ledger(61, base.base, one_more(base, "car-7").delta, base.bases))
    with patch.object(vacuum, "committed_run", return_value=61):
        vacuum.Vacuum(lake_at(root), vacuum.Keep(0, 0, 0, 0)).sweep()
    assert kept(root) == {1, 61}
    assert read_ledger(lake_at(root), 61).devices() == base.devices()


def test_a_lost_base_stops_with_a_word(root: Path) -> None:
    write_ledger(lake_at(root), first_of(100))
    write_ledger(lake_at(root), one_more(first_of(100), "car-7"))
    ledger_path(root, 1).unlink()
    with pytest.raises(CorruptLakeError, match="restore it from a copy"):
        read_ledger(lake_at(root), 2)


def test_books_that_do_not_go_with_the_ledger_are_refused(root: Path) -> None:
    write_ledger(lake_at(root), first_of(100))
    other = one_more(first_of(100), "car-7")
    write_ledger(lake_at(root), other)
    write_ledger(lake_at(root), Ledger(2, other.whole(), bases=(2,)))
    whole = books_path(root, 2).read_bytes()
    write_ledger(lake_at(root), other)
    books_path(root, 2).write_bytes(whole)
    with pytest.raises(CorruptLakeError, match="restore both"):
        read_ledger(lake_at(root), 2)


@pytest.mark.parametrize(("low", "high"), [([0, 5], [10, 20]), ([0, 20], [10, 20]), ([20, 0], [30, 10])])
def test_ranges_that_cannot_be_are_refused(root: Path, low: list[int], high: list[int]) -> None:
    rows = [["car-1"] * 2, [STREAM] * 2, [7] * 2, low, high, [True] * 2]
    write_ledger(lake_at(root), first_of(1))
    pq.write_table(pa.table(rows, schema=SETTLED_SCHEMA), ledger_path(root, 1))
    with pytest.raises(CorruptLakeError, match=r"in order|not sorted"):
        read_ledger(lake_at(root), 1)
