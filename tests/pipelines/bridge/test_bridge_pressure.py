import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from pipelines.bridge.bridge import run_bridge
from pipelines.bridge.segment import read_segment
from pipelines.bridge.subscriber import Done, Inbox, Subscriber
from pipelines.config import BridgeConfig, CoreBrokerConfig, CoreConfig
from tests.pipelines.bridge.conftest import Device
from tests.plant.broker import RunningBroker


@pytest.fixture
def config(broker: RunningBroker, tmp_path: Path) -> CoreConfig:
    return CoreConfig(
        lake=str(tmp_path / "lake"),
        broker=CoreBrokerConfig(host=broker.host, port=broker.port, keepalive_s=1),
        bridge=BridgeConfig(max_queue_bytes=100_000, seal_ms=20),
    )


@pytest.fixture
def alongside() -> Iterator[Callable[..., threading.Event]]:
    """Run a function next to the test until it is told to stop."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(run: Callable[[threading.Event], None]) -> threading.Event:
        threads.append(threading.Thread(target=run, args=(stop,)))
        threads[0].start()
        return stop

    yield start
    stop.set()
    for thread in threads:
        thread.join(30)


@pytest.mark.slow
def test_a_disk_that_stalls_longer_than_the_keepalive_costs_no_connection(
    config: CoreConfig, device: Device, alongside: Callable[..., Any]
) -> None:
    inbox = Inbox(config.bridge.max_queue_bytes, 50_000)
    subscriber = Subscriber(config, inbox, SystemClock())

    def serve(stop: threading.Event) -> None:
        subscriber.run(stop)
        subscriber.close()

    stop = alongside(serve)
    device.wait_until(lambda: subscriber.is_subscribed)
    for number in range(400):
        device.publish("catchment/up/dev-a/telemetry", number.to_bytes(2, "big") + bytes(20_000))
    device.wait_until(lambda: inbox.is_full)
    stop.wait(4.0)  # the broker gives up after 1.5 keepalives without a packet
    held = inbox.held_bytes
    assert held < config.bridge.max_queue_bytes + 50_000  # one message may go over the bound, not one more
    seen: list[int] = []
    while len(seen) < 400:
        group = inbox.take(10, 0)
        assert group, "the messages behind the stall did not come"
        seen += [int.from_bytes(arrived.message.payload[:2], "big") for arrived in group]
        subscriber.post(Done(group, ()))
        inbox.release(group)
    assert seen == list(range(400))
    assert subscriber.connections == 1
    assert subscriber.stale_acks == 0


def test_a_disk_that_refuses_for_a_while_loses_nothing_and_costs_no_connection(
    config: CoreConfig, device: Device, alongside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusals = os.fdatasync, iter([False, True, True, False, True])

    def sometimes(descriptor: int) -> None:
        if next(refusals, False):
            raise OSError(errno.EIO, "test")
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", sometimes)
    alongside(lambda stop: run_bridge(config, stop, SystemClock()))
    folder = config.lake_root / "landing" / config.bridge.id

    def is_sealed() -> bool:
        device.send("catchment/reported/dev-a", b"{}")
        return any(folder.glob("*.arrows"))

    device.wait_until(is_sealed)
    for number in range(60):
        device.send("catchment/up/dev-a/telemetry", number.to_bytes(2, "big"))

    def landed() -> list[bytes]:
        sealed = sorted(folder.glob("*.arrows"))
        return [value for path in sealed for batch in read_segment(path) for value in batch.column("payload").to_pylist()]

    device.wait_until(lambda: set(landed()) - {b"{}"} == {number.to_bytes(2, "big") for number in range(60)})
    numbers = sorted(int(path.name[:12]) for path in folder.glob("*.arrows"))
    assert numbers == list(range(1, len(numbers) + 1))
