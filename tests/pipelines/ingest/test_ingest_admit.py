from hypothesis import given
from hypothesis import strategies as st

from pipelines.ingest.admit import Dropped, Head, admit
from pipelines.lake.books import EpochKey
from schemas.ranges import Ranges

KEYS = st.sampled_from([EpochKey("a", "s", 1), EpochKey("a", "s", 2), EpochKey("b", "s", 1)])
HEADS = st.builds(Head, KEYS, st.integers(0, 40), st.integers(1, 12))
SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=3).map(
    lambda found: Ranges.of((low, low + size) for low, size in found)
)
DROPS = st.builds(Dropped, KEYS, SPANS.map(lambda ranges: ranges.spans))


@given(st.lists(st.one_of(HEADS, DROPS), max_size=30), st.dictionaries(KEYS, SPANS, max_size=3))
def test_admission_agrees_with_a_set_of_all_samples(arrivals: list[Head | Dropped], settled: dict[EpochKey, Ranges]) -> None:
    model = {(key, seq) for key, ranges in settled.items() for low, high in ranges for seq in range(low, high)}
    admission = admit(arrivals, settled)
    for arrival, verdict in zip(arrivals, admission.verdicts, strict=True):
        spans = ((arrival.first_seq, arrival.first_seq + arrival.samples),) if isinstance(arrival, Head) else arrival.spans
        claimed = {(arrival.key, seq) for low, high in spans for seq in range(low, high)}
        assert {(arrival.key, seq) for low, high in verdict for seq in range(low, high)} == claimed - model
        model |= claimed
    after = {**settled, **admission.touched}
    assert {(key, seq) for key, ranges in after.items() for low, high in ranges for seq in range(low, high)} == model


def test_envelopes_in_order_stay_one_range() -> None:
    key = EpochKey("a", "s", 1)
    admission = admit([Head(key, number * 10, 10) for number in range(1_000)], {})
    assert admission.touched[key].spans == ((0, 10_000),)
