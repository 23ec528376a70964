"""The core's messages to a device about its samples: receipts, states of large payloads, and share notices.

A receipt confirms that samples are settled. It is the whole truth for one device, retained, so that a device that was away
for a month needs only the last one: ``{"run": 42, "settled": {"camera_frame": {"1797…": [[0, 1200]]}}}``. Epochs are text
because JSON readers in other languages hold numbers as doubles.

A receipt that is larger than the broker takes goes out as pages, each a receipt of its own, true without the others. Settled
samples stay settled, so pages need no order and no common moment: a device acts on each as it comes. The first page, which
stands in the receipt's place, has the longest ranges: a device that knows nothing of pages settles most by it.

An object state tells which bytes of a large payload are durable. A share notice tells a device that it sends more than its
share, and when to go on. Samples over the share are not landed and not settled: the device keeps them, as it keeps all
that has no receipt.
"""

import re
from collections.abc import Iterator

import msgspec

from schemas.errors import SchemaError
from schemas.ids import MAX_EPOCH, MAX_SEQ, Digest, StreamName, encode_json
from schemas.ranges import Ranges

MAX_RECEIPT_BYTES = 16 * 1024 * 1024
MAX_REASON_CHARS = 200
ALL_REFUSED_FROM = 10
"""So many samples in a row make a stream one that the core refuses entirely."""
# One way to write each number: `01` next to `1` would be two entries for one epoch, and `²` is a digit to Unicode.
_EPOCH = re.compile(r"0|[1-9][0-9]{0,18}")

MAX_NOTICE_BYTES = 64 * 1024
MAX_WAIT_MS = 600_000
_MAX_TEXT_CHARS = 500


class Floor(msgspec.Struct, frozen=True):
    """The floor of one stream: the core no longer tells apart the samples below it, in the order of epoch and seq.

    What was settled below it stays settled. A sample below it that is not settled now is settled by quarantine when it comes,
    because it may be a copy of a row; one that the device does not hold is accounted for.
    """

    epoch: str
    seq: int

    def below(self, epoch: int) -> int:
        """Count the seqs of an epoch, from 0 on, that are below the floor."""
        own = int(self.epoch)
        return self.seq if epoch == own else MAX_SEQ if epoch < own else 0


NO_FLOOR = Floor("0", 0)


class RefusedStream(msgspec.Struct, frozen=True, omit_defaults=True):
    """Refusals of one stream of the device.

    Attributes:
        quarantined: samples that are settled and wait in the quarantine.
        committed: samples that became rows, since the device was first heard of.
        in_row: samples refused since one was last accepted.
        reason: the commonest reason; numbers and quoted words are left out of it.
    """

    quarantined: int
    committed: int = 0
    in_row: int = 0
    reason: str = ""

    @property
    def share(self) -> float:
        """The refused share: 1.0 while all samples are refused, else that of all that was settled."""
        if self.is_total:
            return 1.0
        settled = self.quarantined + self.committed
        return self.quarantined / settled if settled else 0.0

    @property
    def is_total(self) -> bool:
        """Whether the core refuses everything: it never accepted a sample, or has not for a while."""
        return self.quarantined > 0 and (self.in_row >= ALL_REFUSED_FROM or self.committed == 0)


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=False, omit_defaults=True):
    """Settled samples of one device after run `run`: stream -> epoch (as text) -> half-open seq ranges.

    Attributes:
        floors: of the streams that have one.
        refused: of the streams with samples in the quarantine; "" stands for messages that named no stream.
        page: which page this is; 0: the receipt itself.
        pages: how many there are, the receipt itself included.
    """

    run: int
    settled: dict[str, dict[str, list[tuple[int, int]]]]
    floors: dict[str, Floor] = {}
    refused: dict[str, RefusedStream] = {}
    page: int = 0
    pages: int = 1

    def floor(self, stream: str) -> Floor:
        """The floor of a stream."""
        return self.floors.get(stream, NO_FLOOR)

    def ranges(self, stream: StreamName, epoch: int) -> Ranges:
        """The settled seqs of one epoch."""
        return Ranges.of(self.settled.get(stream, {}).get(str(epoch), []))


class ObjectState(msgspec.Struct, frozen=True):
    """The core's answer about one large payload: `have` lists the durable byte ranges, `settled` that all is there and true.

    `error` says why a whole payload was refused (the hash differs): the device must send it again from its start.
    `wait_ms`, where there is one, says that the last parts were not taken for want of room, for the `reason` given: the device
    keeps what `have` says, and goes on after so long.
    """

    digest: str
    total: int
    have: list[tuple[int, int]]
    settled: bool = False
    error: str = ""
    wait_ms: int | msgspec.UnsetType = msgspec.UNSET  # absent on the wire where the parts were taken
    reason: str | msgspec.UnsetType = msgspec.UNSET


def encode_receipt(receipt: Receipt) -> bytes:
    """The JSON bytes to publish."""
    return encode_json(receipt)


def decode_receipt(body: bytes) -> Receipt:
    """Read a receipt.

    Raises:
        SchemaError: not a receipt, too large, or a stream name or epoch in it is malformed.
    """
    if len(body) > MAX_RECEIPT_BYTES:
        raise SchemaError(f"receipt of {len(body)} bytes is above the limit of {MAX_RECEIPT_BYTES}")
    try:
        receipt = msgspec.json.decode(body, type=Receipt)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"not a receipt: {error}") from error
    for stream, epochs in receipt.settled.items():
        StreamName(stream)
        for epoch, spans in epochs.items():
            _check_epoch(stream, epoch)
            if any(high > MAX_SEQ for _, high in Ranges.of(spans)):
                raise SchemaError(f"receipt for {stream}: a range ends above 2^63-1")
    for stream, floor in receipt.floors.items():
        _check_epoch(StreamName(stream), floor.epoch)
        _check_number(stream, floor.seq)
    for stream, refused in receipt.refused.items():
        if stream:
            StreamName(stream)
        for figure in (refused.quarantined, refused.committed, refused.in_row):
            _check_number(stream, figure)
    return receipt


def _check_number(stream: str, number: int) -> None:
    if not 0 <= number <= MAX_SEQ:
        raise SchemaError(f"receipt for {stream}: {number} is not within 0 and 2^63-1")


def _check_epoch(stream: str, epoch: str) -> None:
    if not _EPOCH.fullmatch(epoch) or int(epoch) > MAX_EPOCH:
        raise SchemaError(f"receipt for {stream}: epoch {epoch[:40]!r} is not a decimal number below 2^63")


def encode_object_state(state: ObjectState) -> bytes:
    """The JSON bytes to publish."""
    return encode_json(state)


def decode_object_state(body: bytes) -> ObjectState:
    """Read an object state.

    Raises:
        SchemaError: not an object state, or its digest is malformed.
    """
    try:
        state = msgspec.json.decode(body[:MAX_RECEIPT_BYTES], type=ObjectState)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"not an object state: {error}") from error
    Digest(state.digest)
    return state


MIN_PAGE_BYTES = 512
_FRAME = len(encode_receipt(Receipt(2**63 - 1, {}, page=2**31, pages=2**31))) + len(b',"floors":{},"refused":{}')
_Item = tuple[str, str, str, Floor | RefusedStream | tuple[int, int], int]
_FLOOR, _REFUSED, _RANGE = "floor", "refused", "range"


def receipt_pages(receipt: Receipt, max_bytes: int) -> list[Receipt]:
    """The receipt as it is if it fits, else as pages that do.

    Args:
        receipt: not a page.
        max_bytes: how long an encoded page may be.

    Raises:
        SchemaError: not even a page of one entry would fit.
    """
    if len(encode_receipt(receipt)) <= max_bytes:
        return [receipt]
    if max_bytes < MIN_PAGE_BYTES:
        raise SchemaError(f"a page of a receipt needs {MIN_PAGE_BYTES} bytes; {max_bytes} are too few")
    drafts: list[_Draft] = [_Draft()]
    for item in _items(receipt, max_bytes):
        if not drafts[-1].takes(item, max_bytes):
            drafts.append(_Draft())
            drafts[-1].takes(item, max_bytes)
    pages = len(drafts)
    return [draft.page(receipt.run, number, pages) for number, draft in enumerate(drafts)]


class _Draft:
    """A page that is being filled."""

    def __init__(self) -> None:
        self._size = _FRAME
        self._settled: dict[str, dict[str, list[tuple[int, int]]]] = {}
        self._floors: dict[str, Floor] = {}
        self._refused: dict[str, RefusedStream] = {}

    def takes(self, item: _Item, max_bytes: int) -> bool:
        """Put an entry on the page if there is room."""
        kind, stream, epoch, value, size = item
        if kind == _RANGE:
            epochs = self._settled.get(stream)
            size += 0 if epochs is not None else len(stream) + len('"":{},')
            size += 0 if epochs is not None and epoch in epochs else len(epoch) + len('"":[],')
        if self._size + size > max_bytes:
            return False
        self._size += size
        if isinstance(value, Floor):
            self._floors[stream] = value
        elif isinstance(value, RefusedStream):
            self._refused[stream] = value
        else:
            self._settled.setdefault(stream, {}).setdefault(epoch, []).append(value)
        return True

    def page(self, run: int, number: int, pages: int) -> Receipt:
        """The page, its ranges in order."""
        for epochs in self._settled.values():
            for spans in epochs.values():
                spans.sort()
        return Receipt(run, self._settled, self._floors, self._refused, number, pages)


def _items(receipt: Receipt, max_bytes: int) -> Iterator[_Item]:
    for stream, floor in sorted(receipt.floors.items()):
        yield _FLOOR, stream, "", floor, len(encode_json({stream: floor}))
    for stream, refused in sorted(receipt.refused.items()):
        # Escaped signs may make a short reason long; the figures matter more.
        is_long = _FRAME + len(encode_json({stream: refused})) > max_bytes
        entry = msgspec.structs.replace(refused, reason="") if is_long else refused
        yield _REFUSED, stream, "", entry, len(encode_json({stream: entry}))
    ranges = (
        (low - high, -int(epoch), stream, low, epoch, high)
        for stream, epochs in receipt.settled.items()
        for epoch, spans in epochs.items()
        for low, high in spans
    )
    for _length, _age, stream, low, epoch, high in sorted(ranges):
        yield _RANGE, stream, epoch, (low, high), len(f"[{low},{high}],")


class ShareNotice(msgspec.Struct, frozen=True):
    """The share that a device exceeds, and what to do.

    Attributes:
        limit: bytes, messages, streams or disk.
        reason: the same as a sentence.
        wait_ms: send nothing for so long; 0: go on.
        bytes_per_s: what may be sent on average from then on; 0: no limit of its own.
        deferred: messages that were not landed since the device went over its share.
    """

    limit: str
    reason: str
    wait_ms: int = 0
    bytes_per_s: int = 0
    deferred: int = 0


def encode_share_notice(notice: ShareNotice) -> bytes:
    """The JSON bytes to publish."""
    return encode_json(notice)


def decode_share_notice(body: bytes) -> ShareNotice:
    """Read a notice; a longer wait than `MAX_WAIT_MS` is shortened, and long texts are cut.

    Raises:
        SchemaError: not a notice, or too large.
    """
    if len(body) > MAX_NOTICE_BYTES:
        raise SchemaError(f"share notice of {len(body)} bytes is above the limit of {MAX_NOTICE_BYTES}")
    try:
        notice = msgspec.json.decode(body, type=ShareNotice)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"not a share notice: {error}") from error
    return ShareNotice(
        notice.limit[:_MAX_TEXT_CHARS],
        notice.reason[:_MAX_TEXT_CHARS],
        min(max(notice.wait_ms, 0), MAX_WAIT_MS),
        max(notice.bytes_per_s, 0),
        max(notice.deferred, 0),
    )
