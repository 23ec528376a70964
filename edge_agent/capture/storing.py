"""From a batch to envelopes: rows that cannot be encoded are refused alone, a full disk is waited for."""

import threading

import structlog

from catchment.runtime.backoff import doubled_s
from edge_agent.capture.encode import Encoder
from edge_agent.errors import EncodingError, SpoolFullError
from edge_agent.sources.api import SampleBatch
from edge_agent.sources.rejects import Rejects
from edge_agent.spool.records import NewEnvelope
from schemas.contract import Contract

MAX_TRIES = 3
_WAIT_CAP_S = 30.0

_log = structlog.get_logger(__name__)


class PatientEncoder:
    """Encodes batches so that none can hold up those behind it for ever.

    Args:
        encoder: of the stream's contract.
        rejects: where rows are counted that cannot be encoded.
        first_wait_s: before the second try; each later one waits twice as long.
    """

    def __init__(self, encoder: Encoder, rejects: Rejects, first_wait_s: float = 0.5) -> None:
        self._encoder = encoder
        self._rejects = rejects
        self._first_wait_s = first_wait_s

    @property
    def contract(self) -> Contract:
        """Of the stream."""
        return self._encoder.contract

    def encode(self, batch: SampleBatch, created_us: int, stop: threading.Event) -> tuple[NewEnvelope, ...]:
        """The envelopes of all rows that can be encoded, in order; none where no row can.

        Raises:
            SpoolFullError: the disk was still full when `stop` was set.
            OSError: a payload could not be read, or its file not be written, when `stop` was set.
        """
        tries = 0
        while True:
            try:
                return self._encoder.encode(batch, created_us)
            except EncodingError:
                return self._rows_apart(batch, created_us, (EncodingError,))
            except (OSError, SpoolFullError) as error:
                tries += 1
                if isinstance(error, OSError) and tries >= MAX_TRIES:
                    # Not the disk of the spool: that one tells SpoolFullError. A payload's file is gone or rotten.
                    return self._rows_apart(batch, created_us, (EncodingError, OSError))
                wait_s = doubled_s(self._first_wait_s, _WAIT_CAP_S, tries - 1)
                _log.warning("cannot be stored yet", error=str(error), retry_in_s=wait_s)
                if stop.wait(wait_s):
                    if batch.position is None:
                        self._rejects.count("row: the disk was full when the agent stopped", times=len(batch))
                    raise

    def _rows_apart(self, batch: SampleBatch, created_us: int, refusals: tuple[type[Exception], ...]) -> tuple[NewEnvelope, ...]:
        """Halves of halves, until each row that cannot be encoded stands alone."""
        try:
            return self._encoder.encode(batch, created_us)
        except refusals as error:
            if len(batch) == 1:
                self._rejects.count(f"row: cannot be encoded: {error}")
                return ()
        middle = len(batch) // 2
        first = self._rows_apart(batch.take(range(middle)), created_us, refusals)
        return first + self._rows_apart(batch.take(range(middle, len(batch))), created_us, refusals)
