"""Joining small batches: an envelope of a thousand samples costs little more than one of ten. Pure."""

from collections.abc import Sequence
from itertools import chain

from edge_agent.capture.batch import SampleBatch


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
