"""Pages of a receipt: each fits, each is a receipt, and together they say what the whole says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import SchemaError
from schemas.ids import StreamName
from schemas.ranges import Ranges
from schemas.receipts import MIN_PAGE_BYTES, Floor, Receipt, RefusedStream, decode_receipt, encode_receipt, receipt_pages

STREAMS = st.from_regex(r"[a-z][a-z0-9_]{0,62}", fullmatch=True)
EPOCHS = st.integers(0, 2**63 - 1).map(str)
SEQS = st.one_of(st.integers(0, 200), st.integers(0, 2**63 - 2))
SPANS = st.lists(st.tuples(SEQS, SEQS), min_size=1, max_size=12).map(lambda found: list(Ranges.of(found).spans))
REFUSED = st.builds(
    RefusedStream, st.integers(1, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.text(max_size=200)
)
RECEIPTS = st.builds(
    Receipt,
    st.integers(0, 2**63 - 1),
    st.dictionaries(STREAMS, st.dictionaries(EPOCHS, SPANS, max_size=4), max_size=4),
    st.dictionaries(STREAMS, st.builds(Floor, EPOCHS, SEQS), max_size=3),
    st.dictionaries(st.one_of(STREAMS, st.just("")), REFUSED, max_size=3),
)


@given(RECEIPTS, st.integers(MIN_PAGE_BYTES, 3_000))
def test_pages_fit_and_together_say_what_the_receipt_says(receipt: Receipt, max_bytes: int) -> None:
    pages = receipt_pages(receipt, max_bytes)
    bodies = [encode_receipt(page) for page in pages]
    assert max(map(len, bodies)) <= max_bytes
    assert [decode_receipt(body) for body in bodies] == pages
    assert [(page.page, page.pages, page.run) for page in pages] == [(n, len(pages), receipt.run) for n in range(len(pages))]
    for stream, epochs in receipt.settled.items():
        for epoch in epochs:
            name = StreamName(stream)
            ranges = [page.ranges(name, int(epoch)) for page in pages]
            assert Ranges.of(span for one in ranges for span in one) == receipt.ranges(name, int(epoch))
            assert sum(one.count for one in ranges) == receipt.ranges(name, int(epoch)).count
    assert {stream: floor for page in pages for stream, floor in page.floors.items()} == receipt.floors
    refused = {stream: one for page in pages for stream, one in page.refused.items()}
    assert refused.keys() == receipt.refused.keys()
    assert all(one.quarantined == receipt.refused[stream].quarantined for stream, one in refused.items())


ALPHA = StreamName("alpha")


def test_the_first_page_settles_the_most_for_a_device_that_knows_of_no_others() -> None:
    spans = [(100 * n, 100 * n + 1 + (50 if n % 10 == 0 else 0)) for n in range(200)]
    first, *others = receipt_pages(Receipt(1, {"alpha": {"7": spans}}), 600)
    assert first.ranges(ALPHA, 7).count > max(page.ranges(ALPHA, 7).count for page in others)


def test_a_page_of_no_room_is_refused_with_the_room_it_needs() -> None:
    receipt = Receipt(1, {"alpha": {"7": [(2 * n, 2 * n + 1) for n in range(100)]}})
    with pytest.raises(SchemaError, match="needs 512 bytes"):
        receipt_pages(receipt, MIN_PAGE_BYTES - 1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"run":1,"settled":{"a":{"7":[[0,9223372036854775808]]}}}',
        b'{"run":1,"settled":{},"floors":{"a":{"epoch":"9223372036854775808","seq":1}}}',
        b'{"run":1,"settled":{},"floors":{"a":{"epoch":"1","seq":-1}}}',
        b'{"run":1,"settled":{},"refused":{"a":{"quarantined":18446744073709551615}}}',
        b'{"run":1,"settled":{},"refused":{"A b":{"quarantined":1}}}',
    ],
)
def test_numbers_and_names_beyond_the_wire_are_refused(body: bytes) -> None:
    with pytest.raises(SchemaError):
        decode_receipt(body)
