"""Configuration files of agent and core: every error at once, with its line and a hint."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from catchment.runtime.toml_config import (
    MAX_CONFIG_BYTES,
    TomlSyntaxError,
    convert_toml,
    line_of,
    parse_path,
    path_text,
    read_toml,
)


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    size: int
    name: str = ""

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size {self.size} must be 0 or more")
        if self.name == "bad":
            raise ValueError("name bad is taken")


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    port: int = 1
    host: str = "here"
    inner: Inner | None = None

    def __post_init__(self) -> None:
        if self.host == "there" and self.inner is None:
            raise ValueError("host there: add [table.inner]")


class Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: str
    table: Table = Table()
    item: tuple[Inner, ...] = ()
    words: tuple[str, ...] = ()
    free: dict[str, object] = {}


def convert(text: str, **more: Any) -> Any:
    import tomllib

    found = convert_toml(text, tomllib.loads(text), Whole, **more)
    return found, [(fault.line, fault.message) for fault in found.faults]


def test_a_right_document_becomes_its_structs() -> None:
    found, faults = convert('device = "d"\n[table.inner]\nsize = 3\n[[item]]\nsize = 4\n')
    assert faults == []
    assert found.value == Whole("d", Table(inner=Inner(3)), (Inner(4),))


def test_all_errors_are_found_at_once_each_on_its_line() -> None:
    text = (
        'device = 5\ntabel = 1\n[table]\nport = "x"\nhots = "h"\n[[item]]\nsize = -1\n[[item]]\nsize = 1\n[[item]]\nname = "a"\n'
    )
    found, faults = convert(text, stand_ins={"device": "unnamed"})
    assert faults == [
        (1, "device: Expected `str`, got `int`; this must be text: put it in quotes"),
        (2, "top level: Object contains unknown field `tabel`; did you mean table?"),
        (4, "table.port: Expected `int`, got `str`; this must be a whole number without quotes"),
        (5, "table: Object contains unknown field `hots`; did you mean host?"),
        (7, "item[0]: size -1 must be 0 or more"),
        (10, "item[2]: Object missing required field `size`"),
    ]
    assert found.value == Whole("unnamed", item=(Inner(1),))
    assert found.kept == {("item",): (1,)}


def test_a_wrong_key_leaves_the_rest_of_its_table() -> None:
    found, faults = convert('device = "d"\n[table.inner]\nsize = 2\nname = "bad"\n')
    assert faults == [(4, "table.inner: name bad is taken")]
    assert found.value == Whole("d", Table(inner=Inner(2)))


def test_what_is_missing_because_it_is_wrong_is_reported_once() -> None:
    _, faults = convert('device = "d"\n[table]\nhost = "there"\n[table.inner]\nname = "no size"\n')
    assert faults == [(4, "table.inner: Object missing required field `size`")]


def test_an_error_within_a_list_is_on_the_line_of_its_key() -> None:
    _, faults = convert('device = "d"\nwords = ["a", 2]\n')
    assert faults == [(2, "words[1]: Expected `str`, got `int`; this must be text: put it in quotes")]


def test_an_unknown_key_like_no_other_names_those_that_are_known() -> None:
    _, faults = convert('device = "d"\nzzz = 1\n')
    assert faults == [
        (2, "top level: Object contains unknown field `zzz`; known here: device, table, item, words, free"),
    ]


def test_a_document_without_what_it_needs_has_no_value() -> None:
    found, faults = convert("port = 1\n")
    assert found.value is None
    assert len(faults) == 2


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        (b"a = 1\nb = True\n", 2, "lower case"),
        (b"a = 1\nb = yes it is\n", 2, "quotes"),
        (b"a = 1\na = 2\n", 2, "once"),
        (b"a = 1\nb\n", 2, "key = value"),
        (b'\n\na = "\xff"\n', 3, "UTF-8"),
        (b"#" * (MAX_CONFIG_BYTES + 1), None, "smaller"),
    ],
)
def test_a_file_that_is_not_toml_says_where_and_why(tmp_path: Path, body: bytes, line: int | None, words: str) -> None:
    (tmp_path / "a.toml").write_bytes(body)
    with pytest.raises(TomlSyntaxError) as caught:
        read_toml(tmp_path / "a.toml")
    assert caught.value.fault.line == line
    assert words in caught.value.fault.message


def test_a_fault_is_written_as_compilers_write_it() -> None:
    (fault,) = convert('device = "d"\nzzz = 1\n')[0].faults
    assert fault.located(Path("a.toml")).startswith("a.toml:2: top level: ")


def test_a_key_is_found_in_its_own_table() -> None:
    assert parse_path("source[1].options.path") == ("source", 1, "options", "path")
    assert path_text(("source", 1, "options", "path")) == "source[1].options.path"
    text = 'a = 1\n[b]\na = 2\n[[s]]\na = 3\n[[s]]\n[s.o]\na = 4\n[c]\n"a" = 5\nd.a = 6\n'
    for path, line in (
        (("a",), 1), (("b", "a"), 3), (("s", 0, "a"), 5), (("s", 1, "o", "a"), 8), (("c", "a"), 10), (("c", "d", "a"), 11),
        (("s", 1, "zz"), 6), (("zz",), None),
    ):  # fmt: skip
        assert line_of(text, path) == line
