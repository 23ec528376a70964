"""A wall around a source: whatever it raises becomes a SourceError, so that it fails, and starts again, alone."""

from collections.abc import Callable
from typing import TypeVar

import structlog

from edge_agent.errors import AgentError, SourceError
from edge_agent.sources.api import SampleBatch, Source

ResultT = TypeVar("ResultT")

log = structlog.get_logger(__name__)


class GuardedSource:
    """Another source whose foreign exceptions (a plug-in's, a decoder's) do not end the agent.

    Attributes:
        rejected: reason -> rows, cells or files refused, where the source counts them.
    """

    def __init__(self, kind: str, build: Callable[[], Source]) -> None:
        self._kind = kind
        self._source = self._guarded("build", build)

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many rows, cells or files were refused since the source was built."""
        counts = getattr(self._source, "rejected", None)
        return dict(counts) if isinstance(counts, dict) else {}

    @property
    def position(self) -> bytes | None:
        """Where the source stands before anything was read, where it can tell."""
        found = getattr(self._source, "position", None)
        return found if isinstance(found, bytes) else None

    @property
    def unfilled(self) -> tuple[str, ...]:
        """Required columns of the contract that the source knows it never fills."""
        found = getattr(self._source, "unfilled", ())
        return found if isinstance(found, tuple) else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names in what the source reads that fill no column, where it knows."""
        found = getattr(self._source, "left_out", ())
        return found if isinstance(found, tuple) else ()

    @property
    def matched(self) -> dict[str, str]:
        """Column -> the source's name for it, where the source knows."""
        found = getattr(self._source, "matched", {})
        return found if isinstance(found, dict) else {}

    @property
    def complaint(self) -> str:
        """What is wrong although the source runs: what it holds back, and for which setting; empty where nothing is."""
        found = getattr(self._source, "complaint", "")
        return found if isinstance(found, str) else ""

    @property
    def inner(self) -> Source:
        """The source itself."""
        return self._source

    def read(self, max_samples: int) -> SampleBatch | None:
        """The next samples.

        Raises:
            SourceError: the source failed.
            SourceEndedError: there will never be more.
        """
        return self._guarded("read", lambda: self._source.read(max_samples))

    def stored(self, batch: SampleBatch) -> None:
        """The batch is durable.

        Raises:
            SourceError: the source failed.
        """
        self._guarded("stored", lambda: self._source.stored(batch))

    def close(self) -> None:
        """Close files and end processes. A source that cannot is left behind: what comes next must not wait for it."""
        try:
            self._source.close()
        except Exception as error:  # noqa: BLE001 # a foreign source may raise anything, and it is done with
            log.warning("source_not_closed", source=self._kind, error=f"{type(error).__name__}: {error}")

    def _guarded(self, step: str, action: Callable[[], ResultT]) -> ResultT:
        try:
            return action()
        except AgentError:
            raise
        except Exception as error:
            raise SourceError(f"source {self._kind!r} failed in {step}: {type(error).__name__}: {error}") from error
