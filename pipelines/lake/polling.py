"""Listings that are looked at often: in a bucket each costs a request, so only every hundredth look makes one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pipelines.lake.lake import Lake

T = TypeVar("T")

# For the life of the process, by lake root and what is listed: how often it was looked at since the listing, and what was found.
_kept: dict[tuple[Path, str], tuple[int, list[Any]]] = {}


def polled(lake: Lake, what: str, listing: Callable[[], list[T]]) -> list[T]:
    """What a listing finds, or found a while ago where listings cost requests.

    Raises:
        RetryLaterError: the storage is unavailable.
    """
    looks, found = _kept.get((lake.root, what), (0, []))
    if looks % lake.store.looks_per_listing == 0:
        found = listing()
    _kept[lake.root, what] = (looks + 1, found)
    return found


def poll_again(lake: Lake, what: str) -> None:
    """Let the next look be a listing, however short ago the last one was."""
    _kept.pop((lake.root, what), None)
