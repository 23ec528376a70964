"""Choose what to evict when the spool is full: lowest priority first, then oldest; samples in flight last. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EvictionCandidate:
    """An envelope that could be given up."""

    id: int
    cost_bytes: int
    priority: int
    is_in_flight: bool


@dataclass(frozen=True, slots=True)
class Eviction:
    """The decision: which envelopes go, and how many bytes that frees."""

    ids: tuple[int, ...]
    freed_bytes: int


def choose_victims(candidates: Iterable[EvictionCandidate], need_bytes: int, incoming_priority: int) -> Eviction:
    """Choose what goes so that `need_bytes` become free, or as much as may be.

    Nothing goes that is worth more than what comes in: an incoming batch of low priority is then itself given up.

    Args:
        candidates: in order of value, the least first (priority, then age).
        need_bytes: how much must become free.
        incoming_priority: the priority of what comes in.
    """
    worth_less = [candidate for candidate in candidates if candidate.priority <= incoming_priority]
    chosen: list[int] = []
    freed_bytes = 0
    for candidate in sorted(worth_less, key=lambda candidate: candidate.is_in_flight):
        if freed_bytes >= need_bytes:
            break
        chosen.append(candidate.id)
        freed_bytes += candidate.cost_bytes
    return Eviction(tuple(chosen), freed_bytes)
