"""Tables: what the storage does not answer is tried again, never a fault of ours."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.errors import PipelineError, RetryLaterError
from pipelines.lake import table
from pipelines.lake.lake import Lake
from pipelines.lake.store import LocalStore

SCHEMA = pa.schema([("x", pa.int64())])


class Unavailable(LocalStore):
    """Storage that is a folder, and answers no reader, as a bucket may."""

    def table_error(self, name: str, error: Exception) -> PipelineError:
        return RetryLaterError(f"{name}: {error}")


def test_a_table_whose_storage_goes_away_just_after_it_was_made_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_lake: Lake, _name: str) -> Any:
        raise OSError("503 Service Unavailable")

    lake = Lake(Unavailable(tmp_path))
    table.ensure_table(lake, "first", SCHEMA)
    monkeypatch.setattr(table, "_open", refuse)
    with pytest.raises(RetryLaterError, match="503"):
        table._create(lake, "second", SCHEMA, ())
