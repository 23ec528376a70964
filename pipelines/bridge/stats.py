"""What the bridge says of itself: in its heartbeat, and once a minute in the log."""

import time
from dataclasses import asdict

import structlog

from pipelines.bridge.inbox import Inbox
from pipelines.bridge.landing import Landing
from pipelines.bridge.landing_writer import LandingWriter
from pipelines.bridge.parts import Assembler
from pipelines.bridge.shares import RETAINED, Shares
from pipelines.bridge.subscriber import Subscriber
from pipelines.bridge.sweep import Sweeper
from pipelines.heartbeat import ProcessHealth

log = structlog.get_logger(__name__)
_TELL_EVERY_S = 60.0
_NAME_CHARS = 80


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
