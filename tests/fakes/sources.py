"""Building a source as the agent does, with a clock moved by hand, and reading all of it."""

from edge_agent.errors import SourceEndedError
from edge_agent.sources.api import SampleBatch, Source
from edge_agent.sources.registry import GuardedSource, build_source
from schemas.contract import builtin_contract


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(self.at_s * 1000)

    def monotonic_s(self) -> float:
        return self.at_s

    def sleep(self, seconds: float) -> None:
        self.at_s += seconds


_BUILT: list[Source] = []


def close_all() -> None:
    """Close what was built since the last call."""
    while _BUILT:
        _BUILT.pop().close()


def build(
    kind: str, stream: str, position: bytes | None = None, clock: HandClock | None = None, **options: object
) -> GuardedSource:
    source = build_source(kind, options, builtin_contract(stream), clock or HandClock(), position)
    _BUILT.append(source)
    return source


def drain(source: Source, clock: HandClock | None = None, max_samples: int = 1000) -> list[SampleBatch]:
    batches: list[SampleBatch] = []
    for _ in range(10_000):
        try:
            batch = source.read(max_samples)
        except SourceEndedError:
            source.close()
            return batches
        if batch is None and clock is not None:
            clock.sleep(1)
        if batch is not None:
            batches.append(batch)
            source.stored(batch)
    raise AssertionError("the source does not end")


def column(batches: list[SampleBatch], name: str) -> list[object]:
    return [value for batch in batches for value in batch.columns.get(name, [None] * len(batch))]


def count(batches: list[SampleBatch]) -> int:
    return sum(map(len, batches))
