"""Promise 4 for runs: kill the process at any durable step, start again, and every sample is one row."""

import hashlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.lake.lake import lake_at
from pipelines.lake.ledger_files import read_ledger
from pipelines.lake.payload import read_payload
from pipelines.maintenance.vacuum import Keep, Vacuum
from tests.fakes.lake_files import orphans
from tests.faults.deaths import Deaths, chosen
from tests.plant.core import Core, MakeEnvelope, MakeFrames

PARTS = 3  # the test's workers share the steps
NAMED = (
    r"replace runs/pins/.*json",
    r"link runs/\d+.json",
    r"replace payload/camera_frame/\d+-0.parquet",
    r"replace streams/camera_frame/\d+-0.parquet",
    r"replace streams/vehicle_telemetry/\d+-0.parquet",
    r"replace quarantine/\d+-0.parquet",
    r"fsync runs/.\d+.prepared.json.tmp",
    r"replace runs/\d+.prepared.json",
    r"replace runs/\d+.ledger.parquet",
    r"replace runs/\d+.books.parquet",
    r"create streams/camera_frame",
    r"commit streams/camera_frame",
    r"commit streams/vehicle_telemetry",
    r"fsync streams/vehicle_telemetry/_delta_log/\d+.json",
    r"commit quarantine",
    r"commit commits",
    r"receipts to 2",
)


@pytest.fixture
def landed(core: Core, envelope: MakeEnvelope, frames: MakeFrames) -> Any:
    """What a run takes in: new and repeated samples of two devices, garbage, and payloads."""
    pictures = envelope(0, 3, stream="camera_frame", body=frames(0, 3))
    core.landing.seal([envelope(0, 10), envelope(5, 10), envelope(15, 5, body=b"garbage"), pictures])
    core.landing.seal([envelope(0, 10, device="car-2")])
    return core


def check(core: Core) -> None:
    loop = core.run()
    check_rows(core)
    assert sum(row["count"] for row in core.rows("quarantine")) == 5
    assert len(core.rows("commits")) == loop.ledger.run == 1
    assert not loop.ledger.unbalanced()
    books = loop.ledger.books["car-1", "vehicle_telemetry"]
    assert (books.received, books.committed, books.quarantined, books.duplicate) == (25, 15, 5, 5)
    assert len(core.mailbox.messages) == 2
    Vacuum(lake_at(core.root), Keep(0, 0, 0, 0, 0)).sweep()
    assert orphans(core.root) == set()
    check_rows(core)


def check_rows(core: Core) -> None:
    rows = sorted((row["device"], row["seq"]) for row in core.rows("streams/vehicle_telemetry"))
    assert rows == [("car-1", seq) for seq in range(15)] + [("car-2", seq) for seq in range(10)]
    pictures = sorted(core.rows("streams/camera_frame"), key=lambda row: row["seq"])
    assert [row["seq"] for row in pictures] == [0, 1, 2]
    for row in pictures:
        body = read_payload(
            lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"]
        )
        assert body == hashlib.sha256(str(row["seq"]).encode()).digest() * (20 + row["seq"])


def checked(core: Core) -> Callable[[str], None]:
    def look(_name: str) -> None:
        core.mailbox.messages.clear()
        check(core)

    return look


def test_a_run_that_is_killed_early_or_late_ends_with_every_sample_once(landed: Core, deaths: Deaths) -> None:
    names = deaths.at_each("run", landed.root, slice(2, None, 32), checked(landed))
    for step in NAMED:
        assert any(re.fullmatch(f"before {step}", name) for name in names), (step, names)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(PARTS))
def test_a_run_that_is_killed_at_any_durable_step_ends_with_every_sample_once(landed: Core, deaths: Deaths, first: int) -> None:
    assert len(deaths.at_each("run", landed.root, slice(first, None, PARTS), checked(landed))) > 150


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_is_killed_about_a_ledger_of_what_has_changed_ends_with_every_sample_once(
    core: Core, envelope: MakeEnvelope, deaths: Deaths
) -> None:
    core.landing.seal([envelope(0, 10, device=f"car-{number}") for number in range(20)])
    whole = core.run().ledger
    core.landing.seal([envelope(5, 15, device="car-7")])
    pristine = core.root.with_name("before")
    shutil.copytree(core.root, pristine)
    names = deaths.steps("run", core.root)
    base = read_ledger(lake_at(core.root), 2)
    assert (whole.bases, base.bases, base.delta.devices().to_pylist()) == ((1,), (1,), ["car-7"])
    about = [(step, name) for step, name in chosen(names) if re.search(r"ledger|books|prepared|commit commits", name)]
    assert len(about) > 6
    for step, _name in about:
        shutil.rmtree(core.root)
        shutil.copytree(pristine, core.root)
        deaths.kill("run", core.root, step)
        loop = core.run()
        rows = sorted((row["device"], row["seq"]) for row in core.rows("streams/vehicle_telemetry"))
        assert rows == sorted((f"car-{number}", seq) for number in range(20) for seq in range(20 if number == 7 else 10))
        assert read_ledger(lake_at(core.root), 2) == loop.ledger == base
        assert not loop.ledger.unbalanced()
