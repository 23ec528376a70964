"""The disk side: takes groups of messages from the inbox, makes them durable together, and only then says so."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

import structlog

from pipelines.bridge.inbox import Answer, Arrived, Done, Inbox
from pipelines.bridge.landing import Landing
from pipelines.bridge.parts import Assembler, Part
from pipelines.bridge.reader import Reader
from pipelines.bridge.rows import KIND_REFUSED, LandingRow
from pipelines.bridge.sweep import Sweeper
from schemas.ids import DeviceId, Digest
from schemas.receipts import encode_object_state

_log = structlog.get_logger(__name__)
_IDLE_S = 0.05
_RETRY_FIRST_S = 0.1
_RETRY_MAX_S = 5.0


@dataclass(slots=True)
class Counters:
    """What has been made durable since the start; `elsewhere` counts messages that are other bridges' affair."""

    messages: int = 0
    elsewhere: int = 0
    message_bytes: int = 0
    refused: int = 0
    parts: int = 0
    groups: int = 0
    disk_errors: int = 0


class Drain:
    """Everything that touches the disk, on one thread.

    Args:
        inbox: where groups come from.
        landing: where envelopes and reports go.
        assembler: where parts go.
        sweeper: takes abandoned parts away.
        reader: says what a message is, and whose.
        post: told what is durable.
        linger_s: how long a first message waits for company.
    """

    def __init__(
        self,
        inbox: Inbox,
        landing: Landing,
        assembler: Assembler,
        sweeper: Sweeper,
        reader: Reader,
        post: Callable[[Done], None],
        linger_s: float,
    ) -> None:
        self.counters = Counters()
        self.is_refused = False
        self._inbox = inbox
        self._landing = landing
        self._assembler = assembler
        self._sweeper = sweeper
        self._reader = reader
        self._post = post
        self._linger_s = linger_s

    def run(self, stop: Event) -> None:
        """Go on until stopped and empty. A disk that refuses is tried again until it takes the group, or until stopped."""
        while True:
            group = self._inbox.take(_IDLE_S, 0 if stop.is_set() else self._linger_s)
            if group:
                self._settle(group, stop)
            elif stop.is_set():
                return
            self._guard(self._look_around, stop)

    def _look_around(self) -> None:
        """What is due by time, or was done beside."""
        self._landing.seal_if_due()
        answers = [
            Answer(self._reader.topics.objects(device), encode_object_state(state))
            for device, state in self._assembler.finished()
        ]
        if answers:
            self._post(Done([], answers))
        self._sweeper.sweep_if_due(time.monotonic())

    def _settle(self, group: Sequence[Arrived], stop: Event) -> None:
        rows, parts = self._sort(group)
        answers: list[Answer] = []

        def write() -> None:
            if rows:
                self._landing.append(rows)
            answers[:] = [self._answer(device, same) for (device, _), same in parts.items()]

        if (rows or parts) and not self._guard(write, stop):
            return  # Stopped while the disk refused: not acknowledged, so the broker keeps the group for the next start.
        self._count(rows, parts)
        # In this order: an empty inbox tells the network side that nothing more will be posted.
        self._post(Done(group, answers))
        self._inbox.release(group)

    def _guard(self, write: Callable[[], object], stop: Event) -> bool:
        """Write, again and again while the disk refuses: the messages wait here, and the broker behind them."""
        wait_s = _RETRY_FIRST_S
        has_failed = False
        while True:
            try:
                if has_failed:
                    self._landing.restart()
                write()
            except OSError as error:
                self.counters.disk_errors += 1
                has_failed = self.is_refused = True
                _log.error("disk_refused", error=str(error), retry_in_s=wait_s)
                if stop.wait(wait_s):
                    return False
                wait_s = min(wait_s * 2, _RETRY_MAX_S)
            else:
                self.is_refused = False
                return True

    def _sort(self, group: Sequence[Arrived]) -> tuple[list[LandingRow], dict[tuple[DeviceId, Digest], list[Part]]]:
        rows: list[LandingRow] = []
        parts: dict[tuple[DeviceId, Digest], list[Part]] = {}
        for arrived in group:
            read = self._reader.read(arrived.message)
            if read is None:
                self.counters.elsewhere += 1
            elif isinstance(read, Part):
                parts.setdefault((read.device, read.head.digest), []).append(read)
            else:
                rows.append(read)
        return rows, parts

    def _answer(self, device: DeviceId, parts: Sequence[Part]) -> Answer:
        """One answer for all parts of an object in the group: it names everything that is durable."""
        return Answer(self._reader.topics.objects(device), encode_object_state(self._assembler.apply(device, parts)))

    def _count(self, rows: Sequence[LandingRow], parts: dict[tuple[DeviceId, Digest], list[Part]]) -> None:
        counters = self.counters
        counters.groups += 1
        counters.messages += len(rows)
        counters.refused += sum(row.kind == KIND_REFUSED for row in rows)
        counters.parts += sum(len(same) for same in parts.values())
        counters.message_bytes += sum(len(row.payload) for row in rows)
        counters.message_bytes += sum(len(part.payload) for same in parts.values() for part in same)
