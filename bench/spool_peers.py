"""The spool next to what practitioners use, a local Mosquitto bridge with persistence, and next to a plain write + fdatasync.

    python bench/spool_peers.py [--smoke] [--folder DIR]

The same messages into each, with nobody to deliver them to: how fast are they taken, how much is written to flash for a byte
captured (what the kernel counts for the process, `write_bytes`), how much memory does the backlog take? A message counts
as taken by the spool when it is durable, by Mosquitto when it is acknowledged, which is up to a second before it is saved.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

GIB = 1024**3
# What one message is: a sample of 200 bytes, a hundred of them, a picture.
LOADS = {"1 sample": (200, 1, 40_000), "100 samples": (20_000, 100, 10_000), "200 kB frame": (200_000, 1, 1_000)}
_WINDOW = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small: does it run?")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: the working folder")
    parser.add_argument("--child", nargs=4, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        what, size, messages, folder = given.child
        print(json.dumps(CHILDREN[what](Path(folder), int(size), int(messages))))
        return
    from rich.console import Console  # noqa: PLC0415 # each process carries only what it measures
    from rich.table import Table  # noqa: PLC0415 # each process carries only what it measures

    table = Table(title="durable capture without a broker to deliver to")
    for name in ("message", "into", "samples/s", "MB/s", "of plain", "written per byte", "RSS empty", "RSS full"):
        table.add_column(name, justify="left" if name in ("message", "into") else "right")
    with tempfile.TemporaryDirectory(dir=given.folder or Path.cwd(), prefix="bench-peers-") as name:
        for load, (size, samples, messages) in LOADS.items():
            many = max(50, messages // 100) if given.smoke else messages
            _compare(table, Path(name), load, (size, samples, many))
    Console(width=140).print(table)


def _compare(table: "Table", folder: Path, load: str, shape: tuple[int, int, int]) -> None:
    size, samples, messages = shape
    plain_s = 0.0
    for into in ("plain write + fdatasync", "spool", "mosquitto bridge"):
        place = folder / f"{load}-{into}".replace(" ", "")
        place.mkdir()
        command = [sys.executable, __file__, "--child", into, str(size), str(messages), str(place)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        shutil.rmtree(place)
        plain_s = plain_s or found["seconds"]
        captured = size * messages
        table.add_row(
            load, into, f"{samples * messages / found['seconds']:,.0f}", f"{captured / found['seconds'] / 1e6:,.1f}",
            f"{plain_s / found['seconds']:.2f}", f"{found['written_bytes'] / captured:.2f}",
            *(f"{found[name]:.0f} MB" if name in found else "" for name in ("empty_mb", "full_mb")),
        )  # fmt: skip
    table.add_section()


def _plain(folder: Path, size: int, messages: int) -> dict[str, Any]:
    """One sync for each 1.6 MB or 1,000 messages: about what a group commit of the spool covers."""
    bodies, together = [os.urandom(size) for _ in range(16)], min(1_000, max(1, 1_600_000 // size))
    descriptor, before, began = os.open(folder / "plain", os.O_WRONLY | os.O_CREAT), _written(os.getpid()), time.perf_counter()
    for n in range(messages):
        os.write(descriptor, bodies[n % 16])
        if n % together == together - 1:
            os.fdatasync(descriptor)
    os.fdatasync(descriptor)
    return {"seconds": time.perf_counter() - began, "written_bytes": _written(os.getpid()) - before}


def _spool(folder: Path, size: int, messages: int) -> dict[str, Any]:
    from catchment.runtime.clock import SystemClock  # noqa: PLC0415 # each process carries only what it measures
    from edge_agent.spool.database import SMALL_PAGE_BYTES  # noqa: PLC0415 # each process carries only what it measures
    from edge_agent.spool.records import Append, NewEnvelope  # noqa: PLC0415 # each process carries only what it measures
    from edge_agent.spool.spool import Spool  # noqa: PLC0415 # each process carries only what it measures
    from schemas.ids import StreamName  # noqa: PLC0415 # each process carries only what it measures

    bodies = [os.urandom(size) for _ in range(16)]
    spool = Spool(folder / "s", max_bytes=16 * GIB, linger_ms=20, clock=SystemClock(), page_bytes=SMALL_PAGE_BYTES)
    empty_mb, before, began = _rss_mb(os.getpid()), _written(os.getpid()), time.perf_counter()
    futures = []
    for n in range(messages):
        futures.append(spool.append(Append(StreamName("bench"), (NewEnvelope(1, bodies[n % 16], "1.0.0"),))))
        if len(futures) > 1_000:
            futures.pop(0).result()
    for future in futures:
        future.result()
    seconds = time.perf_counter() - began
    spool.close()  # the log goes into the table: those writes count as well
    return {
        "seconds": seconds, "written_bytes": _written(os.getpid()) - before, "empty_mb": empty_mb, "full_mb": _rss_mb(os.getpid())
    }  # fmt: skip


def _bridge(folder: Path, size: int, messages: int) -> dict[str, Any]:
    import paho.mqtt.client as mqtt  # noqa: PLC0415 # each process carries only what it measures
    from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415 # each process carries only what it measures

    from tests.plant.broker import Broker, free_port  # noqa: PLC0415 # each process carries only what it measures

    port, nobody, bodies = free_port(), free_port(), [os.urandom(size) for _ in range(16)]
    config = (
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n"
        "autosave_interval 1\nmax_queued_messages 0\nmax_queued_bytes 0\nmax_inflight_messages 100\n"
        f"connection core\naddress 127.0.0.1:{nobody}\ntopic # out 1\ncleansession false\nnotifications false\n"
    )
    broker = Broker(folder, config=config, port=port)
    broker.start()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.max_inflight_messages_set(_WINDOW)
    try:
        client.connect("127.0.0.1", port)
        client.loop_start()
        empty_mb, before, began = _rss_mb(broker.pid), _written(broker.pid), time.perf_counter()
        infos = []
        for n in range(messages):
            infos.append(client.publish("bench", bodies[n % 16], qos=1))
            if len(infos) > _WINDOW:
                infos.pop(0).wait_for_publish()
        for info in infos:
            info.wait_for_publish()
        seconds = time.perf_counter() - began
        time.sleep(2.5)  # its last save
        full_mb, written = _rss_mb(broker.pid), _written(broker.pid) - before
        client.disconnect()
        client.loop_stop()
    finally:
        broker.kill()
    return {"seconds": seconds, "written_bytes": written, "empty_mb": empty_mb, "full_mb": full_mb}


CHILDREN = {"plain write + fdatasync": _plain, "spool": _spool, "mosquitto bridge": _bridge}


def _written(pid: int) -> int:
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(lines["write_bytes"])


def _rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
