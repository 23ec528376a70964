"""Storing next to encoding: while one batch of frames is summed up and written, the next one is hashed and encoded.

Both halves spend their time in calls that leave the interpreter to others. With one core, or with small bodies, there is
nothing to win and the source's own thread hands in.
"""

import os
import queue
import threading
from concurrent.futures import Future

from edge_agent.spool.records import Append
from edge_agent.spool.spool import Spool
from schemas.envelope import Span

MIN_BODY_BYTES = 64 * 1024


class PendingAppend:
    """An append on its way: done, with its seqs, when it is durable; a failure to hand it in is its failure."""

    def __init__(self, pending: "Future[Future[Span]]") -> None:
        self._pending = pending

    def done(self) -> bool:
        """Whether it is durable or failed."""
        if not self._pending.done():
            return False
        return self._pending.exception() is not None or self._pending.result().done()

    def result(self) -> Span:
        """Wait until it is durable.

        Raises:
            SpoolError: the spool is closed or broken, or found no room.
        """
        return self._pending.result().result()

    def exception(self) -> BaseException | None:
        """Wait until it is durable; why it is not."""
        return self._pending.exception() or self._pending.result().exception()


class Relay:
    """Hands one source's appends to the spool, in their order. Used by the source's thread alone.

    Args:
        spool: where they go.
        name: of the source.
        cores: how many there are to work on; None: as the machine says.
    """

    def __init__(self, spool: Spool, name: str, cores: int | None = None) -> None:
        self._spool = spool
        self._name = name
        self._is_worth_it = (len(os.sched_getaffinity(0)) if cores is None else cores) > 1
        self._thread: threading.Thread | None = None
        self._waiting: queue.SimpleQueue[tuple[Append, Future[Future[Span]]] | None] = queue.SimpleQueue()
        self._last: Future[Future[Span]] | None = None

    def append(self, append: Append) -> "Future[Span] | PendingAppend":
        """Hand in; waits until the one before is handed in, so that no more than two are in memory.

        Raises:
            SpoolError: the spool is closed or broken; the result may say so instead.
        """
        if self._thread is None:
            if not self._is_worth_it or all(len(envelope.body) < MIN_BODY_BYTES for envelope in append.envelopes):
                return self._spool.append(append)
            self._thread = threading.Thread(target=self._run, name=f"store-{self._name}", daemon=True)
            self._thread.start()
        if self._last is not None:
            self._last.exception()
        self._last = Future()
        self._waiting.put((append, self._last))
        return PendingAppend(self._last)

    def close(self) -> None:
        """End its thread, once all is handed in."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (taken := self._waiting.get()) is not None:
            append, pending = taken
            try:
                pending.set_result(self._spool.append(append))
            except BaseException as error:  # noqa: BLE001 # the source's thread waits for it, and raises it
                pending.set_exception(error)
            del taken, append, pending  # the bodies, while nothing comes
