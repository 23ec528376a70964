"""What the loop does when our own code, a worker process or the rules fail."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from catchment.runtime.clock import SystemClock
from pipelines.config import CoreConfig, RunConfig
from pipelines.errors import ConfigError, FaultError, RetryLaterError
from pipelines.ingest import run as ingest_run
from pipelines.ingest import settle
from pipelines.ingest.loop import RuleBook, RunLoop
from pipelines.ingest.loop_process import MAX_FAULTS, MAX_TRIES, RetryBudget
from pipelines.ingest.run import admit_plan, works
from pipelines.ingest.settle import Settler
from pipelines.ingest.tabulate import write_group
from pipelines.ingest.work import Limits
from pipelines.ingest.workers import WorkerPool
from pipelines.lake.lake import lake_at
from pipelines.lake.ledger import Ledger
from pipelines.runners.engine import Engine
from tests.plant.core import AsIpc, Core, MakeEnvelope
from tests.plant.present import present

STREAM = "streams/vehicle_telemetry"
POLICY = "id: {id}\nstreams: [vehicle_telemetry]\nrules:\n  - tag: fast\n    when: speed_mps > {bound}\n"


def test_a_fault_of_our_own_costs_only_the_samples_it_is_met_with(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_group

    def broken(groups: Any, target: Any) -> Any:
        for group in groups:
            for one in group.envelopes:
                if one.message.device == "car-2" and any(low <= 13 < high for low, high in one.fresh_spans):
                    raise TypeError("a fault of ours")
        return before(groups, target)

    core.landing.seal([envelope(0, 10), envelope(10, 10, device="car-2"), envelope(20, 10, device="car-2")])
    core.landing.seal([envelope(10, 10)])
    with monkeypatch.context() as patch:
        patch.setattr(settle, "write_group", broken)
        loop = core.run()
    assert sorted((row["device"], row["seq"]) for row in core.rows(STREAM)) == [
        *(("car-1", seq) for seq in range(20)),
        *(("car-2", seq) for seq in range(10, 30) if seq != 13),
    ]
    (refused,) = core.rows("quarantine")
    assert (refused["stage"], refused["seq"], refused["count"], refused["spans"]) == ("fault", 13, 1, "[[13, 14]]")
    assert "TypeError: a fault of ours (at broken" in refused["reason"]
    assert not loop.ledger.unbalanced()


def test_a_fault_that_only_two_envelopes_together_cause_refuses_neither(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_group

    def broken(groups: Any, target: Any) -> Any:
        if sum(len(group.envelopes) for group in groups) > 1:
            raise TypeError("not together")
        return before(groups, target)

    core.landing.seal([envelope(0, 10), envelope(10, 10)])
    monkeypatch.setattr(settle, "write_group", broken)
    core.run()
    assert len(core.rows(STREAM)) == 20
    assert core.rows("quarantine") == []


def test_a_fault_outside_all_samples_says_so_and_commits_nothing(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.landing.seal([envelope(0, 10)])

    def broken(*_arguments: Any) -> None:
        raise TypeError("a fault of ours")

    loop = core.loop()
    with monkeypatch.context() as patch:
        patch.setattr(Settler, "finish", broken)
        with pytest.raises(FaultError, match=r"TypeError: a fault of ours.*nothing was committed") as caught:
            loop.step()
        report = Path(str(caught.value).rsplit(" ", 1)[1])
        assert "broken" in report.read_text()
    assert core.rows("commits") == []
    core.run()
    assert len(core.rows(STREAM)) == 10
    assert not report.exists()


def _full(*_arguments: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_in_a_worker_is_waited_out(core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch) -> None:
    core.landing.seal([envelope(0, 10)])

    monkeypatch.setattr(settle, "write_group", _full)
    with pytest.raises(RetryLaterError, match="No space left"):
        core.loop().step()


def test_a_full_disk_under_the_loop_itself_is_waited_out_too(
    core: Core, envelope: MakeEnvelope, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.landing.seal([envelope(0, 10)])
    loop = core.loop()
    with monkeypatch.context() as patch:
        patch.setattr(ingest_run, "write_ledger", _full)
        with pytest.raises(RetryLaterError, match=r"No space left.*is there room"):
            loop.step()
    assert loop.step()
    assert len(core.rows(STREAM)) == 10


def test_tries_are_few_for_faults_and_bounded_for_all() -> None:
    budget, fault, away = RetryBudget(), FaultError("ours"), RetryLaterError("away")
    pauses = [budget.failed(fault) for _ in range(MAX_FAULTS - 1)]
    assert pauses == sorted(pauses)
    with pytest.raises(FaultError):
        budget.failed(fault)
    budget.succeeded()
    for _ in range(MAX_TRIES - 1):
        budget.failed(away)
    with pytest.raises(RetryLaterError):
        budget.failed(away)


@pytest.fixture
def worker_pool() -> Any:
    found = WorkerPool(1)
    yield found
    found.close()


def items(core: Core, **limits: int) -> Any:
    loop = core.loop()
    plan = present(loop.next_plan())
    return works(lake_at(core.root), plan, admit_plan(lake_at(core.root), plan, Ledger()), Limits(1 << 28, 1 << 26, **limits))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_the_item_is_tried_again(
    core: Core, envelope: MakeEnvelope, worker_pool: WorkerPool
) -> None:
    core.landing.seal([envelope(0, 10)])
    item = items(core)
    assert next(worker_pool.settle_all(item)).settled[0].committed == 10
    (worker,) = worker_pool._workers
    os.kill(worker.pid, signal.SIGKILL)
    assert next(worker_pool.settle_all(item)).settled[0].committed == 10
    assert worker_pool.deaths == 1


def test_a_worker_that_dies_before_it_is_ready_is_replaced_with_its_first_item(
    core: Core, envelope: MakeEnvelope, worker_pool: WorkerPool
) -> None:
    worker_pool.start(1)
    while not worker_pool.pids:
        time.sleep(0.001)
    os.kill(worker_pool.pids[0], signal.SIGKILL)
    worker_pool.wait_ready()
    core.landing.seal([envelope(0, 10)])
    assert next(worker_pool.settle_all(items(core))).settled[0].committed == 10
    assert worker_pool.deaths == 1


ORPHANS = """
import time
from pipelines.ingest.workers import WorkerPool
pool = WorkerPool(2)
pool.warm(2)
print(*pool.pids, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_no_worker() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
        run.kill()
    assert len(workers) == 2
    psutil.wait_procs(workers, timeout=60)
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


@pytest.mark.slow
def test_a_body_that_kills_its_reader_is_refused_and_the_others_are_rows(
    core: Core, envelope: MakeEnvelope, worker_pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No body is known to do that, since all are validated; so the worker is given a reader that dies of one.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, signal\n"
        "if 'pipelines.ingest.worker_main' in ' '.join(sys.orig_argv):\n"
        "    import pipelines.ingest.decode as decode\n"
        "    before = decode.plain_body\n"
        "    def deadly(body, *rest):\n"
        "        if b'deadly' in body.to_pybytes():\n"
        "            os.kill(os.getpid(), signal.SIGSEGV)\n"
        "        return before(body, *rest)\n"
        "    decode.plain_body = deadly\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    core.landing.seal([envelope(0, 10), envelope(10, 5, body=b"deadly"), envelope(15, 10), envelope(25, 1, body=b"deadly 2")])
    result = next(worker_pool.settle_all(items(core)))
    assert result.failure is None
    assert [(row.committed, row.quarantined) for row in result.settled] == [(20, 6)]
    assert worker_pool.deaths == 4


def test_a_body_that_takes_all_memory_is_refused_and_the_others_are_rows(
    core: Core, envelope: MakeEnvelope, worker_pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'pipelines.ingest.worker_main' in ' '.join(sys.orig_argv):\n"
        "    import pipelines.ingest.settle as settle\n"
        "    before = settle.decode\n"
        "    def greedy(body, **named):\n"
        "        if b'greedy' in body.to_pybytes():\n"
        "            return bytearray(1 << 40)\n"
        "        return before(body, **named)\n"
        "    settle.decode = greedy\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    core.landing.seal([envelope(0, 10), envelope(10, 5, body=b"greedy"), envelope(15, 10)])
    (item,) = items(core, worker_memory_bytes=4 << 30)
    result = next(worker_pool.settle_all([item]))
    assert result.failure is None
    assert [(row.committed, row.quarantined) for row in result.settled] == [(20, 5)]


def test_a_row_above_the_limit_is_refused_alone(core: Core, envelope: MakeEnvelope) -> None:
    core.config = CoreConfig(lake=str(core.root), run=RunConfig(max_row_bytes=10_000))
    text = pa.array(["x", "y" * 20_000, "z"])
    batch = pa.record_batch({"event_time": pa.array([1_790_000_000_000_000] * 3).cast(pa.timestamp("us", "UTC")), "road": text})
    from schemas.contract import Column, ColumnType, Contract

    contract = Contract(name="notes", version="1.0.0", columns=(Column("road", ColumnType.STRING),))
    from pipelines.contracts.check import conform
    from pipelines.ingest.tabulate import refusals

    rows = conform(pa.Table.from_batches([batch]), contract)
    reasons = refusals(rows, 10_000)
    assert reasons is not None
    assert [reason.as_py() is None for reason in reasons] == [True, False, True]
    assert refusals(rows, 30_000) is None


def test_rows_with_a_large_payload_go_to_quarantine_with_their_bytes(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> None:
    import hashlib

    payloads = [b"small", b"L" * 5_000]
    batch = pa.record_batch(
        {
            "event_time": pa.array([1_790_000_000_000_000] * 2).cast(pa.timestamp("us", "UTC")),
            "media_type": ["image/jpeg"] * 2,
            "payload": pa.array(payloads, pa.binary()),
            "payload_sha256": [hashlib.sha256(body).hexdigest() for body in payloads],
        }
    )
    core.config = CoreConfig(lake=str(core.root), run=RunConfig(max_row_bytes=1_000))
    core.landing.seal([envelope(0, 2, stream="camera_frame", body=as_ipc(batch))])
    loop = core.run()
    assert [row["seq"] for row in core.rows("streams/camera_frame")] == [0]
    assert [row["reason"].split(" are above")[0] for row in core.rows("quarantine")] == ["row: 5114 bytes"]
    assert not loop.ledger.unbalanced()


def test_new_rules_hold_from_the_next_run_on_and_broken_ones_do_not(core: Core, envelope: MakeEnvelope, tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    file = policies / "driving.yaml"
    file.write_text(POLICY.format(id="driving", bound=5))
    core.config = CoreConfig(lake=str(core.root), policies=str(policies))
    loop = RunLoop(core.config, core.mailbox, SystemClock(), Engine())

    def tagged(first: int) -> int:
        core.landing.seal([envelope(first, 10)])
        loop.step()
        return sum(bool(row["tags"]) for row in core.rows(STREAM) if row["seq"] >= first)

    assert tagged(0) == 4
    file.write_text(POLICY.format(id="driving", bound=17))
    assert tagged(10) == 2
    file.write_text("id: [broken")
    assert tagged(20) == 10
    assert loop.rules.errors == 1
    assert "driving.yaml" in loop.rules.broken
    file.write_text(POLICY.format(id="driving", bound=1_000))
    assert tagged(30) == 0
    assert loop.rules.broken == ""


def test_a_contract_that_changes_a_type_is_refused_with_the_difference(
    core: Core, envelope: MakeEnvelope, tmp_path: Path
) -> None:
    from pipelines.contracts.odcs import to_odcs
    from schemas.contract import Column, ColumnType, builtin_contract

    core.landing.seal([envelope(0, 10)])
    core.run()
    import msgspec

    contract = builtin_contract("vehicle_telemetry")
    changed = tuple(
        Column(column.name, ColumnType.STRING) if column.name == "speed_mps" else column for column in contract.columns
    )
    folder = tmp_path / "contracts"
    folder.mkdir()
    other = msgspec.structs.replace(contract, columns=changed)
    (folder / "other.odcs.yaml").write_text(to_odcs(other))
    with pytest.raises(ConfigError, match=r"speed_mps.* double .*string"):
        RuleBook(lake_at(core.root), str(folder), "")
