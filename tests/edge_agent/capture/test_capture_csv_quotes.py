"""A quote in a table or followed CSV log costs at most its own row, wherever it stands and whether or not it is closed."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_agent.errors import SourceEndedError
from edge_agent.sources.api import SampleBatch
from edge_agent.sources.registry import GuardedSource
from edge_agent.sources.rows.csv_rows import OPEN_QUOTE, leaves_open
from tests.fakes.sources import build, close_all, column

HEADER = "ts,duration_s,service\n"
KINDS = ["replay", "tail"]


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


def read(kind: str, path: Path, text: str) -> tuple[GuardedSource, list[SampleBatch]]:
    path.write_text(text)
    source = build(kind, "network_flow", path=str(path))
    batches: list[SampleBatch] = []
    with suppress(SourceEndedError):
        batches += iter(lambda: source.read(2), None)
    return source, batches


def row(second: int, service: str) -> str:
    return f"2024-05-01T00:00:{second:02d}Z,{second},{service}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_quote_within_a_cell_is_text_and_takes_no_rows_along(kind: str, tmp_path: Path) -> None:
    cells = ['12" pipe', "a", "b", '3" pipe', "c", 'x"', "d"]
    _, batches = read(kind, tmp_path / "t.csv", HEADER + "".join(row(n, cell) for n, cell in enumerate(cells)) + row(9, "e"))
    assert column(batches, "service") == [*cells, "e"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("later", ['"quoted"', '"two\nlines"', '"a ""b"" c"'], ids=["quoted", "two lines", "doubled"])
def test_a_quote_that_is_never_closed_costs_its_own_row_and_is_counted(kind: str, later: str, tmp_path: Path) -> None:
    text = HEADER + row(0, "a") + row(1, '"open') + row(2, "b") + row(3, "c") + row(4, later) + row(5, "d")
    source, batches = read(kind, tmp_path / "t.csv", text)
    assert column(batches, "duration_s") == [0.0, 2.0, 3.0, 4.0, 5.0]
    assert column(batches, "service")[-2] == later[1:-1].replace('""', '"')
    assert source.rejected == {OPEN_QUOTE: 1}


def test_an_open_quote_in_a_log_that_grows_holds_nothing_up_for_long(tmp_path: Path) -> None:
    text = HEADER + row(0, '"open') + "".join(row(n % 60, "a") for n in range(100))
    _, batches = read("tail", tmp_path / "t.csv", text)
    assert sum(map(len, batches)) == 100


def test_text_of_several_lines_that_breaks_off_with_its_file_is_counted_and_gives_no_row(tmp_path: Path) -> None:
    source, batches = read("replay", tmp_path / "t.csv", HEADER + row(0, "a") + row(1, '"line one\nline, two\nline three'))
    assert column(batches, "duration_s") == [0.0]
    assert source.rejected == {OPEN_QUOTE: 3}


def test_rows_behind_an_open_quote_are_read_once_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + row(0, '"open') + "".join(row(n, "a") for n in range(1, 6)))
    first = build("replay", "network_flow", path=str(path)).read(2)
    assert first is not None
    again = build("replay", "network_flow", first.position, path=str(path)).read(10)
    assert again is not None
    assert [*column([first], "duration_s"), *column([again], "duration_s")] == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_header_of_several_lines_is_one(kind: str, tmp_path: Path) -> None:
    _, batches = read(kind, tmp_path / "t.csv", 'ts,duration_s,"note\nof, the driver"\n' + row(1, "a"))
    assert column(batches, "duration_s") == [1.0]


@pytest.mark.parametrize(
    ("line", "expected"),
    [('a,"b', True), ('a,"b"', False), ('a,b"', False), ('"a""', True), ('"a"""', False), ('a"b,"c', True), ('"a"b,"c"', False)],
)
def test_a_quote_opens_a_cell_only_at_its_beginning(line: str, expected: bool) -> None:
    assert leaves_open(line, ",") is expected
