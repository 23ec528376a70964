"""Which files of a lake something refers to, and which nothing does."""

from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable


def files(root: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(root)) for path in root.glob(pattern) if path.is_file()}


def live(root: Path) -> set[str]:
    found: set[str] = set()
    for table in [*root.glob("streams/*"), *root.glob("rollups/*"), root / "quarantine", root / "commits"]:
        if (table / "_delta_log").is_dir():
            opened = DeltaTable(table)
            actions = pa.table(opened.get_add_actions(flatten=True))
            found |= {f"{table.relative_to(root)}/{path}" for path in actions.column("path").to_pylist()}
            if "payload_shard" in {field.name for field in opened.schema().fields}:
                found |= set(pa.table(opened.to_pyarrow_table(columns=["payload_shard"])).column(0).to_pylist())
    return found - {None}


def orphans(root: Path) -> set[str]:
    present = files(root, "streams/*/*.parquet") | files(root, "payload/*/*.parquet") | files(root, "rollups/*/*.parquet")
    present |= files(root, "quarantine/*.parquet") | files(root, "commits/*.parquet") | files(root, "**/.*.tmp")
    return present - live(root)
