"""Envelopes of one stream, contract version and schema, put together: validated, cast and tagged once, not one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.ingest.admit import FreshSpans
from pipelines.ingest.decode import Rows
from pipelines.ingest.messages import Message
from schemas.contract import Contract
from schemas.ranges import Span

Int64s = npt.NDArray[np.int64]


class GroupEnvelope(NamedTuple):
    """A decoded envelope and which of its seqs are fresh."""

    message: Message
    rows: Rows
    fresh_spans: FreshSpans


@dataclass(slots=True)
class Group:
    """Decoded envelopes that make one table."""

    contract: Contract
    envelopes: list[GroupEnvelope] = field(default_factory=list)
    bytes: int = 0

    def add(self, envelope: GroupEnvelope) -> None:
        """Take one more."""
        self.envelopes.append(envelope)
        self.bytes += envelope.rows.bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """Which envelope (by its place in the group) each row came in, and its seq."""

    envelope: Int64s
    seq: Int64s

    def where(self, mask: npt.NDArray[np.bool_]) -> "Keys":
        """The rows for which the mask is true."""
        return Keys(self.envelope[mask], self.seq[mask])


def in_order(group: Group) -> Group:
    """The group with its envelopes by device, epoch and seq: so a file's rows lie by device and, within it, by time."""
    return Group(group.contract, sorted(group.envelopes, key=_place), group.bytes)


def _place(envelope: GroupEnvelope) -> tuple[str, int, int]:
    return envelope.message.device or "", envelope.message.epoch, envelope.message.first_seq


def body_table(envelopes: Sequence[GroupEnvelope]) -> pa.Table:
    """All rows, as the devices sent them."""
    return pa.Table.from_batches([envelope.rows.batch for envelope in envelopes])


def row_keys(envelopes: Sequence[GroupEnvelope]) -> Keys:
    """The keys of `body_table`'s rows, for all envelopes at once."""
    counts = np.array([envelope.rows.batch.num_rows for envelope in envelopes], np.int64)
    firsts = np.array([envelope.message.first_seq for envelope in envelopes], np.int64)
    starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(envelopes), dtype=np.int64), counts)
    seq = np.repeat(firsts - starts, counts) + np.arange(int(counts.sum()), dtype=np.int64)
    for start, count, envelope in zip(starts.tolist(), counts.tolist(), envelopes, strict=True):
        if envelope.rows.indexes is not None:
            seq[start : start + count] = envelope.message.first_seq + np.array(envelope.rows.indexes, np.int64)
    return Keys(owner, seq)


def fresh_mask(envelopes: Sequence[GroupEnvelope], keys: Keys) -> npt.NDArray[np.bool_] | None:
    """Which rows are fresh; None if all are, which is the rule."""
    partly = [
        place
        for place, envelope in enumerate(envelopes)
        if envelope.fresh_spans != ((envelope.message.first_seq, envelope.message.first_seq + envelope.message.samples),)
    ]
    if not partly:
        return None
    mask = np.ones(len(keys.seq), np.bool_)
    for place in partly:
        low, high = np.searchsorted(keys.envelope, [place, place + 1])
        mask[low:high] = _within(keys.seq[low:high], envelopes[place].fresh_spans)
    return mask


def _within(seqs: Int64s, fresh_spans: FreshSpans) -> npt.NDArray[np.bool_]:
    """Which seqs are in the spans; by search, because a device may make thousands of spans under a million rows."""
    if not fresh_spans:
        return np.zeros(len(seqs), np.bool_)
    lows, ends = np.array(fresh_spans, np.int64).T
    at = np.searchsorted(lows, seqs, side="right") - 1
    return np.asarray((at >= 0) & (seqs < ends[at]), np.bool_)


def spans_of(seqs: Int64s) -> tuple[Span, ...]:
    """Rising seqs as half-open spans."""
    breaks = np.flatnonzero(np.diff(seqs) != 1) + 1
    return tuple((int(piece[0]), int(piece[-1]) + 1) for piece in np.split(seqs, breaks) if len(piece))


def take_text(values: Sequence[Any], places: Int64s) -> pa.DictionaryArray:
    """`values[places]` as text, coded: no Python object and no string for each row."""
    return pa.array(values, pa.string()).dictionary_encode().take(pa.array(places))
