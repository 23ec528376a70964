"""A receipt that is larger than a broker takes, as pages: each is a receipt of its own, true without the others.

What is settled stays settled, so pages need no order and no common moment: a device acts on each as it comes. The first page,
which stands in the receipt's place, has the longest ranges: a device that knows nothing of pages settles most by it.
"""

from collections.abc import Iterator

import msgspec

from schemas.errors import SchemaError
from schemas.receipts import Floor, Receipt, RefusedStream, encode_receipt
from schemas.wire_json import encode_json

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
