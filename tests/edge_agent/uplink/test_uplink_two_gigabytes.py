"""Two gigabytes over a link that breaks again and again, to the real bridge. `CATCHMENT_THOROUGH=1`; else a small one."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.bad_link import BadLink
from tests.fakes.device import Device, eventually
from tests.plant.broker import RunningBroker

MIB = 1024 * 1024
IS_THOROUGH = os.environ.get("CATCHMENT_THOROUGH") == "1"


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_very_large_payload_reaches_the_real_bridge_over_a_breaking_link(broker: RunningBroker, tmp_path: Path) -> None:
    size_bytes, cut_s = (2_048 * MIB, 3.0) if IS_THOROUGH else (24 * MIB, 0.3)
    source = tmp_path / "large.bin"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(size_bytes // MIB):
            piece = os.urandom(MIB)
            digest.update(piece)
            file.write(piece)
    (tmp_path / "core.toml").write_text(f'lake = "lake"\n[broker]\nport = {broker.port}\n')
    with (tmp_path / "bridge.log").open("wb") as log:
        command = [sys.executable, "-m", "pipelines", "bridge", "-c", str(tmp_path / "core.toml")]
        bridge = subprocess.Popen(command, stdout=log, stderr=log)
    arrived = tmp_path / "lake" / "objects" / digest.hexdigest()
    try:
        with BadLink(broker.port, cut_after_s=cut_s, bytes_per_s=40 * MIB) as link:
            agent = Device(tmp_path, link, max_bytes=4 << 30)
            try:
                agent.put_large(source)
                eventually(lambda: agent.forwarder.progress.sent_count >= 1, 1_200 if IS_THOROUGH else 120)
                parts_sent, cuts = agent.forwarder.parts_sent, link.cuts
            finally:
                agent.close()
    finally:
        bridge.send_signal(signal.SIGTERM)
        bridge.wait(60)
    assert arrived.stat().st_size == size_bytes
    with arrived.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
    overhead_bytes = link.bytes_up - size_bytes
    sys.stderr.write(f"{size_bytes} B, {cuts} breaks, {parts_sent} parts, {overhead_bytes} B more than the payload\n")
    assert cuts >= 2
    # A part is a MiB at the most: what crossed twice, with all heads and reports, is less than one for each break.
    assert overhead_bytes <= (cuts + 1) * MIB
