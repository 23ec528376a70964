"""A device's spool and uplink in the test's own process, with the real broker at the other end."""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from catchment.runtime.clock import SystemClock
from edge_agent.config import BrokerConfig, UplinkConfig
from edge_agent.spool import database
from edge_agent.spool.records import Append, NewEnvelope, State
from edge_agent.spool.spool import Spool
from edge_agent.uplink.forwarder import Forwarder, Reporter
from edge_agent.uplink.send_window import UplinkTimes
from edge_agent.uplink.session import PahoSession
from schemas.ids import DeviceId, StreamName
from schemas.topics import Topics
from tests.plant.broker import Address

ALPHA = StreamName("alpha")
DEVICE = DeviceId("dev-a")


class Device:
    """A spool and its uplink in this process."""

    def __init__(
        self,
        folder: Path,
        broker: Address,
        *,
        connection: BrokerConfig | None = None,
        name: DeviceId = DEVICE,
        max_bytes: int = 1 << 30,
        times: UplinkTimes | None = None,
        **uplink: Any,
    ) -> None:
        clock = SystemClock()
        self._folder = folder
        self.spool = Spool(folder / "spool", max_bytes=max_bytes, linger_ms=0, clock=clock)
        config = UplinkConfig(**{"resend_after_s": 2.0, "report_interval_s": 0.2, **uplink})
        reporter = Reporter(self.spool, name, "0", lambda: (), config.report_interval_s, clock)
        connect = partial(PahoSession, connection or BrokerConfig(host=broker.host, port=broker.port, keepalive_s=5), name)
        self.forwarder = Forwarder(self.spool, connect, config, Topics(), name, reporter, None, clock, times)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.forwarder.run, args=(self._stop,))
        self._thread.start()

    def put(self, body: bytes, count: int = 1, priority: int = 100) -> None:
        self.spool.append(Append(ALPHA, (NewEnvelope(count, body, "1.0.0"),), priority=priority)).result()

    def put_large(self, payload: bytes | Path) -> str:
        """A sample whose payload travels in parts; its digest."""
        ref = self.spool.put_object(payload)
        self.spool.append(Append(ALPHA, (NewEnvelope(1, b"row", "1.0.0", large=ref),))).result()
        return str(ref.digest)

    def spooled(self) -> int:
        return sum(books.spooled for books in self.spool.books())

    def parked_reasons(self) -> list[str]:
        """Why envelopes are parked, one reason each."""
        with closing(database.connect_reader(self._folder / "spool" / database.FILE_NAME)) as db:
            return [reason for (reason,) in db.execute("SELECT reason FROM envelope WHERE state = ?", (State.PARKED,))]

    def close(self) -> None:
        self._stop.set()
        self.forwarder.wake()
        self._thread.join()
        self.spool.close()


def eventually(condition: Callable[[], Any], within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)
