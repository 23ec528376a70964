"""Receipts on a thread of their own: a broker that is slow, away or at odds with one device holds no run up."""

from collections.abc import Iterable, Mapping
from threading import Event, Thread
from types import TracebackType
from typing import Self

import structlog

from catchment.runtime.clock import Clock
from pipelines.config import CoreConfig
from pipelines.ingest.receipt_link import DirectLink, MqttLink
from pipelines.ingest.receipt_messages import ReceiptSink
from pipelines.ingest.receipt_outbox import ReceiptOutbox
from pipelines.ingest.receipt_page_book import PageBook
from pipelines.ingest.receipts import Publisher
from pipelines.lake.lake import lake_at
from pipelines.lake.ledger import Ledger
from schemas.topics import Topics

LOOK_EVERY_S = 0.5
LAST_ANSWERS_S = 3.0
IDLE_FOR_S = 10.0

log = structlog.get_logger(__name__)


class ReceiptSender:
    """Publishes receipts until the block is left.

    Args:
        config: broker and lake root.
        client_id: this role's name at the broker.
        clock: monotonic time.
    """

    def __init__(self, config: CoreConfig, client_id: str, clock: Clock) -> None:
        self._clock = clock
        self._wake = Event()
        self._stop = Event()
        self._link = MqttLink(config.broker, client_id, clock, self._wake.set)
        self._outbox = ReceiptOutbox(self._link, Topics(config.broker.namespace), clock, PageBook(lake_at(config.lake_root)))
        self._thread: Thread | None = None
        self.failure: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.drain(LAST_ANSWERS_S)
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(LAST_ANSWERS_S)

    @property
    def pending(self) -> int:
        """How many devices wait for a receipt."""
        return self._outbox.pending

    @property
    def failing(self) -> Mapping[str, str]:
        """Devices whose receipt cannot be published, and why; each is tried again."""
        return self._outbox.failing

    def mark_pending(self, ledger: Ledger, devices: Iterable[str]) -> None:
        """Publish the receipts of these devices as `ledger`, or one after it, has them."""
        self._outbox.mark_pending(ledger, devices)

    def step(self) -> None:
        """See to it that the thread is at work.

        Raises:
            RuntimeError: it failed; the run loop ends, and begins anew with every receipt.
        """
        if self.failure is not None:
            raise RuntimeError("receipts are no longer published") from self.failure
        if self._thread is None:
            self._thread = Thread(target=self._run, name="receipts", daemon=True)
            self._thread.start()
        self._wake.set()

    def drain(self, idle_for_s: float = IDLE_FOR_S) -> None:
        """Wait until every receipt that can be published is; no longer than `idle_for_s` after the last one that was."""
        self.step()
        taken, since_s = self._outbox.taken, self._clock.monotonic_s()
        while self.pending > len(self.failing) and not self._link.is_away and self.failure is None:
            if self._outbox.taken != taken:
                taken, since_s = self._outbox.taken, self._clock.monotonic_s()
            if self._clock.monotonic_s() - since_s > idle_for_s:
                break
            self._stop.wait(0.01)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._outbox.step()
                self._wake.wait(LOOK_EVERY_S)
                self._wake.clear()
        except Exception as error:  # the run loop must hear of whatever ended this thread
            log.exception("receipts_ended")
            self.failure = error
        finally:
            self._link.close()


def sink_of(publisher: Publisher | ReceiptSender, config: CoreConfig, clock: Clock) -> ReceiptSink:
    """The sender as it is; a publisher that waits for the broker behind an outbox of its own."""
    if isinstance(publisher, ReceiptSender):
        return publisher
    topics = Topics(config.broker.namespace)
    return ReceiptOutbox(DirectLink(publisher), topics, clock, PageBook(lake_at(config.lake_root)))
