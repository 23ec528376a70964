"""A watched folder: rights that change make no new file, a rewrite does, whatever is done with files afterwards."""

import os
from pathlib import Path

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.errors import ConfigError
from edge_agent.sources.registry import GuardedSource, build_source, check_source
from schemas.contract import builtin_contract
from tests.plant.present import present

FRAMES = builtin_contract("camera_frame")


def watch(folder: Path, position: bytes | None = None, done: str = "keep") -> GuardedSource:
    options = {"path": str(folder), "pattern": "*.jpg", "done": done, "settle_ms": 0, "poll_ms": 0}
    return build_source("directory", options, FRAMES, SystemClock(), position)


def names(source: GuardedSource, tries: int = 3) -> tuple[list[str], bytes | None]:
    found: list[str] = []
    position = None
    for _ in range(tries):
        batch = source.read(100)
        if batch is not None:
            found += map(str, batch.columns["file_name"])
            position = batch.position
    return found, position


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(name.encode() * 50)
    return tmp_path


def test_a_chmod_makes_no_new_file_while_the_agent_runs(folder: Path) -> None:
    source = watch(folder)
    assert names(source)[0] == ["a.jpg", "b.jpg"]
    (folder / "a.jpg").chmod(0o600)
    os.link(folder / "b.jpg", folder / "b.hard")
    assert names(source)[0] == []


def test_a_chmod_makes_no_new_file_while_the_agent_is_down(folder: Path) -> None:
    _, position = names(watch(folder))
    (folder / "a.jpg").chmod(0o600)
    (folder / "c.jpg").write_bytes(b"new")
    again, position = names(watch(folder, position))
    assert again == ["c.jpg"]
    assert names(watch(folder, position))[0] == []


def test_a_rewrite_is_a_new_file(folder: Path) -> None:
    source = watch(folder)
    names(source)
    (folder / "a.jpg").write_bytes(b"other content")
    assert names(source)[0] == ["a.jpg"]


@pytest.mark.parametrize("done", ["delete", "move"])
def test_a_file_whose_rights_change_before_it_is_durable_is_still_put_away(folder: Path, done: str) -> None:
    source = watch(folder, done=done)
    batch = None
    while batch is None:
        batch = source.read(100)
    (folder / "a.jpg").chmod(0o600)
    source.stored(batch)
    assert [path.name for path in folder.glob("*.jpg")] == []


def test_files_given_out_before_a_crash_are_put_away_by_their_fingerprint(folder: Path) -> None:
    _, position = names(watch(folder, done="delete"))
    (folder / "a.jpg").chmod(0o600)
    assert names(watch(folder, position, done="delete"))[0] == []
    assert list(folder.glob("*.jpg")) == []


def test_options_are_checked_without_opening_anything(tmp_path: Path) -> None:
    check_source("directory", {"path": str(tmp_path / "not there yet")}, FRAMES)
    for kind, options, word in (
        ("directory", {"path": "x", "setle_ms": 1}, "setle_ms"),
        ("directory", {}, "path"),
        ("exec", {"command": []}, "command"),
        ("replay", {"path": "x", "rename": {"a": "b"}}, "rename"),
        ("telepathy", {}, "telepathy"),
    ):
        with pytest.raises(ConfigError, match=word):
            check_source(kind, options, FRAMES)


@pytest.mark.parametrize("name", ["x" * 251 + ".jpg", "ü" * 125 + "a.jpg", os.fsdecode(b"\xe9" * 251 + b".jpg")])
@pytest.mark.parametrize("done", ["keep", "delete", "move"])
def test_a_name_as_long_as_names_may_be_is_captured_and_put_away_twice(tmp_path: Path, name: str, done: str) -> None:
    for content in (b"one", b"second"):
        (tmp_path / name).write_bytes(content)
        source = watch(tmp_path, done=done)
        batch = source.read(10)
        assert batch is not None
        assert batch.payloads == [content]
        assert len(str(batch.columns["file_name"][0])) <= present(present(FRAMES.column("file_name")).max_length)
        source.stored(batch)
        source.close()
        assert source.rejected == {}
    assert len(list(tmp_path.glob("done/*"))) == (2 if done == "move" else 0)


def test_without_a_pattern_only_files_that_the_contract_takes_are_captured(tmp_path: Path) -> None:
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(17) + b"\0\0\0\0IEND\xaeB`\x82"
    for name, content in (
        ("a.jpg", b"\xff\xd8\xff\xd9"),
        ("b.PNG", png),
        ("c.tif", b"II*\0 and so on and so on"),
        ("d.jpg", b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x01\0\0\0\0\0\0\0"),  # a TIFF by content
        ("e.jpg", b"a text that is no picture"),
        ("f.txt", b"text"),
    ):
        (tmp_path / name).write_bytes(content)
    options = {"path": str(tmp_path), "settle_ms": 0, "poll_ms": 0}
    source = build_source("directory", options, FRAMES, SystemClock(), None)
    assert names(source)[0] == ["a.jpg", "b.PNG"]
    assert source.rejected == {
        "file: image/tiff is nothing for this contract": 1,
        "file: no picture is nothing for this contract": 1,
    }
    slides = build_source("directory", options, builtin_contract("slide"), SystemClock(), None)
    assert "c.tif" not in names(slides)[0]  # it has no end yet
