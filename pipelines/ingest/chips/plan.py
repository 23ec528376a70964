"""What waits to be cut, and what cut n sets out to do. No IO.

A request names slides by their run or their keys, never where their bytes lie: that is looked up when a plan is made, because
compaction moves them. Chip specs are taken from the contract of that moment.
"""

from typing import NamedTuple

import msgspec

from pipelines.imaging.store import SlideRef

APP = "chips"
MAX_SLIDES = 64
MAX_PLAN_BYTES = 64 * 1024 * 1024


class SlideKey(NamedTuple):
    """The key of a slide's row within its stream."""

    device: str
    epoch: int
    seq: int


class CutRequest(msgspec.Struct, frozen=True):
    """Cut these slides of a stream.

    Attributes:
        stream: whose.
        run: all slides that this run committed; 0: those in `keys`.
        keys: the slides, where no run is named.
        specs: names of the chip specs; empty: all that the contract has.
    """

    stream: str
    run: int = 0
    keys: tuple[SlideKey, ...] = ()
    specs: tuple[str, ...] = ()


class RefusedSlide(msgspec.Struct, frozen=True):
    """A slide that cannot be cut by one spec, and why."""

    slide: SlideRef
    reason: str


class CutPlan(msgspec.Struct, frozen=True):
    """What cut `cut` does: some slides of a request, each with one spec. It is there only until the cut is committed.

    Attributes:
        cut: its number.
        planned_at_us: microseconds since 1970.
        request: file name of the request.
        slides: what is cut.
        refused: slides that cannot even be looked at.
        after: the last slide of the request that this plan covers.
    """

    cut: int
    planned_at_us: int
    request: str
    slides: tuple[SlideRef, ...]
    refused: tuple[RefusedSlide, ...]
    after: SlideKey


class LastCut(msgspec.Struct, frozen=True):
    """The last committed cut, and how far it got with its request."""

    cut: int = 0
    request: str = ""
    after: SlideKey | None = None


def portion(slides: list[SlideRef]) -> list[SlideRef]:
    """The first slides that make a plan: some small ones, or one large one; all specs of a slide stay together."""
    chosen: list[SlideRef] = []
    size = 0
    for place, slide in enumerate(slides):
        is_new = place == 0 or slides[place - 1].key != slide.key
        if chosen and is_new and (len(chosen) >= MAX_SLIDES or size + slide.length > MAX_PLAN_BYTES):
            break
        chosen.append(slide)
        size += slide.length if is_new else 0
    return chosen


def key_of(slide: SlideRef) -> SlideKey:
    """The slide's key without its stream."""
    return SlideKey(str(slide.key.device), slide.key.epoch, slide.key.seq)
