"""Real Zeek logs under rotation, packing and SIGKILL: each row once."""

import gzip
import io
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.spool.spool import Spool

CHILD = """
import sys, threading
from pathlib import Path
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.pump import SourcePump
from edge_agent.capture.transforms import build_transforms
from edge_agent.sources.registry import build_source
from catchment.runtime.clock import SystemClock
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import SourceConfig
from edge_agent.spool.spool import Spool
from schemas.contract import builtin_contract
contract, clock = builtin_contract("network_flow"), SystemClock()
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 28, linger_ms=5, clock=clock)
options = {"path": sys.argv[2], "settle_ms": 50}
config = SourceConfig(kind="zeek", stream="network_flow", options=options, max_samples=97)
transforms = build_transforms(contract, None, b"", ClockWatch(clock), None)
build = lambda position: build_source("zeek", options, contract, clock, position)
encoder = Encoder(contract, BatchLimits(1 << 16, 1 << 20), spool.put_object)
Path(sys.argv[1] + ".ready").touch()
SourcePump(config, build, encoder, spool, transforms, clock).run(threading.Event())
"""


@pytest.mark.slow
def test_real_flows_survive_rotation_packing_and_sigkill_exactly_once(tmp_path: Path, shared_data: Path) -> None:
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


def _child(spool_dir: Path, log: Path) -> subprocess.Popen[bytes]:
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
