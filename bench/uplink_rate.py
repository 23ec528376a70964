"""Does the agent's uplink keep to its rate? Bytes that cross a TCP proxy to a real mosquitto, by windows of ten seconds.

Bodies of each size, and one large payload that travels in parts. The error is the worst window's, either way.

python bench/uplink_rate.py [--seconds 25] [--rate 500000 ...] [--smoke]
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edge_agent.spool.records import Append, NewEnvelope  # noqa: E402 # the script may be run from anywhere
from tests.fakes.bad_link import BadLink  # noqa: E402 # what the tests break links with, here only to count
from tests.fakes.device import ALPHA, Device  # noqa: E402
from tests.fakes.fake_core import FakeCore  # noqa: E402
from tests.plant.broker import Broker, free_port  # noqa: E402

WINDOW_S = 10.0


def measure(folder: Path, port: int, body_bytes: int | None, rate: int, seconds: float) -> list[tuple[float, int]]:
    """Bytes that had crossed, at many moments. Without a size: those of a large payload."""
    with FakeCore("127.0.0.1", port), BadLink(port) as link:
        device = Device(folder, link, bytes_per_s=rate, resend_after_s=60.0)
        stop = threading.Event()

        def fill() -> None:
            if body_bytes is None:
                device.put_large(os.urandom(int(rate * (seconds + WINDOW_S))))
            while body_bytes is not None and not stop.is_set():
                if device.spooled() < 2 * rate * WINDOW_S / body_bytes + 2:
                    # Many with one sync: the filling must not be what is measured.
                    new = tuple(NewEnvelope(1, os.urandom(body_bytes), "1.0.0") for _ in range(max(1, rate // body_bytes)))
                    device.spool.append(Append(ALPHA, new)).result()
                else:
                    stop.wait(0.05)

        filling = threading.Thread(target=fill)
        filling.start()
        while link.bytes_up < rate:
            time.sleep(0.05)
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
    parser.add_argument("--rate", type=int, nargs="+", default=[500_000, 100_000])
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    seconds, window_s = (4.0, 2.0) if given.smoke else (given.seconds, WINDOW_S)
    rates, sizes = ([500_000], (2_000, 200_000)) if given.smoke else (given.rate, (2_000, 40_000, 200_000, 4 * 1024 * 1024, None))
    for rate in rates:
        print(f"{rate:,} B/s, every window of {window_s:.0f} s", flush=True)
        for body_bytes in sizes:
            with tempfile.TemporaryDirectory(prefix="uplink-rate-") as name:
                folder, port = Path(name), free_port()
                config = f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_bytes 0\nmax_queued_messages 0"
                with Broker(folder, config=config, port=port):
                    found = windows(measure(folder, port, body_bytes, rate, seconds), window_s)
            low, high = min(found) / rate, max(found) / rate
            what = "one payload in parts" if body_bytes is None else f"bodies of {body_bytes:>9,} B"
            print(f"{what:<22} {low:6.1%} to {high:6.1%} of the rate: off by at most {max(1 - low, high - 1):.1%}", flush=True)


if __name__ == "__main__":
    main()
