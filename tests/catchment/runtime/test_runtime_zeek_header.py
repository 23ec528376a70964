"""The header of a Zeek log means one thing on a device and where a contract is drafted from the log."""

from pathlib import Path

import pytest

from catchment.runtime.zeek_header import ZeekHeader
from edge_agent.sources.api import Rejects
from edge_agent.sources.rows.tables import TablePosition, ZeekReader
from pipelines.contracts.draft_types import read_zeek

HEAD = "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n"
LABELLED = (
    HEAD + "#fields\tts\tservice\ttunnel_parents   label   detailed-label\n"
    "#types\ttime\tstring\tset[string]   string   string\n"
    "1.5\tdns\t(empty)   Malicious   C&C\n2.5\t-\t-   Benign   -\n"
)


def read_both(path: Path, text: str) -> tuple[dict[str, list[object]], dict[str, list[object]]]:
    """The columns as the agent reads them, and as the core drafts a contract from them."""
    path.write_text(text)
    reader = ZeekReader(path, TablePosition(), 1 << 20, Rejects("zeek"))
    chunk = reader.read(100)
    assert chunk is not None
    frame = read_zeek(path, path.read_bytes(), 100)
    return {name: list(cells) for name, cells in chunk.columns.items()}, frame.to_dict(as_series=False)


def test_columns_that_blanks_separate_are_columns_on_both_sides(tmp_path: Path) -> None:
    for columns in read_both(tmp_path / "conn.log", LABELLED):
        assert columns["label"] == ["Malicious", "Benign"]
        assert columns["detailed-label"] == ["C&C", None]
        assert columns["tunnel_parents"] == [[], None]


def test_escaped_bytes_are_text_on_both_sides(tmp_path: Path) -> None:
    text = HEAD + "#fields\tname\tanswers\n#types\tstring\tset[string]\nd\\xc3\\xa9\ta\\x2cb,-\n\\xff\\xzz\t(empty)\n"
    for columns in read_both(tmp_path / "dns.log", text):
        assert columns == {"name": ["dé", "\ufffd\\xzz"], "answers": [["a,b", None], []]}


def test_an_empty_cell_is_empty_text_on_both_sides(tmp_path: Path) -> None:
    text = HEAD + "#fields\tname\n#types\tstring\n(empty)\n-\nx\n"
    for columns in read_both(tmp_path / "dns.log", text):
        assert columns == {"name": ["", None, "x"]}


def test_another_separator_is_read_on_both_sides(tmp_path: Path) -> None:
    text = "#separator \\x7c\n#set_separator|;\n#fields|name|items\n#types|string|vector[string]\na b|c;d\n"
    for columns in read_both(tmp_path / "dns.log", text):
        assert columns == {"name": ["a b"], "items": [["c", "d"]]}


def test_a_row_with_a_cell_too_many_is_left_out_on_both_sides(tmp_path: Path) -> None:
    for columns in read_both(tmp_path / "dns.log", HEAD + "#fields\ta\tb\n#types\tstring\tstring\n1\t2\t3\n1\t2\n1\n"):
        assert columns == {"a": ["1"], "b": ["2"]}


@pytest.mark.parametrize("line", ["#path\tconn", "#open\t2022", "#close\t2022", "#"])
def test_lines_that_say_nothing_about_rows_are_no_part_of_the_header(line: str) -> None:
    header = ZeekHeader()
    header.take("#fields\ta\n")
    header.take(f"{line}\n")
    assert header.text == "#fields\ta\n"
    assert header.fields == ["a"]


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_blank_in_a_name_separates_nothing_where_there_are_as_many_types(is_reversed: bool) -> None:
    header = ZeekHeader()
    head = ["#fields\tts\tServer Name\tGröße (mm)", "#types\ttime\tstring\tdouble"]
    for line in reversed(head) if is_reversed else head:
        header.take(line)
    assert (header.fields, header.types) == (["ts", "Server Name", "Größe (mm)"], ["time", "string", "double"])
    assert header.cells("1.5\ta b\t2 5") == ["1.5", "a b", "2 5"]
