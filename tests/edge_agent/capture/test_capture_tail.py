"""Followed tables and plain logs: each row once over rotation by name and by copy, whatever place the writer keeps."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.errors import ConfigError
from edge_agent.sources.api import Source
from edge_agent.sources.registry import GuardedSource, build_source, check_source
from schemas.contract import builtin_contract
from tests.fakes.log_writer import CutWriter
from tests.fakes.zeek_writer import HandClock

FLOWS, LINES = builtin_contract("network_flow"), builtin_contract("log_line")
_BUILT: list[GuardedSource] = []


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    yield
    while _BUILT:
        _BUILT.pop().close()


def tail(log: Path, position: bytes | None = None, **options: Any) -> GuardedSource:
    contract = LINES if options.get("format") == "plain" else FLOWS
    _BUILT.append(build_source("tail", {"path": str(log), "settle_ms": 0, **options}, contract, HandClock(), position))
    return _BUILT[-1]


def take(source: Source, tries: int = 8, max_samples: int = 1000) -> tuple[list[object], bytes | None]:
    found: list[object] = []
    position, quiet = None, 0
    while quiet < tries:
        batch = source.read(max_samples)
        quiet = quiet + 1 if batch is None else 0
        if batch is not None:
            found += batch.columns.get("uid") or batch.columns["message"]
            position = batch.position
    return found, position


@pytest.mark.parametrize("appends", [True, False], ids=["append", "own place"])
@pytest.mark.parametrize("form", ["csv", "json", "plain", "tsv"])
def test_each_row_comes_once_over_cuts_also_while_the_agent_is_stopped(tmp_path: Path, form: str, appends: bool) -> None:
    options: dict[str, Any] = {"format": "plain"} if form == "plain" else {}
    writer = CutWriter(tmp_path / "press.log", form, appends=appends)
    writer.rows(30, pad=40)
    source = tail(writer.log, **options)
    seen, position = take(source)
    for is_stopped in (False, True, False):
        writer.rows(3)
        writer.rotate()
        writer.pack("zst")
        writer.rows(30, pad=40)
        writer.rotate()
        writer.rows(2)
        source = tail(writer.log, position, **options) if is_stopped else source
        found, position = take(source)
        seen += found
    assert seen == writer.written
    assert source.rejected == {}


STEPS = st.lists(st.sampled_from(["rows", "rows", "rotate", "rename", "pack", "read", "read one", "kill"]), max_size=30)


@given(STEPS, st.sampled_from(["csv", "json", "plain"]), st.booleans(), st.sampled_from([0, 50]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_order_of_writing_rotating_packing_and_killing_gives_each_row_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], form: str, appends: bool, buffer: int
) -> None:
    folder = tmp_path_factory.mktemp("tail")
    writer = CutWriter(folder / "press.log", form, appends=appends, buffer=buffer)
    options: dict[str, Any] = {"format": "plain"} if form == "plain" else {}
    writer.rows(2)
    source, stored, seen = tail(writer.log, **options), list[Any](), list[Any]()
    position, kept = source.position, []
    for step in [*steps, "kill"]:
        if step == "rows":
            writer.rows(4, pad=30)
        elif step == "rotate":
            writer.rotate()
        elif step == "rename":
            writer.begin_anew()
            writer.rows(1)
        elif step == "pack":
            if form == "plain":  # only its inode tells a renamed plain log: the number must not be given again
                kept.append(os.open(writer.log, os.O_RDONLY))
                kept.extend(os.open(path, os.O_RDONLY) for path in folder.glob("press.log.*"))
            writer.pack()
        elif step == "kill":
            source.close()
            seen = list(stored)
            source = tail(writer.log, position, **options)
        else:
            found, at = take(source, tries=1, max_samples=1 if step == "read one" else 1000)
            seen += found
            if at is not None:
                stored, position = list(seen), at
    writer.flush()
    seen += take(source)[0]
    source.close()
    writer.close()
    for fd in kept:
        os.close(fd)
    assert seen == writer.written
    assert source.rejected == {}


def test_a_header_whose_columns_changed_is_a_header_and_rows_under_it_are_read_by_it(tmp_path: Path) -> None:
    log = tmp_path / "press.csv"
    log.write_text("ts,uid,proto\n1,Ca,tcp\n")
    source = tail(log)
    seen, position = take(source)
    log.rename(tmp_path / "press.csv.1")
    log.write_text("ts,proto,uid\n2,tcp,Cb\n")
    assert seen + take(source)[0] == ["Ca", "Cb"]
    assert seen + take(tail(log, position))[0] == ["Ca", "Cb"]


def test_a_row_of_csv_counts_once_its_quotes_are_closed(tmp_path: Path) -> None:
    log = tmp_path / "press.csv"
    log.write_text('ts;uid;proto\n1;Ca;"t')
    source = tail(log)
    assert take(source)[0] == []
    with log.open("a") as file:
        file.write('\n\nc;p"\n2;Cb;"u\n')
    seen, position = take(source)
    assert seen == ["Ca"]
    with log.open("a") as file:
        file.write('dp"\n')
    assert take(source)[0] == ["Cb"]
    assert take(tail(log, position))[0] == ["Cb"]


def test_plain_lines_become_messages_with_the_time_of_reading(tmp_path: Path) -> None:
    log = tmp_path / "app.log"
    log.write_text("first\r\n\nsecond\nthird without end")
    source = tail(log, format="plain")
    batch = source.read(10)
    assert batch is not None
    assert batch.columns["message"] == ["first", "second"]
    assert batch.agent_clock


def test_dated_names_of_logrotate_are_found_and_other_sensors_files_are_not(tmp_path: Path) -> None:
    log = tmp_path / "press.csv"
    log.write_text("ts,uid\n5,Ce\n")
    for number, name in enumerate(
        ("press.csv-20240501", "press.csv.2.gz", "press-20240502.csv", "press-2.csv", "press_b.csv"), 1
    ):
        text = f"ts,uid\n{number},C{'abcd?'[number - 1]}\n".encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        os.utime(tmp_path / name, (1_000_000 + number,) * 2)
    assert take(tail(log, start="rotated"))[0] == ["Ca", "Cb", "Cc", "Ce"]


def test_mistakes_in_the_options_are_reported_before_anything_starts() -> None:
    for options, word in (({"path": "x", "rotated": ["/y/*"]}, "relative"), ({"path": "x", "format": "xml"}, "xml")):
        with pytest.raises(ConfigError, match=word):
            check_source("tail", options, FLOWS)
