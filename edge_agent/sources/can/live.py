"""A CAN bus, by python-can."""

from typing import Any

import can

from edge_agent.errors import SourceError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.can.rows import FrameSampler
from edge_agent.sources.can.source import CanOptions
from schemas.contract import Contract


class CanLive:
    """Listens to one bus. The kernel passes on only the messages that are decoded.

    Attributes:
        rejected: reason -> frames refused.
    """

    def __init__(self, options: CanOptions, contract: Contract) -> None:
        self._options = options
        self._rejects = Rejects(f"can {options.channel}")
        self._sampler = FrameSampler(options, contract, self._rejects)
        own: dict[str, Any] = dict(options.bus)
        filters: list[can.typechecking.CanFilter] = [
            {"can_id": id_, "can_mask": mask, "extended": extended}
            for id_, mask, extended in self._sampler.filters(options.channel)
        ]
        try:
            self._bus = can.Bus(options.channel, options.interface, can_filters=filters or None, **own)
        except (can.CanError, OSError, ValueError, TypeError) as error:
            raise SourceError(f"can bus {options.channel} cannot be opened: {error}; is it up? ip link show") from error

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many frames were refused since the source was built."""
        return dict(self._rejects.counts)

    def read(self, max_samples: int) -> SampleBatch | None:
        """The signals of the frames that have come; None when none comes within `wait_ms`.

        Raises:
            SourceError: the bus went down.
        """
        self._sampler.begin()
        rows = self._sampler.rows
        wait_s = self._options.wait_ms / 1000
        try:
            while len(rows) < max_samples and (frame := self._bus.recv(wait_s)) is not None:
                self._sampler.take(round(frame.timestamp * 1e6), frame, self._options.channel)
                wait_s = 0.0
        except (can.CanError, OSError) as error:
            if not rows:  # else the next read tells
                raise SourceError(f"can bus {self._options.channel} went down: {error}") from error
        return rows.batch(None, agent_clock=True)

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: a bus does not repeat itself."""

    def close(self) -> None:
        """Close the bus."""
        self._bus.shutdown()
