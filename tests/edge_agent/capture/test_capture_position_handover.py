"""A source whose options change goes on where it was; one that reads something else, or beside another, begins anew."""

import threading
from importlib import import_module
from pathlib import Path

import msgspec
import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.pump import Restarts, SourcePump
from edge_agent.capture.source_supervisor import SourceSupervisor, previous_source
from edge_agent.capture.transforms import build_transforms
from edge_agent.clock_quality import ClockWatch
from edge_agent.config import SourceConfig
from edge_agent.sources.registry import build_source, built_in_kinds, load_kind
from edge_agent.spool.spool import Spool
from schemas.contract import builtin_contract

TELEMETRY = builtin_contract("vehicle_telemetry")


def source(kind: str = "replay", stream: str = "vehicle_telemetry", **options: object) -> SourceConfig:
    return SourceConfig(kind=kind, stream=stream, options=options)


@pytest.mark.parametrize(
    ("before", "after", "goes_on"),
    [
        (source(path="a", rate_hz=1.0), source(path="a", rate_hz=2.0, rename={"v": "speed_mps"}), True),
        (source(path="a"), source(path="b"), False),
        (source(path="a"), source("zeek", path="a"), False),
        (source(path="a"), source(stream="network_flow", path="a"), False),
        (source("directory", "camera_frame", path="a"), source("directory", "camera_frame", path="a", done="delete"), True),
        (source("directory", "camera_frame", path="a"), source("directory", "camera_frame", path="a", pattern="*.bmp"), False),
        (source("exec", command=["a"]), source("exec", command=["a"], restart=True), True),
        (source("countdown", begin=1), source("countdown", begin=2), False),
    ],
)
def test_what_is_read_decides_whether_a_source_goes_on(before: SourceConfig, after: SourceConfig, goes_on: bool) -> None:
    assert previous_source(after.name, [before.name, "what: ever", "replay:x:["], ()) == (before.name if goes_on else None)


def test_a_place_that_another_source_uses_or_that_is_not_certain_is_not_taken_over() -> None:
    one, two, three = (source(path="a", rate_hz=rate) for rate in (1.0, 2.0, 3.0))
    assert previous_source(three.name, [one.name, two.name], {one.name}) == two.name
    assert previous_source(three.name, [one.name, two.name], ()) is None


@pytest.mark.parametrize("kind", sorted(built_in_kinds()))
def test_each_kind_declares_which_of_its_options_say_what_is_read(kind: str) -> None:
    declared = load_kind(kind)
    module = import_module(declared.build.__module__)
    forms = [made for made in vars(module).values() if isinstance(made, type) and made.__name__.endswith("Options")]
    options = {field.encode_name for form in forms for field in msgspec.structs.fields(form)}
    assert declared.identity
    assert set(declared.identity) <= options


def test_a_file_is_read_once_though_its_options_change_while_it_is_read(tmp_path: Path) -> None:
    table = tmp_path / "x.csv"
    table.write_text("ts,speed_mps\n" + "".join(f"{n},{n}\n" for n in range(10)))
    spool = Spool(tmp_path / "spool", max_bytes=1 << 26, linger_ms=5, clock=SystemClock())
    for rate_hz in (0.0, 5_000.0, 6_000.0):
        config = source(path=str(table), rate_hz=rate_hz)
        _pump(spool, config).run(_Never())
        assert spool.books()[0].captured == 10
        with table.open("a") as file:
            file.write("10,10\n" if rate_hz == 6_000.0 else "")
    again = source(path=str(table), rate_hz=7_000.0)
    _pump(spool, again).run(_Never())
    assert spool.books()[0].captured == 11
    spool.close()


def _pump(spool: Spool, config: SourceConfig) -> SourcePump:
    encoder = Encoder(TELEMETRY, BatchLimits(1 << 18, 1 << 20), spool.put_object)
    transform = build_transforms(TELEMETRY, None, b"", ClockWatch(SystemClock()), None)
    return SourcePump(
        config,
        lambda position: build_source(config.kind, config.options, TELEMETRY, SystemClock(), position),
        encoder,
        spool,
        transform,
        SystemClock(),
        choose=lambda known: previous_source(config.name, known, {config.name}),
    )


class _Never(threading.Event):
    """Never stopped, and never waits."""

    def is_set(self) -> bool:
        return False

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        return False


def test_a_failing_source_says_why_until_it_runs_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", max_bytes=1 << 26, linger_ms=5, clock=SystemClock())
    table = tmp_path / "x.csv"
    made = _pump(spool, source(path=str(table)))
    failures: list[str] = []

    class Waits(_Never):
        def wait(self, timeout: float | None = None) -> bool:
            failures.append(made.failing)
            table.write_text("ts,speed_mps\n1,1\n")
            return super().wait(timeout)

    made.run(Waits())
    assert "No such file" in failures[0]
    assert made.failing == ""
    spool.close()


def test_the_successor_of_a_source_that_does_not_stop_is_not_started() -> None:
    begun: list[str] = []

    class Stuck:
        name = "replay"

        def is_alive(self) -> bool:
            return True

        def join(self, seconds: float) -> None:
            del seconds

    def spawn(name: str, *_: object) -> Stuck:
        begun.append(name)
        return Stuck()

    supervisor = SourceSupervisor(lambda _: _Runs(), spawn, lambda _, **__: None, 0.01)  # type: ignore[arg-type,return-value]  # parts that stand still
    supervisor.apply([source(path="a", rate_hz=1.0)])
    supervisor.apply([source(path="a", rate_hz=2.0)])
    assert len(begun) == 1
    supervisor.apply([source(path="b")])
    assert len(begun) == 2


class _Runs:
    def run(self, *_: object) -> None:
        pass


def test_names_of_sources_are_read_back_as_they_are_written() -> None:
    config = source(path="a:b", rename={"x:y": "speed_mps"})
    assert msgspec.json.decode(config.name.split(":", 2)[2]) == config.options


def test_a_source_that_gives_a_little_and_fails_rests_longer_each_time() -> None:
    rests = Restarts()
    assert [rests.next_s(0.1, gave=True, is_done=False) for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert rests.next_s(200.0, gave=True, is_done=False) == 60
    assert rests.next_s(240.0, gave=True, is_done=False) == 0.5
    assert [rests.next_s(20.0, gave=True, is_done=False) for _ in range(3)] == [0.5, 0.5, 0.5]
    assert [rests.next_s(20.0, gave=False, is_done=False) for _ in range(3)] == [1, 2, 4]


def test_a_program_that_is_run_again_and_again_is_no_failure_as_long_as_it_prints(tmp_path: Path) -> None:
    rests = Restarts()
    assert [rests.next_s(0.1, gave=True, is_done=True) for _ in range(4)] == [0.5] * 4
    assert [rests.next_s(0.1, gave=False, is_done=True) for _ in range(3)] == [1, 2, 4]
    spool = Spool(tmp_path / "spool", max_bytes=1 << 26, linger_ms=5, clock=SystemClock())
    made = _pump(spool, source("exec", command=["echo", '{"speed_mps": 1}'], restart=True))
    failures: list[tuple[str, float]] = []

    class Thrice(_Never):
        def is_set(self) -> bool:
            return len(failures) == 3

        def wait(self, timeout: float | None = None) -> bool:
            if timeout is not None and timeout >= 0.5:
                failures.append((made.failing, timeout))
            return False

    made.run(Thrice())
    assert failures == [("", 0.5)] * 3
    assert spool.books()[0].captured == 3
    spool.close()
