"""A lake as its readers see it, by the public names."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import catchment
from pipelines.errors import NotFoundError, PipelineError
from tests.plant.core import Core, MakeEnvelope


def test_a_lake_is_read_by_stream_condition_and_version(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 50)])
    core.run()
    lake = catchment.open_lake(core.root)
    assert lake.streams() == ["vehicle_telemetry"]
    found = lake.rows("vehicle_telemetry", columns=["device", "speed_mps"], where="speed_mps > 30")
    assert found.column_names == ["device", "speed_mps"]
    assert found.num_rows == sum(n % 40 > 30 for n in range(50))
    assert lake.scan("vehicle_telemetry").select(pl.len()).collect().item() == 50
    assert lake.rows("vehicle_telemetry").num_rows == 50
    assert lake.sets() == []
    assert "vehicle_telemetry" in repr(lake)
    assert "vehicle_telemetry" in lake._repr_html_()


@pytest.mark.parametrize(
    ("stream", "more"),
    [("nothing", {}), ("../runs", {}), ("vehicle_telemetry", {"version": 99}), ("vehicle_telemetry", {"columns": ["speed"]}),
     ("vehicle_telemetry", {"where": "speed_mps >"})],
)  # fmt: skip
def test_what_is_not_there_is_an_error_that_names_it(
    core: Core, envelope: MakeEnvelope, stream: str, more: dict[str, Any]
) -> None:
    core.landing.seal([envelope(0, 5)])
    core.run()
    with pytest.raises(PipelineError):
        catchment.open_lake(core.root).rows(stream, **more)


def test_a_lake_that_is_none_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        catchment.open_lake(tmp_path / "none")
