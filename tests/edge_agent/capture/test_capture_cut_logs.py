"""Logs that are copied and cut (logrotate's copytruncate): each row once, and what is lost is counted."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.sources.logs import follow as follow_log
from tests.fakes.log_writer import HEADER, CutWriter
from tests.fakes.zeek_writer import close_all, follow, uids


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    close_all()


@pytest.mark.parametrize("appends", [True, False], ids=["append", "own place"])
@pytest.mark.parametrize("form", ["tsv", "json"])
def test_a_cut_log_is_followed_over_rotations_without_a_row_lost_or_twice(tmp_path: Path, form: str, appends: bool) -> None:
    writer = CutWriter(tmp_path / "conn.log", form, appends=appends)
    writer.rows(5)
    source = follow(writer.log)
    seen, _ = uids(source)
    for pause in (False, True, True, False):
        writer.rows(3)
        writer.rotate()
        writer.rows(4)
        if pause:
            seen += uids(source)[0]
        writer.rotate()
        writer.rows(4)
        seen += uids(source)[0]
    assert seen == writer.written
    assert source.rejected == {}


@pytest.mark.parametrize("packing", ["", "gz", "zst", "xz"])
@pytest.mark.parametrize("appends", [True, False], ids=["append", "own place"])
@pytest.mark.parametrize("form", ["tsv", "json"])
def test_what_was_cut_several_times_while_the_agent_was_stopped_is_read_once(
    tmp_path: Path, form: str, appends: bool, packing: str
) -> None:
    writer = CutWriter(tmp_path / "conn.log", form, appends=appends)
    writer.rows(50)
    seen, position = uids(follow(writer.log))
    writer.rows(3)
    for _ in range(4):
        writer.rotate()
        if packing:
            writer.pack(packing)
        writer.rows(60)
    first = follow(writer.log, position)
    more, position = uids(first)
    assert seen + more == writer.written
    assert first.rejected == {}
    assert uids(follow(writer.log, position))[0] == []


@pytest.mark.parametrize("appends", [True, False], ids=["append", "own place"])
def test_a_log_without_header_that_is_met_for_the_first_time_finds_it_in_a_rotated_file(tmp_path: Path, appends: bool) -> None:
    writer = CutWriter(tmp_path / "conn.log", appends=appends)
    writer.rows(5)
    writer.rotate()
    writer.rows(5)
    writer.rotate()
    writer.rows(5)
    assert uids(follow(writer.log))[0] == writer.written[10:]
    assert uids(follow(writer.log, start="rotated"))[0] == writer.written


@pytest.mark.parametrize("form", ["tsv", "json"])
@pytest.mark.parametrize("buffer", [7, 64, 4096])
def test_a_row_that_a_buffering_writer_tore_over_a_cut_is_put_together(tmp_path: Path, form: str, buffer: int) -> None:
    writer = CutWriter(tmp_path / "conn.log", form, buffer=buffer)
    writer.rows(200)
    source = follow(writer.log)
    seen, position = uids(source)
    for is_stopped in (False, True, False, True):
        writer.rotate()
        writer.rows(200)
        if is_stopped:
            source.close()
            source = follow(writer.log, position)
        found, at = uids(source)
        seen, position = seen + found, at or position
    writer.flush()
    seen += uids(source)[0]
    assert seen == writer.written
    assert source.rejected == {}


@pytest.mark.parametrize("is_stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("form", ["tsv", "json"])
def test_rows_of_a_log_that_was_empty_and_is_empty_again_after_its_rotation_are_read(
    tmp_path: Path, form: str, is_stopped: bool
) -> None:
    writer = CutWriter(tmp_path / "conn.log", form)
    writer.rows(2)
    source = follow(writer.log)
    seen, position = uids(source)
    writer.rotate()
    seen += uids(source)[0]  # from now on the empty log is open
    if is_stopped:
        source = follow(writer.log, position)
    writer.rows(3)
    writer.rotate()
    assert seen + uids(source)[0] == writer.written


def test_rows_are_read_that_were_rotated_away_from_behind_a_header_which_stands_there_again(tmp_path: Path) -> None:
    writer = CutWriter(tmp_path / "conn.log")
    source = follow(writer.log)
    assert uids(source)[0] == []  # the header was read, and no row
    for _ in range(2):
        writer.rows(3)
        writer.rotate()
        with writer.log.open("ab") as log:
            log.write(HEADER.encode())
        assert uids(source)[0] == writer.written[-3:]


def test_rows_that_were_read_before_the_copy_ended_short_are_not_read_again(tmp_path: Path) -> None:
    writer = CutWriter(tmp_path / "conn.log")
    writer.rows(9)
    size = writer.log.stat().st_size
    source = follow(writer.log)
    writer.rows(3)  # after the copy, before the cut: read from the log itself
    seen, position = uids(source)
    writer.copy(until=size)
    writer.cut()
    writer.rows(2)
    again = follow(writer.log, position)
    for one in (source, again):
        assert seen + uids(one)[0] == writer.written
        assert one.rejected == {}


def test_rows_lost_between_copy_and_cut_are_counted_where_the_writer_keeps_its_place(tmp_path: Path) -> None:
    writer = CutWriter(tmp_path / "conn.log", appends=False)
    writer.rows(9)
    source = follow(writer.log)
    seen, _ = uids(source)
    size = writer.log.stat().st_size
    writer.rows(3)
    writer.copy(until=size)
    writer.cut()
    writer.rows(2)
    assert seen + uids(source)[0] == writer.written[:9] + writer.written[12:]
    assert source.rejected == {follow_log.BETWEEN: 1}


def test_a_log_that_is_cut_without_a_copy_is_counted_and_goes_on(tmp_path: Path) -> None:
    writer = CutWriter(tmp_path / "conn.log")
    writer.rows(9)
    source = follow(writer.log)
    seen, position = uids(source)
    writer.cut()
    writer.rows(2)
    assert seen + uids(source)[0] == writer.written
    assert source.rejected == {follow_log.CUT: 1}
    again = follow(writer.log, position)
    assert uids(again)[0] == writer.written[9:]  # the header is known from before
    assert again.rejected == {follow_log.GONE: 1}


def test_a_torn_row_whose_other_half_is_lost_is_counted_and_the_next_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    log.write_text(HEADER + "1.5\tCa\t10.0.0.1\t-\ttcp\n2.5\tC")
    source = follow(log)
    seen, _ = uids(source)
    log.with_name("conn.log.1").write_bytes(log.read_bytes())
    os.utime(log.with_name("conn.log.1"), (1, 1))
    os.truncate(log, 0)
    with log.open("a") as file:
        file.write("3.5\tCc\t10.0.0.1\t-\ttcp\n")
    assert seen + uids(source)[0] == ["Ca", "Cc"]
    assert source.rejected == {follow_log.TORN: 1}


def test_a_copy_that_is_there_before_the_cut_is_not_read_beside_the_log(tmp_path: Path) -> None:
    writer = CutWriter(tmp_path / "conn.log")
    writer.rows(9)
    writer.copy()
    source = follow(writer.log, start="rotated")
    seen, _ = uids(source)
    writer.rows(2)
    seen += uids(source)[0]
    assert seen == writer.written
    writer.cut()
    writer.rows(2)
    assert seen + uids(source)[0] == writer.written  # the copy ended before what was read of the log


def test_a_log_that_is_cut_and_grows_past_its_old_size_between_two_looks_is_noticed(tmp_path: Path) -> None:
    for form in ("tsv", "json"):
        folder = tmp_path / form
        folder.mkdir()
        writer = CutWriter(folder / "conn.log", form)
        writer.rows(4)
        source = follow(writer.log)
        seen, position = uids(source)
        writer.rows(1)
        writer.rotate()
        writer.rows(400)
        assert seen + uids(source)[0] == writer.written
        assert seen + uids(follow(writer.log, position))[0] == writer.written
        assert source.rejected == {}


def test_rows_that_came_and_were_rotated_away_while_the_log_was_open_and_empty_come_first(tmp_path: Path) -> None:
    writer = CutWriter(tmp_path / "conn.log")
    writer.rows(2)
    source = follow(writer.log)
    writer.rotate()
    seen, _ = uids(source)  # the log is open, and holds nothing
    writer.rows(2)
    writer.rotate()
    writer.rows(2)
    assert seen + uids(source)[0] == writer.written


def test_nul_bytes_that_a_power_cut_left_are_no_rows_and_a_row_torn_by_them_is_counted(tmp_path: Path) -> None:
    log = tmp_path / "conn.log"
    log.write_bytes(HEADER.encode() + b"1.5\tCa\t-\t-\ttcp\n2.5\tCb" + bytes(3000) + b"3.5\tCc\t-\t-\ttcp\n")
    source = follow(log)
    assert uids(source)[0] == ["Ca", "Cc"]
    with log.open("ab") as file:
        file.write(bytes(700_000))
    assert uids(source)[0] == []
    with log.open("r+b") as file:  # space that was allocated before, and is filled in
        file.seek(-700_000, os.SEEK_END)
        file.write(b"4.5\tCd\t-\t-\ttcp\n")
    assert uids(source)[0] == ["Cd"]
    assert source.rejected == {"row: torn by NUL bytes": 1}


def test_a_wide_header_does_not_make_two_files_one(tmp_path: Path) -> None:
    wide = HEADER.replace("proto", "proto" + "".join(f"\tfield_{n:04}" for n in range(200)))
    wide = wide.replace("enum", "enum" + "\tstring" * 200)
    rest = "\t-" * 200

    def file(name: str, first: int) -> None:
        (tmp_path / name).write_text(wide + "".join(f"{n}.5\tC{n}\t-\t-\ttcp{rest}\n" for n in range(first, first + 3)))
        os.utime(tmp_path / name, (1_700_000_000 + first,) * 2)

    file("conn.log", 1)
    seen, position = uids(follow(tmp_path / "conn.log"))
    for name, first in (("conn.log.3", 1), ("conn.log.2", 4), ("conn.log.1", 7), ("conn.log", 10)):
        file(name, first)
    more, position = uids(follow(tmp_path / "conn.log", position))
    assert seen + more == [f"C{n}" for n in range(1, 13)]
    assert uids(follow(tmp_path / "conn.log", position))[0] == []


STEPS = st.lists(
    st.sampled_from(["rows", "rows", "many", "rotate", "copy, look, cut", "pack", "read", "read one", "restart", "kill"]),
    max_size=30,
)


@given(STEPS, st.sampled_from(["tsv", "json"]), st.booleans(), st.sampled_from([0, 50]), st.sampled_from(["gz", "zst", "xz"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_order_of_writing_cutting_packing_and_killing_gives_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], form: str, appends: bool, buffer: int, packing: str
) -> None:
    writer = CutWriter(tmp_path_factory.mktemp("cut") / "conn.log", form, appends=appends, buffer=buffer)
    writer.rows(2)
    source, stored, seen = follow(writer.log), list[Any](), list[Any]()
    position = source.position
    for step in [*steps, "kill"]:
        if step in ("rows", "many"):
            writer.rows(3 if step == "rows" else 40, pad=200 if step == "many" else 0)
        elif step == "rotate":
            writer.rotate()
        elif step == "copy, look, cut":
            writer.copy()
            found, at = uids(source, tries=1)
            seen, position = seen + found, at or position
            stored = list(seen)
            writer.cut()
        elif step == "pack":
            writer.pack(packing)
        elif step in ("restart", "kill"):
            source.close()
            seen = list(stored)
            source = follow(writer.log, position)
        else:
            found, at = uids(source, tries=1, max_samples=1 if step == "read one" else 1000)
            seen += found
            if at is not None:
                stored, position = list(seen), at
    writer.flush()
    seen += uids(source)[0]
    source.close()
    writer.close()
    assert seen == writer.written
    assert source.rejected == {}


def test_the_position_of_an_earlier_agent_is_taken_over(tmp_path: Path) -> None:
    import zlib

    writer = CutWriter(tmp_path / "conn.log")
    writer.rows(40)
    text = writer.log.read_bytes()
    at = text.index(b"20.5\t")
    old = b'{"head":[1024,%d],"offset":%d,"header_offset":0,"done":[[[5,7],9]],"since_ns":3}' % (zlib.crc32(text[:1024]), at)
    assert uids(follow(writer.log, old))[0] == writer.written[20:]
    writer.rotate()
    writer.rows(3)
    assert uids(follow(writer.log, old))[0] == writer.written[20:]
