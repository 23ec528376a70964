"""Joining small batches: an envelope of a thousand samples costs little more than one of ten; and splitting them. Pure."""

from collections.abc import Sequence
from itertools import chain

from edge_agent.clock_quality import EARLIEST_MS
from edge_agent.sources.api import SampleBatch


def may_join(first: SampleBatch, second: SampleBatch) -> bool:
    """Whether two batches fill the same columns, so that they can share envelopes."""
    is_alike = (first.payloads is None, first.agent_clock) == (second.payloads is None, second.agent_clock)
    return is_alike and first.columns.keys() == second.columns.keys()


def join_batches(batches: Sequence[SampleBatch]) -> SampleBatch:
    """One batch of all samples in order; its position is the last one told."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    return SampleBatch(
        event_time_us=list(chain.from_iterable(batch.event_time_us for batch in batches)),
        columns={name: list(chain.from_iterable(batch.columns[name] for batch in batches)) for name in first.columns},
        payloads=None if first.payloads is None else list(chain.from_iterable(batch.payloads or () for batch in batches)),
        position=last_position(batches),
        agent_clock=first.agent_clock,
    )


def last_position(batches: Sequence[SampleBatch]) -> bytes | None:
    """The last position that one of these batches, in order, tells; a source need not tell one with each."""
    return next((batch.position for batch in reversed(batches) if batch.position is not None), None)


def split_unset(batch: SampleBatch) -> list[tuple[SampleBatch, bool]]:
    """A batch as one or two: samples whose event time was read from this machine's clock while it was not set stand apart.

    Returns:
        (samples, whether their times need correction), in the batch's order within each.
    """
    limit_us = EARLIEST_MS * 1000
    unset = [row for row, time_us in enumerate(batch.event_time_us) if time_us < limit_us] if batch.agent_clock else []
    if not unset or len(unset) == len(batch):
        return [(batch, bool(unset))]
    rest = [row for row, time_us in enumerate(batch.event_time_us) if time_us >= limit_us]
    return [(batch.take(unset), True), (batch.take(rest), False)]
