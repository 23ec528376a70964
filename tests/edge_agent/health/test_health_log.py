"""The log is a convenience: a disk that is full, or a reader that is gone, must not end what the agent is there for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.spool.opening import SUSPECT_NAME, mark_suspect
from edge_agent.startup import TolerantStderr
from schemas.ids import StreamName
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker

STREAM = StreamName("vehicle_telemetry")


def test_lines_that_nobody_takes_are_counted_and_reported_later() -> None:
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 # a device
        log = TolerantStderr(full.fileno())
        log.write("a\n")
        log.write("b\n")
    assert log.lost == 2
    reader, writer = os.pipe()
    log._descriptor = writer
    log.write("c\n")
    assert os.read(reader, 1_000) == b"level=warning event=log_lines_lost lines=2\nc\n"
    os.close(reader)
    log.write("nobody reads\n")
    os.close(writer)
    assert log.lost == 1


@pytest.mark.broker
def test_an_agent_whose_log_lies_on_a_full_disk_delivers(broker: RunningBroker, tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("ts,speed_mps\n" + "".join(f"{n},{n}\n" for n in range(500)))
    config = tmp_path / "agent.toml"
    config.write_text(
        f'device = "dev-a"\nstate_dir = "state"\nlog_level = "debug"\n[broker]\nport = {broker.port}\n'
        f'[[source]]\nkind = "replay"\nstream = "{STREAM}"\noptions = {{ path = "{table}" }}\n'
    )
    broker.stop()  # so that there is something to say
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 # a device
        command = [sys.executable, "-m", "edge_agent", "-c", str(config), "--until-settled"]
        process = subprocess.Popen(command, stderr=full)
        for _ in range(400):
            if (tmp_path / "state/health.json").exists():
                break
            time.sleep(0.05)
        time.sleep(0.5)
        broker.start()
        with FakeCore(broker.host, broker.port) as core:
            assert process.wait(30) == 0
            assert sum(ranges.count for ranges in core.landed_seqs(STREAM).values()) == 500


def test_a_spool_whose_folder_is_gone_is_let_go_of_without_an_error(tmp_path: Path) -> None:
    mark_suspect(tmp_path / "gone")
    mark_suspect(tmp_path)
    assert (tmp_path / SUSPECT_NAME).exists()
