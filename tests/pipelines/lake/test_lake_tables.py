"""Tables: what the storage does not answer is tried again, never a fault of ours."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.errors import RetryLaterError
from pipelines.lake import table
from pipelines.lake.lake import lake_at

SCHEMA = pa.schema([("x", pa.int64())])


class Away:
    """Storage that is a folder, and answers no reader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def where(self, name: str) -> str:
        return str(self.folder / name)

    def table_options(self) -> None:
        return None


def test_a_table_whose_storage_goes_away_just_after_it_was_made_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_root: Path, _name: str) -> Any:
        raise OSError("503 Service Unavailable")

    monkeypatch.setattr(table, "remote_of", lambda _root: Away(tmp_path))
    table.ensure_table(lake_at(tmp_path), "first", SCHEMA)
    monkeypatch.setattr(table, "_open", refuse)
    with pytest.raises(RetryLaterError, match="503"):
        table._create(lake_at(tmp_path), "second", SCHEMA, ())
