"""When our own code fails on an item: find the samples it fails on, refuse those alone, settle all others.

The messages are halved until single ones fail, and those by their seqs, in trial passes whose files the last pass replaces.
What is refused keeps its bytes (stage `fault`), so that it can be replayed once the fault is mended.
"""

import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from pipelines.bridge.rows import KIND_UP
from pipelines.errors import PipelineError
from pipelines.ingest.admit import FreshSpans
from pipelines.ingest.messages import Message
from pipelines.ingest.quarantine import STAGE_FAULT
from pipelines.ingest.settle import Settler, unsettled
from pipelines.ingest.work import ItemResult, Work
from schemas.ranges import Ranges

MAX_PROBES = 400
log = structlog.get_logger(__name__)


class Unit(NamedTuple):
    """A message and which of its seqs to settle."""

    message: Message
    fresh_spans: FreshSpans


class Faulty(NamedTuple):
    """A unit on which our own code fails, and how it does."""

    unit: Unit
    reason: str


def settle_around_faults(work: Work) -> ItemResult:
    """Settle an item whose plain settling failed by a fault of our own.

    Raises:
        PipelineError: as `settle_item`.
        OSError: the disk refused.
        Exception: the fault is not in any sample; nothing can be refused to get around it.
    """
    units = [Unit(message, fresh_spans) for message, fresh_spans in unsettled(work)]
    faulty = {id(one.unit.message): one for one in _Search(work).among(units)}
    for one in faulty.values():
        log.error("fault_isolated", run=work.run, item=work.item, device=one.unit.message.device, stream=one.unit.message.stream,
                  seqs=one.unit.fresh_spans, reason=one.reason)  # fmt: skip
    settler = Settler(work)
    for message, fresh_spans in units:
        if id(message) in faulty:
            refused = faulty[id(message)]
            sound = _without(fresh_spans, refused.unit.fresh_spans)
            settler.refuse(message, refused.unit.fresh_spans, STAGE_FAULT, _reason(refused.reason), is_whole=not sound)
            if sound:
                settler.take(message, sound)
        else:
            settler.take(message, fresh_spans)
        if not faulty:
            settler.flush()  # each alone is sound, only together they are not
    settler.refuse_unadmitted()
    return settler.finish()


class _Search:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._probes = 0

    def among(self, units: Sequence[Unit]) -> list[Faulty]:
        """The faulty ones; `units` together are known, or supposed, to fail."""
        if len(units) == 1:
            return [self._within(units[0])] if self._fault(units) else []
        found: list[Faulty] = []
        for half in _halves(units):
            if half and self._fault(half):
                found += self.among(half)
        return found

    def _within(self, unit: Unit) -> Faulty:
        """The smallest span of a faulty message's seqs that fails; all of it if its first and last both do."""
        reason = self._fault([unit]) or "fails sometimes"
        while unit.message.kind == KIND_UP and _samples(unit.fresh_spans) > 1:
            fresh_by_place = _split(unit.fresh_spans)
            failing = [
                (fresh_spans, fault)
                for fresh_spans in fresh_by_place
                if (fault := self._fault([Unit(unit.message, fresh_spans)]))
            ]
            if len(failing) != 1:
                break
            fresh_spans, reason = failing[0]
            unit = Unit(unit.message, fresh_spans)
        return Faulty(unit, reason)

    def _fault(self, units: Sequence[Unit]) -> str:
        self._probes += 1
        if self._probes > MAX_PROBES:
            return "not told apart from its neighbours, which fail too often"
        settler = Settler(self._work)
        return fault_of(lambda: _settle(settler, units))


def fault_of(work: Callable[[], None]) -> str:
    """Return the internal error that `work` fails of; "" if it does not. Other errors pass: they are not the samples' doing."""
    try:
        work()
    except (PipelineError, OSError):
        raise
    except Exception as error:  # noqa: BLE001  # any other class is a fault by definition
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error} (at {where.name}, line {where.lineno})"
    return ""


def _settle(settler: Settler, units: Sequence[Unit]) -> None:
    for message, fresh_spans in units:
        settler.take(message, fresh_spans)
    settler.flush()


def _reason(fault: str) -> str:
    return f"{fault[:600]}; a fault of the core's own: report it, and replay once it is mended"


def _halves(units: Sequence[Unit]) -> tuple[Sequence[Unit], Sequence[Unit]]:
    return units[: len(units) // 2], units[len(units) // 2 :]


def _samples(fresh_spans: FreshSpans) -> int:
    return sum(high - low for low, high in fresh_spans)


def _split(fresh_spans: FreshSpans) -> tuple[FreshSpans, FreshSpans]:
    """Two halves of equal counts."""
    left = _samples(fresh_spans) // 2
    first: list[tuple[int, int]] = []
    for index, (low, high) in enumerate(fresh_spans):
        if high - low < left:
            first.append((low, high))
            left -= high - low
            continue
        middle = low + left
        rest = ((middle, high),) if middle < high else ()
        return (*first, (low, middle)), (*rest, *fresh_spans[index + 1 :])
    return tuple(first), ()


def _without(fresh_spans: FreshSpans, gone: FreshSpans) -> FreshSpans:
    return Ranges(fresh_spans).minus(Ranges(gone)).spans
