"""An internal error that nearly every message meets pauses the run; one that few meet does not."""

from typing import Any

import pytest

from pipelines.config import CoreConfig, RunConfig
from pipelines.errors import FaultError
from pipelines.ingest import settle
from pipelines.ingest.fault_breaker import FaultBreaker, FaultsOfRun, FaultStreak, is_systemic, read_faults, streak_after
from pipelines.lake.lake import lake_at
from pipelines.maintenance.vacuum import Keep, Vacuum
from tests.fakes.inventory import every_file, referenced
from tests.plant.core import Core, MakeEnvelope

STREAM = "streams/vehicle_telemetry"


def broken(*_arguments: Any) -> None:
    raise TypeError("a fault of ours")


def test_a_fault_with_every_message_holds_the_run_back_until_it_is_mended(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.landing.seal([envelope(0, 10)])
    core.run()
    core.landing.seal([envelope(10 * at, 10, device=f"car-{at % 3}") for at in range(1, 13)])
    loop = core.loop()
    with monkeypatch.context() as patch:
        patch.setattr(settle, "write_group", broken)
        for _ in range(2):
            with pytest.raises(FaultError, match=r"run 2 is paused: 12 of its 12 messages .*TypeError: a fault of ours"):
                loop.step()
        stopped = read_faults(lake_at(core.root))
        assert (stopped.stopped_run, stopped.refused) == (2, 0)
        with pytest.raises(FaultError):
            core.loop().step()  # another process knows of it too
    assert loop.ledger.run == 1
    assert core.rows("quarantine") == []
    loop.step()
    assert len(core.rows(STREAM)) == 130
    assert core.rows("quarantine") == []
    assert every_file(core.root) - referenced(core.root)
    Vacuum(lake_at(core.root), Keep(0, 0, 0, 0, 0)).sweep()
    assert every_file(core.root) == referenced(core.root)
    assert read_faults(lake_at(core.root)) == FaultStreak()
    assert not loop.ledger.unbalanced()


def test_faults_in_a_row_are_counted_over_runs_and_over_starts(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.config = CoreConfig(lake=str(core.root), run=RunConfig(fault_breaker_count=3))
    monkeypatch.setattr(settle, "write_group", broken)
    for at in range(2):
        core.landing.seal([envelope(10 * at, 10, device=f"car-{at}")])
        core.run()
    assert (read_faults(lake_at(core.root)).refused, read_faults(lake_at(core.root)).stopped_run) == (2, 0)
    core.landing.seal([envelope(50, 10)])
    with pytest.raises(FaultError):
        core.run()
    assert sum(row["count"] for row in core.rows("quarantine")) == 20


def test_with_a_share_of_none_whatever_meets_a_fault_is_quarantined_and_the_loop_goes_on(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.config = CoreConfig(lake=str(core.root), run=RunConfig(fault_breaker_share=0))
    core.landing.seal([envelope(at * 10, 10) for at in range(12)])
    with monkeypatch.context() as patch:
        patch.setattr(settle, "write_group", broken)
        core.run()
    core.landing.seal([envelope(200, 10)])
    loop = core.run()
    assert [row["seq"] for row in core.rows(STREAM)] == list(range(200, 210))
    assert sum(row["count"] for row in core.rows("quarantine")) == 120
    assert not loop.ledger.unbalanced()


@pytest.mark.parametrize(
    ("messages", "refused", "devices", "before", "known", "stops"),
    [
        (20, 20, 2, 0, 9, True),
        (20, 18, 2, 0, 9, True),
        (20, 17, 2, 0, 9, False),  # some get through
        (9, 9, 2, 0, 9, False),  # too few to tell
        (9, 9, 2, 1, 9, True),  # with one before it they are enough
        (20, 20, 1, 0, 9, False),  # of one device alone
        (20, 20, 1, 0, 1, True),  # which is the only one there is
        (20, 0, 0, 50, 9, False),
        (0, 0, 0, 50, 9, False),
    ],
)
def test_a_run_is_held_back_where_nearly_all_fail_and_not_where_some_do(
    messages: int, refused: int, devices: int, before: int, known: int, stops: bool
) -> None:
    found = FaultsOfRun(messages, refused, frozenset(f"car-{at}" for at in range(devices)), "ours")
    row = FaultStreak(before, ("car-0",) if before else ())
    assert is_systemic(found, row, [f"car-{at}" for at in range(known)], FaultBreaker(0.9, 10)) is stops
    after = streak_after(found, row, FaultBreaker(0.9, 10))
    assert after.refused == (before if not messages else 0 if refused < 0.9 * messages else before + refused)
