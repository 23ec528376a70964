"""Zeek logs: each row once, in order, whatever rotation, packing and SIGKILL do in between; on real logs."""

import gzip
import io
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.capture.follow_zeek import ZeekSource
from edge_agent.capture.registry import build_source, check_source
from edge_agent.clock import SystemClock
from edge_agent.errors import ConfigError, SourceError
from edge_agent.spool.spool import Spool
from schemas.builtin import builtin_contract

FLOWS = builtin_contract("network_flow")
HEADER = (
    "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n#open\t{n}\n"
    "#fields\tts\tuid\tid.orig_h\tproto\n#types\ttime\tstring\taddr\tenum\n"
)


class HandClock:
    def __init__(self) -> None:
        self.s = 0.0

    def now_ms(self) -> int:
        return int(time.time() * 1000)

    def monotonic_s(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        self.s += seconds


_BUILT: list = []


@pytest.fixture(autouse=True)
def _close_all():
    yield
    while _BUILT:
        _BUILT.pop().close()


def follow(log: Path, position: bytes | None = None, clock: HandClock | None = None, **options: object) -> ZeekSource:
    _BUILT.append(build_source("zeek", {"path": str(log), "settle_ms": 0, **options}, FLOWS, clock or HandClock(), position))
    return _BUILT[-1]


def uids(source, tries: int = 8, max_samples: int = 1000) -> tuple[list[str], bytes | None]:
    found: list[str] = []
    position = None
    quiet = 0
    while quiet < tries:
        batch = source.read(max_samples)
        quiet = quiet + 1 if batch is None else 0
        if batch is not None:
            found += batch.columns["uid"]
            position = batch.position
    return found, position


class Writer:
    """Writes a log as Zeek does: a header, rows, rotation by rename and a new file, packing."""

    def __init__(self, folder: Path, *, is_json: bool = False) -> None:
        self.log = folder / "conn.log"
        self.is_json = is_json
        self.n = 0
        self.rotations = 0
        self.old: list[Path] = []
        self.written: list[str] = []

    def rows(self, count: int) -> None:
        fresh = not self.log.exists()
        with self.log.open("a") as file:
            if fresh and not self.is_json:
                file.write(HEADER.format(n=self.rotations))
            for _ in range(count):
                uid = f"C{self.n}"
                line = f'{{"ts":{self.n},"uid":"{uid}","proto":"tcp"}}' if self.is_json else f"{self.n}.5\t{uid}\t10.0.0.1\ttcp"
                file.write(line + "\n")
                self.written.append(uid)
                self.n += 1

    def rotate(self) -> None:
        if self.log.exists():
            self.rotations += 1
            target = self.log.with_name(f"conn.2024-05-01-{self.rotations:02d}-00-00.log")
            self.log.rename(target)
            os.utime(target, (1_700_000_000 + self.rotations * 10,) * 2)
            self.old.append(target)

    def pack(self) -> None:
        while self.old:
            path = self.old.pop(0)
            packed = path.with_name(path.name + ".gz")
            stat = path.stat()
            with path.open("rb") as plain, gzip.open(packed, "wb") as out:
                shutil.copyfileobj(plain, out)
            os.utime(packed, (stat.st_mtime + 3, stat.st_mtime + 3))
            path.unlink()


@pytest.mark.parametrize("is_json", [False, True], ids=["tsv", "json"])
def test_a_log_is_followed_over_rotations_without_a_row_lost_or_twice(tmp_path, is_json):
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


def test_a_row_counts_only_once_its_line_is_whole_and_the_last_one_of_an_old_file_always(tmp_path):
    log = tmp_path / "conn.log"
    log.write_text(HEADER.format(n=1) + "1\tCa\t-\ttcp\n2\tC")
    source = follow(log)
    assert uids(source)[0] == ["Ca"]
    with log.open("a") as file:
        file.write("b\t-\ttcp\n3\tCc\t-\ttcp")
    assert uids(source)[0] == ["Cb"]
    log.rename(tmp_path / "conn.2024-01-01-00-00-00.log")
    assert uids(source)[0] == ["Cc"]


def test_what_rotated_while_the_agent_was_down_is_read_in_order(tmp_path):
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


def test_old_files_are_left_alone_unless_asked_for(tmp_path):
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


def test_packed_files_in_another_folder_are_found_by_pattern(tmp_path):
    (tmp_path / "current").mkdir()
    (tmp_path / "2024-05-01").mkdir()
    writer = Writer(tmp_path / "current")
    options = {"rotated": ["../*/conn.*.log.gz"]}
    writer.rows(4)
    seen, position = uids(follow(writer.log, **options))
    writer.rows(2)
    writer.rotate()
    writer.pack()
    packed = next((tmp_path / "current").glob("*.gz"))
    packed.rename(tmp_path / "2024-05-01" / "conn.00:00:00-01:00:00.log.gz")
    writer.rows(1)
    assert seen + uids(follow(writer.log, position, **options))[0] == writer.written


def test_a_log_that_is_copied_and_cut_goes_on_without_loss(tmp_path):
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


def test_a_log_that_is_gone_is_told_and_what_comes_is_read(tmp_path):
    writer = Writer(tmp_path)
    writer.rows(4)
    _, position = uids(follow(writer.log))
    writer.log.unlink()
    writer.rotations += 1
    writer.rows(2)
    source = follow(writer.log, position)
    assert uids(source)[0] == writer.written[-2:]
    assert list(source.rejected) == ["file: the log that was being read is gone; rows at its end may be missing"]


def test_rows_and_files_that_are_none_are_counted(tmp_path):
    log = tmp_path / "conn.log"
    log.write_text(HEADER.format(n=1) + "1\tCa\t-\ttcp\ntoo\tfew\nno time\tCb\t-\ttcp\n" + "x" * 300 + "\n2\tCc\t-\ttcp\n")
    source = follow(log, max_line_bytes=200)
    assert uids(source)[0] == ["Ca", "Cc"]
    assert sum(source.rejected.values()) == 3
    (tmp_path / "conn.1.log").write_text("a letter from home\n")
    (tmp_path / "conn.2.log.gz").write_bytes(gzip.compress(b"#separator \\x09\n" * 200)[:40])
    os.utime(tmp_path / "conn.2.log.gz", (1, 1))
    assert uids(follow(log, start="rotated", max_line_bytes=200))[0] == ["Ca", "Cc"]


def test_more_rotated_files_of_one_time_than_are_remembered_are_all_read(tmp_path):
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


def test_a_rotated_file_that_is_still_being_copied_is_read_to_its_real_end(tmp_path):
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


def test_a_file_that_is_no_zeek_log_fails_with_a_hint(tmp_path):
    (tmp_path / "conn.log").write_text("hello\n")
    with pytest.raises(SourceError, match="#separator"):
        uids(follow(tmp_path / "conn.log"))
    with pytest.raises(ConfigError, match="relative"):
        check_source("zeek", {"path": "/x/conn.log", "rotated": ["/y/*"]}, FLOWS)


ACTIONS = st.lists(st.sampled_from(["rows", "rows", "rotate", "pack", "read", "read one", "restart"]), max_size=30)


@given(ACTIONS, st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_order_of_writing_rotating_packing_and_restarting_gives_each_row_once(tmp_path_factory, actions, is_json):
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


CHILD = """
import sys, threading
from pathlib import Path
from edge_agent.capture.encode import Encoder, Limits
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.refine import build_refiner
from edge_agent.capture.registry import build_source
from edge_agent.clock import SystemClock
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import SourceConfig
from edge_agent.spool.spool import Spool
from schemas.builtin import builtin_contract
contract, clock = builtin_contract("network_flow"), SystemClock()
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 28, linger_ms=5, clock=clock)
options = {"path": sys.argv[2], "settle_ms": 50}
config = SourceConfig(kind="zeek", stream="network_flow", options=options, max_samples=97)
refine = build_refiner(contract, None, b"", ClockWatch(clock), None)
build = lambda position: build_source("zeek", options, contract, clock, position)
encoder = Encoder(contract, Limits(1 << 16, 1 << 20), spool.put_object)
Path(sys.argv[1] + ".ready").touch()
SourcePump(config, build, encoder, spool, refine, clock).run(threading.Event())
"""


@pytest.mark.slow
def test_real_flows_survive_rotation_packing_and_sigkill_exactly_once(tmp_path, shared_data):
    name = "network/ctu_zeek/008-zeek-mixed/conn.log.labeled.gz"
    lines = gzip.decompress((shared_data / name).read_bytes()).decode().splitlines(keepends=True)
    header, rows = [line for line in lines if line.startswith("#") and "#close" not in line], []
    rows = [line for line in lines if not line.startswith("#")][:2000]
    log, spool_dir = tmp_path / "conn.log", tmp_path / "spool"
    dice = random.Random(19)
    child = _child(spool_dir, log)
    _until_looked(spool_dir)  # what was rotated before the first look is old, and left alone
    kills = rotations = 0
    at = 0
    while at < len(rows):
        with log.open("a") as file:
            if file.tell() == 0:
                file.writelines(header)
            step = dice.randrange(20, 260)
            text = "".join(rows[at : at + step])
            cut = dice.randrange(len(text))  # within a line, most often
            file.write(text[:cut])
            file.flush()
            time.sleep(0.02)
            file.write(text[cut:])
            at += step
        if dice.random() < 0.5:
            rotations += 1
            old = tmp_path / f"conn.2024-05-01-{rotations:02d}-00-00.log"
            log.rename(old)
            if dice.random() < 0.5:
                subprocess.run(["gzip", str(old)], check=True)
        if dice.random() < 0.5:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            child = _child(spool_dir, log)
    _until_stored(spool_dir, len(rows))
    child.kill()
    child.wait()
    assert kills >= 5
    assert rotations >= 5
    assert sorted(_stored(spool_dir)) == sorted(line.split("\t")[1] for line in rows)


def _child(spool_dir: Path, log: Path) -> subprocess.Popen:
    ready = spool_dir.with_name(spool_dir.name + ".ready")
    ready.unlink(missing_ok=True)
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(spool_dir), str(log)], stdout=subprocess.DEVNULL)
    while not ready.exists():
        assert child.poll() is None
        time.sleep(0.01)
    return child


def _until_looked(spool_dir: Path) -> None:
    until = time.monotonic() + 60
    looked = 0
    db = sqlite3.connect(f"file:{spool_dir}/spool.db?mode=ro", uri=True)
    while not looked and time.monotonic() < until:
        time.sleep(0.05)
        (looked,) = db.execute("SELECT count(*) FROM position").fetchone()
    db.close()
    assert looked, "the source never looked at the log"


def _until_stored(spool_dir: Path, count: int) -> None:
    until = time.monotonic() + 120  # on a busy machine; what is missing then is told by the caller
    while time.monotonic() < until:
        with sqlite3.connect(f"file:{spool_dir}/spool.db?mode=ro", uri=True) as db:
            (stored,) = db.execute("SELECT coalesce(sum(count), 0) FROM envelope").fetchone()
        db.close()
        if stored >= count:
            time.sleep(0.3)  # a row too many would come now
            return
        time.sleep(0.1)


def _stored(spool_dir: Path) -> list[str]:
    spool = Spool(spool_dir, max_bytes=1 << 28, linger_ms=5, clock=SystemClock())
    found: list[str] = []
    while envelopes := spool.next_unsent(1 << 30):
        for envelope in envelopes:
            found += pa.ipc.open_stream(io.BytesIO(envelope.body)).read_all()["uid"].to_pylist()
    spool.close()
    return found
