"""Settle one work item: each fresh sample becomes a row of a stream's table or of quarantine, also where our own code fails.

    decode each envelope -> put equal ones together -> conform -> reasons -> payloads -> tags -> files

The reasons of refusals are counted by kind, without values of samples.

Where our own code fails, the messages are halved until single ones fail, and those by their seqs, in trial passes whose files
the last pass replaces. What is refused keeps its bytes (stage `fault`), so that it can be replayed once the fault is fixed.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import structlog

from pipelines.bridge.rows import KIND_REPORTED, KIND_UP
from pipelines.bridge.segment import read_segment
from pipelines.errors import PipelineError
from pipelines.ingest.admit import FreshSpans
from pipelines.ingest.decode import NEVER_SET, DecodeError, Rows, correct_times, decode
from pipelines.ingest.messages import Group, GroupEnvelope, Message, messages
from pipelines.ingest.plan import Pins, SegmentRef, read_pins, read_report, segment_path
from pipelines.ingest.quarantine import (
    BODY_JSON,
    PRIVATE,
    STAGE_CONTRACT,
    STAGE_DECODE,
    STAGE_FAULT,
    STAGE_HEAD,
    STAGE_REPORT,
    Rejection,
    rejections_table,
)
from pipelines.ingest.tabulate import Target, write_group
from pipelines.ingest.work import Faults, ItemResult, RefusalCount, Settled, Work
from pipelines.lake.files import NewFile, write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import QUARANTINE, stream_table
from pipelines.lake.quarantined import kind_of
from schemas.contract import Contract
from schemas.ranges import Ranges
from schemas.receipts import MAX_REASON_CHARS

log = structlog.get_logger(__name__)

GroupKey = tuple[str, str, pa.Schema]

MAX_KINDS = 16
OTHERS = "other reasons"

_kind = lru_cache(maxsize=4_096)(kind_of)
MAX_PROBES = 400


def settle_item(lake: Lake, work: Work, tell: Callable[[int, int], None] | None = None) -> ItemResult:
    """Settle every fresh sample of the item and write its files.

    Args:
        lake: the lake.
        work: the item.
        tell: told the place (segment, message) of each message before it is opened.

    Raises:
        CorruptLakeError: a segment or the rules are not what was written.
        OSError: the disk refused.
    """
    settler = Settler(lake, work)
    poison = frozenset(work.poison)
    for place, message, fresh_spans in _placed(lake, work):
        if place in poison:
            settler.refuse(message, fresh_spans, STAGE_DECODE, "the body ends the process that reads it")
            continue
        if tell is not None:
            tell(*place)
        settler.take(message, fresh_spans)
        if tell is not None:
            settler.flush()  # a caller that asks for names wants to know which message a death came of
    settler.refuse_unadmitted()
    return settler.finish()


def unsettled(lake: Lake, work: Work) -> Iterator[tuple[Message, FreshSpans]]:
    """The messages of an item with their fresh seqs, in order."""
    for _place, message, fresh_spans in _placed(lake, work):
        yield message, fresh_spans


def _placed(lake: Lake, work: Work) -> Iterator[tuple[tuple[int, int], Message, FreshSpans]]:
    for index, (segment, fresh_by_place) in enumerate(zip(work.segments, work.fresh_by_place, strict=True)):
        place = 0
        # Its checksums were checked when it was planned or resumed, a moment ago.
        for batch in read_segment(_local_segment(lake, segment), checked=work.remote is None):
            for message in messages(batch):
                yield (index, place), message, fresh_by_place[place]
                place += 1


class Settler:
    """Collects envelopes until a group is large enough to be written."""

    def __init__(self, lake: Lake, work: Work) -> None:
        self._work = work
        self._lake = lake
        self._pins = _pins(lake, work.pins)
        self._groups: dict[GroupKey, Group] = {}
        self._parts: Counter[str] = Counter()
        self._bytes = 0
        self._files: list[NewFile] = []
        self._rejections: list[Rejection] = []
        self._rejected_bytes = 0
        self._committed: Counter[tuple[str, str]] = Counter()
        self._quarantined: Counter[tuple[str, str]] = Counter()
        self._messages = 0
        self._faults = Faults()
        self._refusals = RefusalTally()

    def take(self, message: Message, fresh_spans: FreshSpans) -> None:
        """Take one message in."""
        if message.kind == KIND_UP:
            if fresh_spans:
                self._messages += 1
                self._take_envelope(message, fresh_spans)
        elif message.kind == KIND_REPORTED:
            report = read_report(message.batch, message.row)
            if isinstance(report, str):
                self._reject(message.rejected(STAGE_REPORT, report, None, 1), stream="")
        else:
            self._reject(message.rejected(STAGE_HEAD, message.refusal or "refused", None, 1), stream="")

    def refuse(self, message: Message, fresh_spans: FreshSpans, stage: str, reason: str, *, is_whole: bool = True) -> None:
        """Refuse these seqs of a message without opening its body, for our own code fails on it, or ends of it.

        Args:
            message: the message.
            fresh_spans: which of its seqs.
            stage: what it is refused at.
            reason: why.
            is_whole: whether nothing else of the message is settled.
        """
        if message.kind == KIND_UP and fresh_spans:
            self._reject_whole(message, fresh_spans, stage, reason)
            if is_whole:
                self._messages += 1
                devices = tuple(sorted({*self._faults.devices, message.device or ""}))
                self._faults = Faults(self._faults.refused + 1, devices, self._faults.reason or kind_of(reason))
        elif message.kind != KIND_UP:
            self._reject(message.rejected(STAGE_REPORT, reason, None, 1), stream="")

    def refuse_unadmitted(self) -> None:
        """Quarantine the envelopes of which admission lets nothing, or not all, become rows."""
        wanted = {(one.segment, one.message): one for one in self._work.unadmitted}
        if not wanted:
            return
        for place, message, _fresh_spans in _placed(self._lake, self._work):
            one = wanted.get(place)
            if one is not None and one.spans:
                self._reject_whole(message, one.spans, one.stage, one.reason)
            elif one is not None:
                self._reject(message.rejected(one.stage, one.reason, None, message.samples), stream="")

    def finish(self) -> ItemResult:
        """Write what is left."""
        self.flush()
        self._write_rejections()
        keys = sorted({*self._committed, *self._quarantined})
        settled = tuple(Settled(*key, self._committed[key], self._quarantined[key]) for key in keys)
        return ItemResult(
            self._work.item, tuple(self._files), settled, None, self._messages, self._faults, self._refusals.counts()
        )

    def _take_envelope(self, message: Message, fresh_spans: FreshSpans) -> None:
        contract = self._pins.contract(message.stream or "", message.version)
        if contract is None:
            named = f"{message.stream} {message.version or ''}".strip()
            self._reject_whole(message, fresh_spans, STAGE_CONTRACT, f"the core has no contract {named}; add it, then replay")
            return
        if message.clock.is_unknown:
            self._reject_whole(message, fresh_spans, STAGE_CONTRACT, NEVER_SET)
            return
        try:
            rows = correct_times(self._decode(message, contract), message.clock, contract, message.received_us)
        except DecodeError as error:
            self._reject_whole(message, fresh_spans, STAGE_DECODE, str(error))
            return
        fresh = Ranges(fresh_spans)
        for rejected in rows.rejected:
            seq = message.first_seq + rejected.index
            if seq in fresh:
                origin = message.origin()
                self._reject(
                    Rejection(origin, STAGE_CONTRACT, rejected.reason, seq, 1, rejected.raw, BODY_JSON, ((seq, seq + 1),))
                )
        if rows.batch.num_rows:
            self._collect(contract, GroupEnvelope(message, rows, fresh_spans))

    def _decode(self, message: Message, contract: Contract) -> Rows:
        return decode(
            message.body,
            content_type=message.content_type or "",
            encoding=message.encoding,
            count=message.samples,
            first_seq=message.first_seq,
            contract=contract,
            received_us=message.received_us,
            max_bytes=self._work.limits.max_envelope_bytes,
        )

    def _collect(self, contract: Contract, envelope: GroupEnvelope) -> None:
        # Contracts hash by all they say, which is much for one envelope; the pinned object itself names them.
        key = (contract.name, contract.version, envelope.rows.batch.schema)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(contract)
        before = group.bytes
        group.add(envelope)
        self._bytes += group.bytes - before
        if self._bytes >= self._work.limits.flush_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was taken in so far."""
        by_table: dict[tuple[str, str], list[Group]] = {}
        for (stream, version, _), group in self._groups.items():
            by_table.setdefault((stream, version), []).append(group)
        self._groups, self._bytes = {}, 0
        for (stream, _version), groups in sorted(by_table.items()):
            name = f"{self._work.run:012d}-{self._part(stream_table(stream))}.parquet"
            target = Target(self._lake, self._work.run, name, self._pins, self._work.limits)
            written = write_group(groups, target)
            self._files.extend(written.files)
            self._committed.update(written.committed)
            for rejection in written.rejections:
                self._reject(rejection)

    def _reject_whole(self, message: Message, fresh_spans: FreshSpans, stage: str, reason: str) -> None:
        count = sum(high - low for low, high in fresh_spans)
        self._reject(message.rejected(stage, reason, fresh_spans[0][0], count, fresh_spans))

    def _part(self, table: str) -> str:
        """The name of the item's next part of a table."""
        part = self._parts[table]
        self._parts[table] += 1
        return f"{self._work.item}" if part == 0 else f"{self._work.item}.{part}"

    def _write_rejections(self) -> None:
        """Write refusals in pieces: they lie in memory unpacked, and a device that is wrong is wrong often."""
        if self._rejections:
            part = self._part(QUARANTINE)
            table = rejections_table(self._rejections, self._work.run, self._work.at_us, part)
            name = f"{self._work.run:012d}-{part}.parquet"
            self._files.append(write_table_file(self._lake, QUARANTINE, name, table, PRIVATE))
        self._rejections, self._rejected_bytes = [], 0

    def _reject(self, rejection: Rejection, stream: str | None = None) -> None:
        self._rejections.append(rejection)
        self._rejected_bytes += len(rejection.body)
        if self._rejected_bytes >= self._work.limits.flush_bytes:
            self._write_rejections()
        name = rejection.origin.stream or "" if stream is None else stream
        self._quarantined[rejection.origin.device or "", name] += rejection.count
        self._refusals.add(rejection.origin.device or "", name, rejection.reason, rejection.count)


def _local_segment(lake: Lake, segment: SegmentRef) -> Path:
    return lake.local(segment_path(lake, segment))


@lru_cache(maxsize=4)
def _pins(lake: Lake, digest: str) -> Pins:
    return read_pins(lake, digest)


class RefusalTally:
    """Counts refusals by device, stream and kind of reason; beyond `MAX_KINDS` of one stream they are one kind."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Counter[str]] = {}

    def add(self, device: str, stream: str, reason: str, count: int) -> None:
        """Count refused samples. The ledger and receipts show the reason, so numbers, digests and quoted words are left out."""
        if not count:
            return
        tally = self._tallies.setdefault((device, stream), Counter())
        kind = "".join(sign if sign.isprintable() else " " for sign in _kind(reason[:2_000])[:MAX_REASON_CHARS])
        tally[kind if kind in tally or len(tally) < MAX_KINDS else OTHERS] += count

    def counts(self) -> tuple[RefusalCount, ...]:
        """The counts, by device, stream and reason."""
        return tuple(
            RefusalCount(*key, reason, count)
            for key in sorted(self._tallies)
            for reason, count in sorted(self._tallies[key].items())
        )


class Unit(NamedTuple):
    """A message and which of its seqs to settle."""

    message: Message
    fresh_spans: FreshSpans


class Faulty(NamedTuple):
    """A unit on which our own code fails, and how it does."""

    unit: Unit
    reason: str


def settle_around_faults(lake: Lake, work: Work) -> ItemResult:
    """Settle an item whose plain settling failed by a fault of our own.

    Raises:
        PipelineError: as `settle_item`.
        OSError: the disk refused.
        Exception: the fault is not in any sample; nothing can be refused to get around it.
    """
    units = [Unit(message, fresh_spans) for message, fresh_spans in unsettled(lake, work)]
    faulty = {id(one.unit.message): one for one in _Search(lake, work).among(units)}
    for one in faulty.values():
        log.error("fault_isolated", run=work.run, item=work.item, device=one.unit.message.device, stream=one.unit.message.stream,
                  seqs=one.unit.fresh_spans, reason=one.reason)  # fmt: skip
    settler = Settler(lake, work)
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
    def __init__(self, lake: Lake, work: Work) -> None:
        self._lake, self._work = lake, work
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
        settler = Settler(self._lake, self._work)
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
    return f"{fault[:600]}; a fault of the core's own: report it, and replay once it is repaired"


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
