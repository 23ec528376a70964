"""Telling the core the device's books: on connect, when they changed, and every minute anyway."""

from collections.abc import Callable

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.spool.spool import Spool
from schemas.ids import DeviceId
from schemas.reported import DocumentReport, ModelReport, PolicyReport, Reported, encode_reported

_UNCHANGED_INTERVALS = 12


class Reporter:
    """Makes the retained report, when it is time.

    Args:
        spool: has the books.
        device: this device.
        version: the agent's version.
        models: what the models' room says of itself.
        interval_s: how often at most.
        clock: wall clock for the report, monotonic for the interval.
        policy: what the rules' room says of itself.
        documents: what was taken of the signed documents.
    """

    def __init__(
        self,
        spool: Spool,
        device: DeviceId,
        version: str,
        models: Callable[[], tuple[ModelReport, ...]],
        interval_s: float,
        clock: Clock,
        policy: Callable[[], PolicyReport | None] = lambda: None,
        documents: Callable[[], tuple[DocumentReport, ...]] = tuple,
    ) -> None:
        self._spool = spool
        self._device = device
        self._version = version
        self._models = models
        self._interval_s = interval_s
        self._clock = clock
        self._policy = policy
        self._documents = documents
        self._told: Reported | None = None
        self._looked_s = float("-inf")
        self._told_s = float("-inf")

    def connected(self) -> None:
        """A new connection: the next report is due at once."""
        self._told = None
        self._looked_s = float("-inf")

    def refused(self) -> None:
        """Have the report sent again at the next interval: the broker did not take the last one."""
        self._told = None

    def due(self) -> bytes | None:
        """The report to publish, None when it is not time or nothing changed."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < self._interval_s:
            return None
        self._looked_s = now_s
        report = self._make()
        is_news = self._told is None or msgspec.structs.replace(report, at_ms=self._told.at_ms) != self._told
        if not is_news and now_s - self._told_s < _UNCHANGED_INTERVALS * self._interval_s:
            return None
        self._told, self._told_s = report, now_s
        return encode_reported(report)

    def _make(self) -> Reported:
        return Reported(
            device=str(self._device),  # msgspec encodes str itself, not what is derived from it
            at_ms=self._clock.now_ms(),
            agent_version=self._version,
            books=self._spool.books(),
            epochs=self._spool.epochs(),
            models=self._models(),
            policy=self._policy(),
            documents=self._documents() or msgspec.UNSET,
        )
