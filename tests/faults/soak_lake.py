"""What the lake holds at the end of a soak: each row of the table that the agent read, once, and as it was."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable

from pipelines.ingest.loop import load_state
from pipelines.lake.lake import lake_at
from pipelines.maintenance.maintain import maintain
from pipelines.maintenance.vacuum import Keep
from tests.fakes.lake_files import orphans

STREAM = "vehicle_telemetry"
DEVICE = "soak-1"
START_US = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z, the table's first row
ROW_US = 1_000
SPEEDS = 40


def table_text(samples: int) -> str:
    """The CSV that the agent replays: row n is numbered n."""
    rows = "".join(f"{n * ROW_US / 1e6:.3f},{n},{n % SPEEDS}\n" for n in range(samples))
    return "t_s,frame,speed_mps\n" + rows


@dataclass
class Found:
    """Rows of the lake against rows of the table, and the books of the last run."""

    rows: int
    lost: int
    double: int
    wrong: int
    committed: int
    quarantined: int
    received: int
    duplicate: int
    is_balanced: bool
    runs: int
    epochs: int
    orphans: int


def commits(lake: Path) -> int:
    """How many entries the log of the commits table has."""
    log = lake / "commits" / "_delta_log"
    return sum(path.suffix == ".json" for path in log.iterdir()) if log.is_dir() else 0


def rows_committed(lake: Path) -> int:
    """By the statistics of the stream's files."""
    if not (lake / "streams" / STREAM / "_delta_log").is_dir():
        return 0
    actions = pa.table(DeltaTable(lake / "streams" / STREAM).get_add_actions(flatten=True))
    return sum(actions.column("num_records").to_pylist())


def look(lake: Path, samples: int) -> Found:
    """Compact and vacuum the lake, then compare every row of it."""
    maintain(lake_at(lake), Keep(0, 0, 0, 0, 0))
    rows = DeltaTable(lake / "streams" / STREAM).to_pyarrow_table(columns=["epoch", "seq", "event_time", "frame", "speed_mps"])
    keys = rows.group_by(["epoch", "seq"]).aggregate([])
    number = rows.column("frame").to_numpy()
    at_us = rows.column("event_time").cast(pa.int64()).to_numpy()
    right = (at_us == START_US + number * ROW_US) & (rows.column("speed_mps").to_numpy() == number % SPEEDS)
    counts = np.bincount(number[(number >= 0) & (number < samples)], minlength=samples)
    state = load_state(lake_at(lake))
    books = state.ledger.books[DEVICE, STREAM]
    return Found(
        rows=rows.num_rows,
        lost=int((counts == 0).sum()),
        double=int((counts - 1).clip(0).sum()) + rows.num_rows - keys.num_rows,
        wrong=int((~right).sum()),
        committed=books.committed,
        quarantined=books.quarantined,
        received=books.received,
        duplicate=books.duplicate,
        is_balanced=not state.ledger.unbalanced(),
        runs=state.ledger.run,
        epochs=len(set(keys.column("epoch").to_pylist())),
        orphans=len(orphans(lake)),
    )
