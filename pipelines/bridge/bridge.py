"""The bridge: MQTT on one side, durable landing files and objects on the other, and an ack only after both.

    broker ── Subscriber ──> Inbox ─> LandingWriter ─> Landing (segments)
      ▲          ▲                      └─────> Assembler (objects)
      └── acks ──┴──── Done ────────────┘

Its figures go into its heartbeat, and once a minute into the log.
"""

import os
import threading
import time
from dataclasses import asdict, dataclass

import structlog

from catchment.runtime.clock import Clock
from pipelines.bridge.landing import Landing, RemoteLanding, StoredObjects, resume_number
from pipelines.bridge.landing_writer import Gate, LandingWriter, Partition, Reader
from pipelines.bridge.parts import Assembler, Sweeper
from pipelines.bridge.parts_room import Disk
from pipelines.bridge.rows import Numberer
from pipelines.bridge.shares import RETAINED, Shares
from pipelines.bridge.subscriber import Inbox, Subscriber
from pipelines.config import CoreConfig
from pipelines.errors import ConfigError, RetryLaterError
from pipelines.heartbeat import Heartbeats, ProcessHealth, starting
from pipelines.lake.lake import Lake, lake_of
from pipelines.lake.layout import OBJECTS, landing_folder
from schemas.errors import IdError
from schemas.ids import DeviceId
from schemas.topics import Topics

log = structlog.get_logger(__name__)
_TELL_EVERY_S = 60.0
_NAME_CHARS = 80

_GROUP_BYTES = 8 * 1024 * 1024


class BridgeStats:
    """Reads the counters of the bridge's parts; each is written by one thread and only read here."""

    def __init__(  # it tells of all of them
        self,
        inbox: Inbox,
        subscriber: Subscriber,
        writer: LandingWriter,
        landing: Landing,
        assembler: Assembler,
        sweeper: Sweeper,
        shares: Shares,
    ) -> None:
        self._inbox = inbox
        self._subscriber = subscriber
        self._writer = writer
        self._landing = landing
        self._assembler = assembler
        self._sweeper = sweeper
        self._shares = shares
        self._last_logged_s = time.monotonic()

    def health(self) -> ProcessHealth:
        """For the heartbeat; now and then for the log as well."""
        if time.monotonic() - self._last_logged_s >= _TELL_EVERY_S:
            self.tell()
        trouble = ""
        if self._writer.is_refused:
            trouble = "the disk refuses"
        elif not self._subscriber.is_subscribed:
            trouble = "not subscribed at the broker"
        elif self._subscriber.refusals.trouble:
            trouble = self._subscriber.refusals.trouble
        return ProcessHealth(not trouble, trouble, self._counters(), over_share=self._over_share())

    def _over_share(self) -> dict[str, str]:
        """Devices over their share, each with what of it waits on the device, or was taken back at the broker."""
        found: dict[str, str] = {}
        for one in self._shares.over(time.monotonic()):
            what = "taken back at the broker" if one.limit == RETAINED else "left to the device"
            text = f"{one.limit} for {one.for_s:.0f} s, {one.messages} messages of {one.bytes} bytes {what}"
            name = one.device[:_NAME_CHARS]
            found[name] = f"{found[name]}; {text}" if name in found else text
        return found

    def tell(self) -> None:
        """Into the log."""
        self._last_logged_s = time.monotonic()
        log.info("bridge_counters", **self._counters())

    def _counters(self) -> dict[str, float]:
        return {
            **asdict(self._writer.counters),
            "held_bytes": self._inbox.held_bytes,
            "fsyncs": self._landing.syncs,
            "sealed": self._landing.sealed,
            "objects_settled": self._assembler.settled,
            "objects_refused": self._assembler.refused,
            "parts_swept": self._sweeper.swept,
            "connections": self._subscriber.connections,
            "deferred_messages": self._shares.deferred_messages,
            "deferred_bytes": self._shares.deferred_bytes,
            "devices_over_share": self._shares.count_over(time.monotonic()),
            "parts_open": self._assembler.room.open_objects,
            "parts_disk_bytes": self._assembler.room.disk_bytes,
            "parts_deferred": self._assembler.room.deferred,
            "stale_acks": self._subscriber.stale_acks,
            "refused_messages": self._subscriber.refusals.count,
        }


def run_bridge(config: CoreConfig, stop: threading.Event, clock: Clock) -> None:
    """Run until `stop` is set. A broker or a disk that is away is waited for.

    Raises:
        ConfigError: a wrong bridge id, another bridge with the same id, or the broker refuses this one for good.
        RetryLaterError: the disk refuses at the start; start again once it does not.
        OSError: never; translated.
    """
    _check_id(config.bridge.id)
    root = config.lake_root
    with starting(root, "bridge", config.bridge.id, clock):
        made = _made(config, clock)
    log.info("bridge_started", id=config.bridge.id, lake=str(root), broker=f"{config.broker.host}:{config.broker.port}")
    try:
        with Heartbeats(made.lake, "bridge", config.bridge.id, clock, made.stats.health):
            _run_both(made.subscriber, made.writer, stop)
    finally:
        made.stats.tell()
        made.subscriber.close()
        made.assembler.close()
        made.landing.close()


@dataclass(frozen=True, slots=True)
class _Made:
    """The parts of a bridge."""

    lake: Lake
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
    root, bridge = config.lake_root, config.bridge
    partition = Partition(bridge.partition, bridge.partitions)
    inbox = Inbox(bridge.max_queue_bytes, min(_GROUP_BYTES, bridge.max_queue_bytes))
    try:
        lake = lake_of(config)
        root.mkdir(parents=True, exist_ok=True)
        disk = Disk(root, config.shares)
        landing, assembler = _places(lake, config, clock, disk)
    except OSError as error:
        raise RetryLaterError(f"the lake root {root} cannot be written ({error}); correct that, then start again") from error
    sweeper = Sweeper(root / OBJECTS, assembler, bridge.keep_parts_s)
    shares = Shares(config.shares)
    subscriber = Subscriber(config, inbox, clock)
    numberer = Numberer(clock.now_ms(), int.from_bytes(os.urandom(4), "little"))
    reader = Reader(Topics(config.broker.namespace), numberer, config.run.max_envelope_bytes, partition)
    linger_s = bridge.linger_ms / 1000
    writer = LandingWriter(inbox, landing, assembler, sweeper, reader, subscriber.post, linger_s, Gate(shares, disk))
    return _Made(
        lake, subscriber, writer, landing, assembler, BridgeStats(inbox, subscriber, writer, landing, assembler, sweeper, shares)
    )


def _places(lake: Lake, config: CoreConfig, clock: Clock, disk: Disk) -> tuple[Landing, Assembler]:
    """Open the places of messages and objects: this disk, and a remote lake behind it if there is one."""
    bridge = config.bridge
    folder, objects = landing_folder(lake.root, bridge.id), lake.root / OBJECTS
    if lake.store.remote_config is None:
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
    """The disk thread next to the network loop; whichever fails stops the other, and its error is the one that is raised."""
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
