"""Does the agent's uplink keep to its rate? Bytes that cross a TCP proxy to a real mosquitto, by windows of ten seconds.

python bench/uplink_rate.py [--seconds 25] [--rate 200000] [--smoke]
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fakes.bad_link import BadLink  # noqa: E402 # what the tests break links with, here only to count
from tests.fakes.device import Device  # noqa: E402
from tests.fakes.fake_core import FakeCore  # noqa: E402

WINDOW_S = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_broker(folder: Path, port: int) -> subprocess.Popen[bytes]:
    binary = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        raise SystemExit("no mosquitto; install it")
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_bytes 0\nmax_queued_messages 0\n")
    process = subprocess.Popen([binary, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    return process


def measure(folder: Path, port: int, body_bytes: int, rate: int, seconds: float) -> list[tuple[float, int]]:
    """Bytes that had crossed, at many moments."""
    with FakeCore("127.0.0.1", port), BadLink(port) as link:
        device = Device(folder, link, bytes_per_s=rate)
        stop = threading.Event()

        def fill() -> None:
            while not stop.is_set():
                if device.spooled() < 4 * rate * WINDOW_S / body_bytes + 4:
                    device.put(os.urandom(body_bytes))
                else:
                    stop.wait(0.05)

        filling = threading.Thread(target=fill)
        filling.start()
        time.sleep(2)
        moments, began = [], time.monotonic()
        while (now := time.monotonic()) - began < seconds:
            moments.append((now - began, link.bytes_up))
            time.sleep(0.05)
        stop.set()
        filling.join()
        device.close()
    return moments


def windows(moments: list[tuple[float, int]], window_s: float) -> list[float]:
    """Bytes per second of each window of that length, one beginning at each moment."""
    rates, end = [], 0
    for at_s, carried in moments:
        while end < len(moments) and moments[end][0] < at_s + window_s:
            end += 1
        if end == len(moments):
            break
        rates.append((moments[end][1] - carried) / (moments[end][0] - at_s))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=25.0)
    parser.add_argument("--rate", type=int, default=200_000)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    seconds = 4.0 if given.smoke else given.seconds
    window_s = 2.0 if given.smoke else WINDOW_S
    print(f"rate {given.rate:,} B/s, every window of {window_s:.0f} s")
    for body_bytes in (5_000, 40_000, 900_000):
        with tempfile.TemporaryDirectory(prefix="uplink-rate-") as name:
            folder, port = Path(name), free_port()
            broker = start_broker(folder, port)
            try:
                found = windows(measure(folder, port, body_bytes, given.rate, seconds), window_s)
            finally:
                broker.terminate()
                broker.wait()
        low, high = min(found) / given.rate, max(found) / given.rate
        print(f"bodies of {body_bytes:>7,} B: {low:6.1%} to {high:6.1%} of the rate")


if __name__ == "__main__":
    main()
