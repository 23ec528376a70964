"""The same runs on a lake whose root is S3-compatible storage: a real server, real conditional puts, and faults between."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from catchment.runtime.clock import SystemClock
from pipelines.bridge.rows import LandingRow
from pipelines.config import CoreConfig, RemoteConfig
from pipelines.errors import ConfigError, ConflictError, RefusedError, RetryLaterError
from pipelines.ingest import plan as ingest_plan
from pipelines.ingest.loop import RunLoop, load_state, only_loop
from pipelines.ingest.plan import find_segments, make_plan, write_plan
from pipelines.lake.lake import lake_at
from pipelines.lake.remote import Remote, bind, remote_of
from pipelines.lake.table import open_table
from pipelines.runners.engine import Engine
from tests.fakes.s3_faults import FaultyProxy
from tests.fakes.s3_server import S3, served
from tests.pipelines.ingest import test_ingest_run as same
from tests.plant.core import Core, MakeEnvelope, cut_all

STREAM = "streams/vehicle_telemetry"
DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with served(tmp_path_factory.mktemp("s3")) as server:
        yield server


@dataclass
class RemoteCore:
    """As `Core` in conftest, with the lake in a bucket and a working copy here."""

    root: Path
    landing: Any
    mailbox: Any
    remote: Remote
    config: CoreConfig = field(init=False)

    def __post_init__(self) -> None:
        self.config = CoreConfig(lake=str(self.root), remote=self.remote.config)
        bind(self.root, self.remote.config)
        seal = self.landing.seal

        def seal_and_ship(rows: list[LandingRow]) -> Path:
            path: Path = seal(rows)
            self.remote.create(str(path.relative_to(self.root)), path)
            path.unlink()
            return path

        self.landing.seal = seal_and_ship

    def loop(self) -> RunLoop:
        return RunLoop(self.config, self.mailbox, SystemClock(), Engine("direct"))

    def run(self) -> RunLoop:
        loop = self.loop()
        while loop.step():
            pass
        cut_all(self.config, loop)
        self.pull()
        return loop

    def pull(self) -> None:
        """What a reader of payloads would do."""
        import obstore

        from pipelines.lake.remote import store

        for page in obstore.list(store(self.remote.config), "payload/"):
            for one in page:
                found = self.remote.get(one["path"])
                assert found is not None
                (self.root / one["path"]).parent.mkdir(parents=True, exist_ok=True)
                (self.root / one["path"]).write_bytes(found[0])

    def table(self, name: str) -> pa.Table:
        options = self.remote.table_options()
        return pa.table(DeltaTable(self.remote.where(name), storage_options=options).to_pyarrow_table())

    def rows(self, name: str) -> list[dict[str, Any]]:
        if open_table(lake_at(self.root), name) is None:
            return []
        found: list[dict[str, Any]] = self.table(name).to_pylist()
        return found


@pytest.fixture
def make_core(s3: S3, core_on_disk: Core, tmp_path: Path) -> Callable[..., RemoteCore]:
    def make(folder: str = "lake", port: int | None = None, **more: Any) -> RemoteCore:
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        landing = type(core_on_disk.landing)(root)
        remote = Remote(s3.config(tmp_path.name, port, **more))
        return RemoteCore(root, landing, type(core_on_disk.mailbox)(), remote)

    return make


@pytest.fixture
def core(make_core: Callable[..., RemoteCore]) -> RemoteCore:
    return make_core()


# These lay hands on the files of a lake that is a folder.
ON_A_FOLDER_ONLY = {"test_a_lost_ledger_stops_the_loop_with_a_word", "test_a_rotten_segment_is_set_aside_and_the_others_go_on"}
SAME = sorted(name for name in vars(same) if name.startswith("test_") and name not in ON_A_FOLDER_ONLY)
for _name in SAME:
    globals()[_name] = pytest.mark.slow(getattr(same, _name))


def keys(core: RemoteCore) -> list[tuple[str, int]]:
    return sorted((row["device"], row["seq"]) for row in core.rows(STREAM))


@pytest.mark.slow
def test_a_run_on_s3_ends_in_one_row_per_sample_and_leaves_nothing_here_that_grows(
    core: RemoteCore, envelope: MakeEnvelope
) -> None:
    core.landing.seal([envelope(0, 10), envelope(5, 10)])
    core.run()
    core.landing.seal([envelope(0, 20), envelope(0, 5, device="car-2")])
    loop = core.run()
    assert keys(core) == [("car-1", seq) for seq in range(20)] + [("car-2", seq) for seq in range(5)]
    assert not loop.ledger.unbalanced()
    assert load_state(lake_at(core.root)).ledger.books == loop.ledger.books
    assert [path for path in core.root.rglob("*.parquet") if "runs" not in path.parts] == []
    assert not list(core.root.rglob("*.arrows"))


def test_an_idle_look_asks_for_one_name_per_bridge_and_lists_nothing(core: RemoteCore, envelope: MakeEnvelope, s3: S3) -> None:
    core.landing.seal([envelope(0, 10)])
    loop = core.run()
    loop.step()
    before = len(s3.requests())
    for _ in range(10):
        assert not loop.step()
    requests = s3.requests()[before:]
    # The next plan, and the next segment of the one bridge.
    assert len(requests) == 20
    assert not [path for _, path, *_ in requests if "list-type" in path]


def test_a_run_lists_nothing_but_the_tail_of_a_tables_log(core: RemoteCore, envelope: MakeEnvelope, s3: S3) -> None:
    core.landing.seal([envelope(0, 10)])
    loop = core.run()
    core.landing.seal([envelope(10, 10)])
    before = len(s3.requests())
    assert loop.step()
    listings = [path for _, path, *_ in s3.requests()[before:] if "list-type" in path]
    assert listings
    assert [path for path in listings if "_delta_log" not in path] == []


def test_of_two_plans_for_one_run_only_the_first_is_taken(make_core: Callable[..., RemoteCore], envelope: MakeEnvelope) -> None:
    one, other = make_core("one"), make_core("other")
    one.landing.seal([envelope(0, 10)])
    loop = one.loop()
    found = find_segments(lake_at(other.root), {}, 10)
    plan = make_plan(1, 5, loop.rules.refresh(), {}, found)
    assert plan is not None
    write_plan(lake_at(other.root), plan)
    write_plan(lake_at(other.root), plan)  # the same again is no conflict: its answer may have been lost
    late = make_plan(1, 6, loop.rules.refresh(), {}, found)
    assert late is not None
    with pytest.raises(ConflictError, match="planned already"):
        write_plan(lake_at(one.root), late)
    assert loop.step()
    assert keys(one) == [("car-1", seq) for seq in range(10)]


def test_two_loops_on_two_machines_one_wins_and_the_other_says_so(make_core: Callable[..., RemoteCore]) -> None:
    one, other = make_core("one", claim_s=1), make_core("other", claim_s=1)
    with only_loop(lake_at(one.root)) as check:
        with pytest.raises(RefusedError, match=r"another run loop is at work.*one"), only_loop(lake_at(other.root)):
            pass
        check()
    with only_loop(lake_at(other.root)):
        pass


@pytest.mark.slow
def test_a_loop_that_died_is_followed_by_another_and_finds_out_if_it_was_only_slow(
    make_core: Callable[..., RemoteCore], envelope: MakeEnvelope
) -> None:
    slow, other = make_core("slow", claim_s=3600), make_core("other", claim_s=1)
    slow.landing.seal([envelope(0, 10)])
    with only_loop(lake_at(slow.root)) as check, only_loop(lake_at(other.root)) as check_other:
        stale, fresh = slow.loop(), other.loop()
        assert fresh.step()
        assert stale.step()  # carries out the same plan, and finds every commit made
        check_other()
        check()  # it has not beaten since
        other.landing.numbers = iter([2])
        other.landing.seal([envelope(10, 10)])
        assert stale.step()
        assert fresh.step()
        assert keys(other) == [("car-1", seq) for seq in range(20)]
        assert not fresh.ledger.unbalanced()
    assert fresh.ledger.books == stale.ledger.books


def test_a_loop_that_was_silent_too_long_stops_when_it_finds_the_lake_taken(make_core: Callable[..., RemoteCore]) -> None:
    core = make_core(claim_s=1)
    with only_loop(lake_at(core.root)) as check:
        check()
        core.remote.put("runs/loop.claim", b'{"owner":"another","beat":9}')
        with pytest.raises(RefusedError, match="taken this lake over"):
            until_refused(check)


def until_refused(check: Callable[[], None]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        check()
        time.sleep(0.05)


@pytest.mark.slow
def test_two_loops_that_race_on_one_lake_give_one_row_per_sample(
    make_core: Callable[..., RemoteCore], envelope: MakeEnvelope
) -> None:
    one, other = make_core("one"), make_core("other")
    for number in range(6):
        one.landing.seal([envelope(number * 10, 15), envelope(number * 10, 10, device="car-2")])

    def work(core: RemoteCore) -> None:
        config = core.config.run
        loop = RunLoop(
            CoreConfig(lake=str(core.root), remote=core.remote.config, run=type(config)(max_segments=1)),
            core.mailbox,
            SystemClock(),
            Engine("direct"),
        )
        idle = 0
        while idle < 2:
            try:
                idle = 0 if loop.step() else idle + 1
            except RetryLaterError:
                idle = 0

    threads = [threading.Thread(target=work, args=(core,)) for core in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys(one) == [("car-1", seq) for seq in range(65)] + [("car-2", seq) for seq in range(60)]
    assert len(one.rows("commits")) == 6
    assert not load_state(lake_at(other.root)).ledger.unbalanced()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_storage_that_refuses_cuts_and_hangs_costs_time_and_nothing_else(
    make_core: Callable[..., RemoteCore], s3: S3, envelope: MakeEnvelope, seed: int
) -> None:
    proxy = FaultyProxy(s3.port, seed, 0.15)
    sound = make_core("sound")
    core = make_core("faulty", proxy.port, timeout_s=1, retries=2, retry_s=5)
    for number in range(4):
        sound.landing.seal([envelope(number * 10, 15), envelope(number * 10, 5, body=b"garbage", device="car-2")])
    loop: RunLoop | None = None
    deadline = time.monotonic() + 5 * DEADLINE_S
    idle = 0
    while idle < 2:
        assert time.monotonic() < deadline, proxy.done
        try:
            loop = loop or core.loop()
            idle = 0 if loop.step() else idle + 1
        except RetryLaterError:
            loop, idle = None, 0  # as after a crash
    proxy.close()
    assert all(proxy.done[fault] for fault in ("refuse", "cut_before", "cut_after", "hang"))
    assert keys(sound) == [("car-1", seq) for seq in range(45)]
    assert sum(row["count"] for row in sound.rows("quarantine")) == 20
    assert not load_state(lake_at(sound.root)).ledger.unbalanced()


def test_a_working_copy_belongs_to_one_lake(core: RemoteCore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="another folder"):
        bind(core.root, RemoteConfig("s3://elsewhere/lake"))
    with pytest.raises(ConfigError, match="another folder"):
        bind(core.root, None)
    bind(tmp_path / "plain", None)
    assert remote_of(tmp_path / "plain") is None


@pytest.mark.slow
def test_workers_that_share_nothing_with_the_loop_but_the_bucket_settle_its_items(
    core: RemoteCore, envelope: MakeEnvelope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    monkeypatch.setattr(ingest_plan, "ITEM_BYTES", 1)
    afield = tmp_path / "worker"
    for number in range(4):
        core.landing.seal([envelope(number * 10, 10), envelope(number * 10, 5, body=b"garbage", device="car-2")])
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, env={"CATCHMENT_WORK_FOLDER": str(afield)}
    ) as cluster:
        engine = Engine("dask", (f"--dask_client_address={cluster.scheduler_address}",))
        loop = RunLoop(core.config, core.mailbox, SystemClock(), engine)
        while loop.step():
            pass
    assert (afield / "remote.json").exists()
    assert not list(core.root.rglob("*.arrows"))
    assert keys(core) == [("car-1", seq) for seq in range(40)]
    assert sum(row["count"] for row in core.rows("quarantine")) == 20
    assert not loop.ledger.unbalanced()
