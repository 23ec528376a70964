"""New files of a table: what Delta is told of their values, and what text looks like in them however it was coded."""

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from pipelines.lake.files import table_stats, write_table_file
from pipelines.lake.lake import lake_at

FLOATS = st.lists(st.none() | st.floats(), max_size=8)
WHOLES = st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=8)


@given(FLOATS, WHOLES)
def test_bounds_are_those_of_the_values_that_are_there(floats: list[float | None], wholes: list[int | None]) -> None:
    for values, type_ in ((floats, pa.float64()), (wholes, pa.int64())):
        column = pa.array(values, type_)
        stats = json.loads(table_stats(pa.table({"value": column})))
        wanted = pc.min_max(column).as_py()
        if wanted["min"] is None or math.isnan(wanted["min"]):
            continue
        assert (stats["minValues"]["value"], stats["maxValues"]["value"]) == (wanted["min"], wanted["max"])
        assert stats["nullCount"]["value"] == column.null_count


def test_coded_text_is_plain_text_in_the_file(tmp_path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([1, 0, None, 1], pa.int32()), ["b", "a"])
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2, 3, 3], pa.int32()), words.slice(0, 3))
    rows = pa.table({"word": pa.chunked_array([words]), "words": pa.chunked_array([lists])})
    file = write_table_file(lake_at(tmp_path), "t", "one.parquet", rows)
    found = pq.ParquetFile(tmp_path / file.path).read()
    assert [field.type for field in found.schema] == [pa.string(), pa.list_(pa.string())]
    assert found.to_pydict() == {"word": ["a", "b", None, "a"], "words": [["a", "b"], [], [None], []]}


def test_no_words_at_all_can_be_written(tmp_path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string()))
    lists = pa.ListArray.from_arrays(pa.array([0, 0, 0], pa.int32()), words)
    file = write_table_file(lake_at(tmp_path), "t", "one.parquet", pa.table({"words": lists}))
    assert pq.ParquetFile(tmp_path / file.path).read().to_pydict() == {"words": [[], []]}
