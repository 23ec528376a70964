"""The bridge: MQTT on one side, durable landing files and objects on the other, and an ack only after both.

broker ── Subscriber ──> Inbox ─> LandingWriter ─> Landing (segments)
▲          ▲                      └─────> Assembler (objects)
└── acks ──┴──── Done ────────────┘
"""

import os
import threading
from dataclasses import dataclass

import structlog

from catchment.runtime.clock import Clock
from pipelines.bridge.disk import Disk
from pipelines.bridge.envelope_rows import Numberer
from pipelines.bridge.inbox import Inbox
from pipelines.bridge.landing import Landing
from pipelines.bridge.landing_writer import Gate, LandingWriter
from pipelines.bridge.parts import Assembler
from pipelines.bridge.reader import Partition, Reader
from pipelines.bridge.resume_number import resume_number
from pipelines.bridge.shares import Shares
from pipelines.bridge.ship import RemoteLanding, StoredObjects
from pipelines.bridge.stats import BridgeStats
from pipelines.bridge.subscriber import Subscriber
from pipelines.bridge.sweep import Sweeper
from pipelines.config import CoreConfig
from pipelines.errors import ConfigError, RetryLaterError
from pipelines.heartbeat import Heartbeats, starting
from pipelines.lake.lake import lake_at
from pipelines.lake.layout import OBJECTS, landing_folder
from pipelines.lake.remote import bind
from schemas.errors import IdError
from schemas.ids import DeviceId
from schemas.topics import Topics

log = structlog.get_logger(__name__)
_GROUP_BYTES = 8 * 1024 * 1024


def run_bridge(config: CoreConfig, stop: threading.Event, clock: Clock) -> None:
    """Run until `stop` is set. A broker or a disk that is away is waited for.

    Raises:
        ConfigError: a wrong bridge id, another bridge with the same id, or the broker refuses this one for good.
        RetryLaterError: the disk refuses at the start; start again once it does not.
        OSError: never; translated.
    """
    _check_id(config.bridge.id)
    lake = config.lake_root
    with starting(lake, "bridge", config.bridge.id, clock):
        made = _made(config, clock)
    log.info("bridge_started", id=config.bridge.id, lake=str(lake), broker=f"{config.broker.host}:{config.broker.port}")
    try:
        with Heartbeats(lake_at(lake), "bridge", config.bridge.id, clock, made.stats.health):
            _run_both(made.subscriber, made.writer, stop)
    finally:
        made.stats.tell()
        made.subscriber.close()
        made.assembler.close()
        made.landing.close()


@dataclass(frozen=True, slots=True)
class _Made:
    """What a bridge consists of."""

    subscriber: Subscriber
    writer: LandingWriter
    landing: Landing
    assembler: Assembler
    stats: BridgeStats


def _made(config: CoreConfig, clock: Clock) -> _Made:
    """Put a bridge together.

    Raises:
        ConfigError, RetryLaterError: as `run_bridge`.
    """
    lake, bridge = config.lake_root, config.bridge
    partition = Partition(bridge.partition, bridge.partitions)
    inbox = Inbox(bridge.max_queue_bytes, min(_GROUP_BYTES, bridge.max_queue_bytes))
    try:
        bind(lake, config.remote)
        lake.mkdir(parents=True, exist_ok=True)
        disk = Disk(lake, config.shares)
        landing, assembler = _places(config, clock, disk)
    except OSError as error:
        raise RetryLaterError(f"the lake root {lake} cannot be written ({error}); correct that, then start again") from error
    sweeper = Sweeper(lake / "objects", assembler, bridge.keep_parts_s)
    shares = Shares(config.shares)
    subscriber = Subscriber(config, inbox, clock)
    numberer = Numberer(clock.now_ms(), int.from_bytes(os.urandom(4), "little"))
    reader = Reader(Topics(config.broker.namespace), numberer, config.run.max_envelope_bytes, partition)
    linger_s = bridge.linger_ms / 1000
    writer = LandingWriter(inbox, landing, assembler, sweeper, reader, subscriber.post, linger_s, Gate(shares, disk))
    return _Made(
        subscriber, writer, landing, assembler, BridgeStats(inbox, subscriber, writer, landing, assembler, sweeper, shares)
    )


def _places(config: CoreConfig, clock: Clock, disk: Disk) -> tuple[Landing, Assembler]:
    """Where messages and objects go: this disk, and a remote lake behind it if there is one."""
    lake, bridge = lake_at(config.lake_root), config.bridge
    folder, objects = landing_folder(lake.root, bridge.id), lake.root / OBJECTS
    if lake.store.is_on_disk:
        first = resume_number(lake.root, bridge.id)
        landing = Landing(folder, bridge.seal_bytes, bridge.seal_ms, clock, first_number=first)
    else:
        landing = Landing(folder, bridge.seal_bytes, bridge.seal_ms, clock, RemoteLanding(lake, bridge.id))
    assembler = Assembler(
        objects,
        reserve_bytes=disk.min_free_bytes,
        store=StoredObjects(lake.store),
        max_open=config.shares.open_objects,
        max_device_bytes=config.shares.parts_bytes,
    )
    return landing, assembler


def _run_both(subscriber: Subscriber, writer: LandingWriter, stop: threading.Event) -> None:
    """The disk thread beside the network loop; whichever fails stops the other, and its error is the one that is raised."""
    no_more = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            writer.run(no_more)
        except BaseException as error:  # noqa: BLE001 - raised again below, on the thread that can
            failed.append(error)
            stop.set()

    thread = threading.Thread(target=work, name="bridge-landing-writer")
    thread.start()
    try:
        subscriber.run(stop)
    finally:
        no_more.set()
        thread.join()
    if failed:
        raise failed[0]


def _check_id(bridge_id: str) -> None:
    """The id is an MQTT client id and a folder's name."""
    try:
        DeviceId(bridge_id)
    except IdError as error:
        raise ConfigError(f"bridge.id: {error}") from error
