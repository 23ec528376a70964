"""Zeek logs: each row once, in order, whatever rotation, packing and SIGKILL do in between; on real logs."""

import gzip
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.registry import check_source
from tests.fakes.zeek_writer import FLOWS, HEADER, Writer, close_all, follow, uids


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


@pytest.mark.parametrize("is_json", [False, True], ids=["tsv", "json"])
def test_a_log_is_followed_over_rotations_without_a_row_lost_or_twice(tmp_path: Path, is_json: bool) -> None:
    writer = Writer(tmp_path, is_json=is_json)
    writer.rows(3)
    source = follow(writer.log)
    seen, _ = uids(source)
    for _ in range(4):
        writer.rows(5)
        writer.rotate()
        writer.rows(2)
        seen += uids(source)[0]
        writer.pack()
        seen += uids(source)[0]
    assert seen == writer.written
    assert source.rejected == {}


def test_a_row_counts_only_once_its_line_is_whole_and_the_last_one_of_an_old_file_always(tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    log.write_text(HEADER.format(n=1) + "1\tCa\t-\ttcp\n2\tC")
    source = follow(log)
    assert uids(source)[0] == ["Ca"]
    with log.open("a") as file:
        file.write("b\t-\ttcp\n3\tCc\t-\ttcp")
    assert uids(source)[0] == ["Cb"]
    log.rename(tmp_path / "conn.2024-01-01-00-00-00.log")
    assert uids(source)[0] == ["Cc"]


def test_what_rotated_while_the_agent_was_down_is_read_in_order(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.rows(4)
    seen, position = uids(follow(writer.log))
    writer.rows(3)
    for _ in range(3):
        writer.rotate()
        writer.rows(3)
    writer.pack()
    more, position = uids(follow(writer.log, position))
    assert seen + more == writer.written
    assert uids(follow(writer.log, position))[0] == []


def test_old_files_are_left_alone_by_default(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for _ in range(3):
        writer.rows(2)
        writer.rotate()
    writer.pack()
    writer.rows(1)
    assert uids(follow(writer.log))[0] == writer.written[-1:]
    assert uids(follow(writer.log, start="rotated"))[0] == writer.written
    end = follow(writer.log, start="end")
    writer.rows(2)
    assert uids(end)[0] == writer.written[-2:]


def test_packed_files_in_another_folder_are_found_by_pattern(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    (tmp_path / "2024-05-01").mkdir()
    writer = Writer(tmp_path / "current")
    options: dict[str, Any] = {"rotated": ["../*/conn.*.log.gz"]}
    writer.rows(4)
    seen, position = uids(follow(writer.log, **options))
    writer.rows(2)
    writer.rotate()
    writer.pack()
    packed = next((tmp_path / "current").glob("*.gz"))
    packed.rename(tmp_path / "2024-05-01" / "conn.00:00:00-01:00:00.log.gz")
    writer.rows(1)
    assert seen + uids(follow(writer.log, position, **options))[0] == writer.written


def test_a_log_that_is_copied_and_cut_goes_on_without_loss(tmp_path: Path) -> None:
    writer = Writer(tmp_path, is_json=True)
    writer.rows(6)
    source = follow(writer.log)
    seen, _ = uids(source)
    writer.rows(3)
    shutil.copy(writer.log, tmp_path / "conn.log.1")
    with writer.log.open("w"):
        pass
    seen += uids(source)[0]
    writer.rows(1)
    seen += uids(source)[0]
    assert seen == writer.written


def test_a_log_that_is_gone_is_reported_and_what_comes_is_read(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.rows(4)
    _, position = uids(follow(writer.log))
    writer.log.unlink()
    writer.rotations += 1
    writer.rows(2)
    source = follow(writer.log, position)
    assert uids(source)[0] == writer.written[-2:]
    assert list(source.rejected) == ["file: the log that was being read is gone; rows at its end may be missing"]


def test_rows_and_files_that_are_none_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    log.write_text(HEADER.format(n=1) + "1\tCa\t-\ttcp\ntoo\tfew\nno time\tCb\t-\ttcp\n" + "x" * 300 + "\n2\tCc\t-\ttcp\n")
    source = follow(log, max_line_bytes=200)
    assert uids(source)[0] == ["Ca", "Cc"]
    assert sum(source.rejected.values()) == 3
    (tmp_path / "conn.1.log").write_text("a letter from home\n")
    (tmp_path / "conn.2.log.gz").write_bytes(gzip.compress(b"#separator \\x09\n" * 200)[:40])
    os.utime(tmp_path / "conn.2.log.gz", (1, 1))
    assert uids(follow(log, start="rotated", max_line_bytes=200))[0] == ["Ca", "Cc"]


def test_more_rotated_files_of_one_time_than_are_remembered_are_all_read(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for _ in range(40):
        writer.rows(2)
        writer.rotate()
    for path in writer.old:  # as an unpacked archive or an image layer leaves them
        os.utime(path, (1_700_000_000, 1_700_000_000))
    writer.rows(1)
    seen, position = uids(follow(writer.log, start="rotated"))
    assert seen == writer.written
    assert uids(follow(writer.log, position))[0] == []


def test_a_rotated_file_that_is_still_being_copied_is_read_to_its_real_end(tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    copy = tmp_path / "conn.2024-01-01-00-00-00.log"
    copy.write_text(HEADER.format(n=1) + "1\tCa\t-\ttcp\n2\tC")
    log.write_text(HEADER.format(n=2) + "4\tCd\t-\ttcp\n")
    source = follow(log, start="rotated", settle_ms=600_000)
    assert uids(source)[0] == ["Ca"]
    with copy.open("a") as file:
        file.write("b\t-\ttcp\n3\tCc\t-\ttcp\n")
    assert uids(source)[0] == ["Cb", "Cc"]
    os.utime(copy, (1, 1))  # left alone for long
    assert uids(source)[0] == ["Cd"]
    assert source.rejected == {}


def test_a_file_that_is_no_zeek_log_fails_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "conn.log").write_text("hello\n")
    with pytest.raises(SourceError, match="#separator"):
        uids(follow(tmp_path / "conn.log"))
    with pytest.raises(ConfigError, match="relative"):
        check_source("zeek", {"path": "/x/conn.log", "rotated": ["/y/*"]}, FLOWS)


ACTIONS = st.lists(st.sampled_from(["rows", "rows", "rotate", "pack", "read", "read one", "restart"]), max_size=30)


@given(ACTIONS, st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_order_of_writing_rotating_packing_and_restarting_gives_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, actions: list[str], is_json: bool
) -> None:
    writer = Writer(tmp_path_factory.mktemp("zeek"), is_json=is_json)
    writer.rows(1)
    source, seen = follow(writer.log), []
    position = source.position
    for action in [*actions, "restart"]:
        if action == "rows":
            writer.rows(3)
        elif action == "rotate":
            writer.rotate()
        elif action == "pack":
            writer.pack()
        elif action == "restart":
            source.close()
            source = follow(writer.log, position)
        else:
            found, at = uids(source, tries=1, max_samples=1 if action == "read one" else 1000)
            seen += found
            position = at or position
    seen += uids(source)[0]
    source.close()
    assert seen == writer.written
