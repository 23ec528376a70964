"""Every file of a lake, and every file that something of the lake still refers to: after a vacuum both are the same.

For a lake in a folder and for one in a bucket, which is asked by its working copy.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.bridge.segment import segment_number
from pipelines.ingest.plan import read_plan
from pipelines.lake.commit import committed_run
from pipelines.lake.lake import lake_at
from pipelines.lake.ledger import KEPT_LEDGERS
from pipelines.lake.ledger_files import ledger_bases
from pipelines.lake.remote import remote_of
from pipelines.lake.table import open_table

OWN = ("policies/", "status/", "cache/", "models/", "objects/.parts/")


def every_file(root: Path) -> set[str]:
    remote = remote_of(root)
    if remote is None:
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    import obstore

    from pipelines.lake.remote import store

    return {str(one["path"]) for page in obstore.list(store(remote.config)) for one in page}


def referenced(root: Path) -> set[str]:
    """What the tables' live versions, the runs kept, the sets' manifests and the folders of others name."""
    there = every_file(root)
    found = {name for name in there if name.startswith(OWN) and not name.endswith(".tmp")}
    found |= {name for name in there if name.endswith("/.lock") and name.startswith("landing/")}
    for table in sorted({name.split("/_delta_log/")[0] for name in there if "/_delta_log/" in name}):
        found |= _table(root, table, there)
    found |= _runs(root, there)
    for name in there:
        parts = name.split("/")
        if parts[0] == "sets" and parts[-1] == "manifest.json":
            manifest = json.loads(lake_at(root).read(root / name))
            files = [*manifest["shards"], *manifest["indexes"], *filter(None, [manifest.get("groups")])]
            held = ["manifest.json", "card.html", *(one["path"] for one in files)]
            found |= {"/".join([*parts[:-1], one]) for one in held}
        if parts[0] == "sets" and parts[2] == ".numbers":
            found.add(name)
    return found


def _table(root: Path, table: str, there: set[str]) -> set[str]:
    log = {name for name in there if name.startswith(f"{table}/_delta_log/")}
    found = {
        name
        for name in log
        if name.endswith((".json", ".checkpoint.parquet", "_last_checkpoint", ".crc")) and "/_commit_" not in name
    }
    opened = open_table(lake_at(root), table)
    assert opened is not None
    found |= {f"{table}/{path}" for path in pa.table(opened.get_add_actions(flatten=True)).column("path").to_pylist()}
    columns: list[str] = [
        name for name in ("payload_shard", "zarr_path") if name in {field.name for field in opened.schema().fields}
    ]
    if columns and table.startswith("streams/"):
        rows = pa.table(opened.to_pyarrow_table(columns=columns))
        named = {name for column in columns for name in rows.column(column).to_pylist() if name is not None}
        found |= {name for name in named if not name.endswith(".zarr")}
        found |= {
            name for name in there if any(name.startswith(f"{store}/") for store in named) and not name.endswith(".partial")
        }
    return found


def _runs(root: Path, there: set[str]) -> set[str]:
    last = committed_run(lake_at(root), "commits")
    plan = read_plan(lake_at(root), last)
    cursors: dict[str, Any] = {} if plan is None else plan.next_numbers
    found = {
        name
        for name in there
        if name.startswith(("runs/pins/", "runs/requests/", "runs/stale/", "runs/chips/")) and "/." not in name
    }
    found |= {f"runs/{base:012d}.{kind}.parquet" for base in ledger_bases(lake_at(root), last) for kind in ("ledger", "books")}
    found |= {name for name in there if name.startswith("runs/") and name.endswith((".lock", ".claim"))}
    for name in there:
        parts = name.split("/")
        if parts[0] == "runs" and len(parts) == 2 and parts[1][0].isdigit() and int(parts[1].split(".")[0]) > last - KEPT_LEDGERS:
            found.add(name)
        if parts[0] == "landing" and len(parts) == 3 and parts[2][0] != ".":
            number = segment_number(Path(name))
            if number is not None and number >= cursors.get(parts[1], 1) and parts[1] != ".replay":
                found.add(name)
    return found
