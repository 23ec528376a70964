"""What a trial on the device says of samples is what the core will say."""

import io

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.sources.api import SampleBatch
from edge_agent.trial.result import refusals
from pipelines.contracts.check import conform, reasons
from schemas.contract import Column, ColumnType, Contract, PayloadSpec

CONTRACT = Contract("judged", "1.0.0", (
    Column("n", ColumnType.INT64, required=True, minimum=-5, maximum=5), Column("x", ColumnType.FLOAT64, minimum=0.5),
    Column("s", ColumnType.STRING, max_length=3, allowed=("a", "bcde")), Column("b", ColumnType.BINARY, max_length=2),
    Column("l", ColumnType.LIST_FLOAT64, max_length=2), Column("v", ColumnType.VECTOR_FLOAT64, length=2),
    Column("p", ColumnType.STRUCT, fields=(
        Column("q", ColumnType.FLOAT64, required=True, maximum=1), Column("t", ColumnType.STRING),
    )),
), PayloadSpec(("image/jpeg",), 3))  # fmt: skip
FLOATS = st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0, float("nan"), float("inf")])
ROWS = st.fixed_dictionaries({
    "n": st.none() | st.integers(-7, 7), "x": FLOATS, "s": st.none() | st.sampled_from(["a", "bcde", "ü", ""]),
    "b": st.none() | st.binary(max_size=3), "l": st.none() | st.lists(FLOATS, max_size=3),
    "v": st.none() | st.lists(FLOATS, max_size=3),
    "p": st.none() | st.fixed_dictionaries({"q": FLOATS, "t": st.none() | st.text(max_size=2)}),
})  # fmt: skip
TIMES = st.sampled_from([0, 631_152_000_000_000, 1_714_521_600_000_000, 4_102_444_800_000_000])


@given(st.lists(st.tuples(ROWS, TIMES, st.none() | st.binary(max_size=4)), min_size=1, max_size=6))
def test_the_reasons_of_a_trial_are_those_of_the_core(samples: list[tuple[dict[str, object], int, bytes | None]]) -> None:
    columns = {name: [row[name] for row, _, _ in samples] for name in samples[0][0]}
    batch = SampleBatch([time for _, time, _ in samples], columns, [payload for _, _, payload in samples])  # type: ignore[arg-type]
    envelopes = Encoder(CONTRACT, BatchLimits(1 << 20, 1 << 20), lambda _: None).encode(batch, 0)  # type: ignore[arg-type,return-value]
    tables = [conform(pa.ipc.open_stream(io.BytesIO(envelope.body)).read_all(), CONTRACT) for envelope in envelopes]
    assert refusals(batch, CONTRACT) == reasons(pa.concat_tables(tables), CONTRACT).to_pylist()
