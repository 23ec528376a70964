"""Rows are read by Arrow's own access to files: a thread of Arrow that still holds one asks nothing of the interpreter."""

from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from pyarrow import fs

from pipelines.lake.table import dataset_of, files_of


def test_a_table_in_a_folder_is_read_without_python(tmp_path: Path) -> None:
    folder = tmp_path / "a lake" / "50% full"
    rows = pa.table({"a": list(range(1_000))})
    write_deltalake(folder, rows)
    table = DeltaTable(folder)
    found = files_of(table)
    assert isinstance(found, fs.SubTreeFileSystem)
    assert isinstance(found.base_fs, fs.LocalFileSystem)
    assert isinstance(dataset_of(table).filesystem, fs.SubTreeFileSystem)
    assert dataset_of(table).to_table().equals(rows)
