"""Joining small batches: an envelope of a thousand samples costs little more than one of ten. Pure."""

from collections.abc import Sequence
from itertools import chain

from edge_agent.capture.batch import SampleBatch


def may_join(first: SampleBatch, second: SampleBatch) -> bool:
    """Whether two batches fill the same columns, so that they can share envelopes."""
    is_alike = (first.payloads is None, first.agent_clock) == (second.payloads is None, second.agent_clock)
    return is_alike and first.columns.keys() == second.columns.keys()


def join_batches(batches: Sequence[SampleBatch]) -> SampleBatch:
    """One batch of all samples in order; it ends where the last one ends, so its position is the last one's."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    return SampleBatch(
        event_time_us=list(chain.from_iterable(batch.event_time_us for batch in batches)),
        columns={name: list(chain.from_iterable(batch.columns[name] for batch in batches)) for name in first.columns},
        payloads=None if first.payloads is None else list(chain.from_iterable(batch.payloads or () for batch in batches)),
        position=batches[-1].position,
        agent_clock=first.agent_clock,
    )
