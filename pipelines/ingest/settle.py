"""Settle one work item: its fresh samples become rows of stream tables or rows of quarantine, each exactly one of both.

    decode each envelope -> put equal ones together -> conform -> reasons -> payloads -> tags -> files

The reasons of refusals are counted by kind, without values of samples.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa

from pipelines.bridge.rows import KIND_REPORTED, KIND_UP
from pipelines.bridge.segment import read_segment
from pipelines.ingest.admit import FreshSpans
from pipelines.ingest.decode import NEVER_SET, DecodeError, Rows, correct_times, decode
from pipelines.ingest.messages import Group, GroupEnvelope, Message, messages
from pipelines.ingest.plan import Pins, SegmentRef
from pipelines.ingest.plan_files import read_pins, read_report, segment_path
from pipelines.ingest.quarantine import (
    BODY_JSON,
    PRIVATE,
    STAGE_CONTRACT,
    STAGE_DECODE,
    STAGE_HEAD,
    STAGE_REPORT,
    Rejection,
    rejections_table,
)
from pipelines.ingest.tabulate import Target, write_group
from pipelines.ingest.work import Faults, ItemResult, RefusalCount, Settled, Work
from pipelines.lake.files import NewFile, write_table_file
from pipelines.lake.lake import lake_at
from pipelines.lake.layout import QUARANTINE, stream_table
from pipelines.lake.quarantined import kind_of
from schemas.contract import Contract
from schemas.ranges import Ranges
from schemas.receipts import MAX_REASON_CHARS

GroupKey = tuple[str, str, pa.Schema]


MAX_KINDS = 16
OTHERS = "other reasons"

_kind = lru_cache(maxsize=4_096)(kind_of)


def settle_item(work: Work, tell: Callable[[int, int], None] | None = None) -> ItemResult:
    """Settle every fresh sample of the item and write its files.

    Args:
        work: the item.
        tell: told the place (segment, message) of each message before it is opened.

    Raises:
        CorruptLakeError: a segment or the rules are not what was written.
        OSError: the disk refused.
    """
    settler = Settler(work)
    poison = frozenset(work.poison)
    for place, message, fresh_spans in _placed(work):
        if place in poison:
            settler.refuse(message, fresh_spans, STAGE_DECODE, "the body ends the process that reads it")
            continue
        if tell is not None:
            tell(*place)
        settler.take(message, fresh_spans)
        if tell is not None:
            settler.flush()  # whoever asks for names wants to know which message a death came of
    settler.refuse_unadmitted()
    return settler.finish()


def unsettled(work: Work) -> Iterator[tuple[Message, FreshSpans]]:
    """The messages of an item with their fresh seqs, in order."""
    for _place, message, fresh_spans in _placed(work):
        yield message, fresh_spans


def _placed(work: Work) -> Iterator[tuple[tuple[int, int], Message, FreshSpans]]:
    for index, (segment, fresh_by_place) in enumerate(zip(work.segments, work.fresh_by_place, strict=True)):
        place = 0
        # Its checksums were checked when it was planned or resumed, a moment ago.
        for batch in read_segment(_local_segment(work, segment), checked=work.remote is None):
            for message in messages(batch):
                yield (index, place), message, fresh_by_place[place]
                place += 1


class Settler:
    """Collects envelopes until a group is large enough to be written."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._lake = lake_at(Path(work.root))
        self._pins = _pins(work.root, work.pins)
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
        for place, message, _fresh_spans in _placed(self._work):
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


def _local_segment(work: Work, segment: SegmentRef) -> Path:
    return lake_at(Path(work.root)).local(segment_path(lake_at(Path(work.root)), segment))


@lru_cache(maxsize=4)
def _pins(root: str, digest: str) -> Pins:
    return read_pins(lake_at(Path(root)), digest)


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
