"""Waves by count, the gates between them, and what a fleet can be promised; the simulator drives the code of the server."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.rollout.fleet_evidence import FleetWatch
from pipelines.rollout.gates import (
    HALT_AT,
    FleetDrift,
    VersionCounts,
    WaveEvidence,
    WaveRules,
    decide,
    device_evidence,
    error_evidence,
    evidence_against,
    failures_that_halt,
    pair_evidence,
)
from pipelines.rollout.judged import JudgedPairs, add_judged, read_judged, read_verdicts
from pipelines.rollout.rollouts import Rollout, way_back
from pipelines.rollout.waves import EVERYONE, WAVES, parse_waves, promised_exposure, wave_counts
from schemas.errors import SchemaError
from schemas.model_tally import LATENCY_BINS, ModelTally, bin_start_ms, latency_bin
from schemas.reported import ModelReport, Reported, decode_reported, encode_reported
from tests.pipelines.rollout.fleet_simulator import Fleet, roll_out

NOTHING = JudgedPairs({})


def in_waves(**changes: object) -> Rollout:
    one = Rollout("r", "bright", 2, "bright/2.onnx", "all", 1_000, waves=WAVES, soak_s=0.0)
    return msgspec.structs.replace(one, **changes)


def fleet_of(count: int, **reports: ModelReport) -> dict[str, tuple[ModelReport, ...]]:
    return {f"d-{number}": (reports.get(f"d_{number}", ModelReport("bright", 1, "active")),) for number in range(count)}


# -- which devices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "counts"),
    [(0, []), (1, [1]), (2, [1, 2]), (5, [1, 2, 3, 5]), (20, [1, 2, 5, 10, 20]), (1_000, [10, 20, 50, 100, 250, 500, 1_000])],
)
def test_every_wave_has_at_least_one_device_more(devices: int, counts: list[int]) -> None:
    assert wave_counts(WAVES, devices) == counts


@given(st.integers(1, 150))
def test_each_wave_reaches_exactly_its_count_and_all_that_the_one_before_reached(count: int) -> None:
    devices = [f"d-{number}" for number in range(count)]
    rollout, before = in_waves(), set[str]()
    for expected in wave_counts(WAVES, count):
        rollout = rollout.opened(devices, 2_000)
        reached = set(rollout.among(devices))
        assert (len(reached), before <= reached) == (expected, True)
        assert {device for device in devices if rollout.covers(device)} == reached
        before = reached
    assert rollout.limit == EVERYONE
    assert rollout.opened(devices, 3_000) == rollout


def test_a_rollout_for_nobody_known_begins_with_the_first_device_that_reports() -> None:
    waiting = in_waves().opened([], 2_000)
    assert (waiting.among(["d-1", "d-2"]), waiting.opened_ms) == ([], 0)
    begun = waiting.opened(["d-1", "d-2"], 3_000)
    assert (len(begun.among(["d-1", "d-2"])), begun.opened_ms) == (1, 3_000)


def test_a_document_of_the_release_before_reaches_its_whole_cohort() -> None:
    old = {"name": "r", "model": "bright", "version": 2, "target": "bright/2.onnx", "cohort": "all", "issued_ms": 10}
    rollout = msgspec.convert(old, Rollout)
    assert (rollout.waves, rollout.among(["a", "b"])) == ((), ["a", "b"])


@pytest.mark.parametrize("text", ["", "5%", "10%,5%,100%", "0%,100%", "x,100%", "5%,5%,100%", "nan,100%"])
def test_waves_that_do_not_grow_to_everyone_are_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="grow"):
        parse_waves(text)


def test_waves_are_read_as_written() -> None:
    assert parse_waves("1%, 10%,100%") == (0.01, 0.1, 1.0)
    assert parse_waves("none") == ()


# -- gates ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10_000))
def test_the_count_that_halts_is_the_least_one_with_enough_evidence(devices: int) -> None:
    count = failures_that_halt(devices)
    assert device_evidence(count, devices) >= HALT_AT - 1e-9
    assert device_evidence(count - 1, devices) < HALT_AT or count == 1


@pytest.mark.parametrize(
    ("evidence", "action", "reason"),
    [
        (WaveEvidence(10), "hold", "0 of 10 devices have answered"),
        (WaveEvidence(10, active=4), "hold", "4 of 10 devices have answered"),
        (WaveEvidence(10, active=5), "widen", "shown"),
        (WaveEvidence(10, active=5, on_probation=3), "hold", "3 devices are on probation"),
        (WaveEvidence(1, failed=1), "hold", "1 of 1 devices failed: too few to halt"),
        (WaveEvidence(10, active=8, failed=2), "widen", "shown"),
        (WaveEvidence(10, active=6, failed=4), "halt", "4 of 10 devices failed"),
        (WaveEvidence(10, active=10, counted=10, slow=4), "halt", "too slow on 4 of 10"),
        (WaveEvidence(10, active=10, counted=10, died=4), "halt", "process ended on 4 of 10"),
        (WaveEvidence(10, active=10, errors=HALT_AT), "halt", "more frequent"),
        (WaveEvidence(10, active=10, old_right=40, new_right=10), "halt", "right on 40 pictures and this one on 10"),
        (WaveEvidence(10, active=10, old_right=40, new_right=40), "widen", "shown"),
    ],
)
def test_a_wave_goes_on_holds_or_halts(evidence: WaveEvidence, action: str, reason: str) -> None:
    decision = decide(evidence, WaveRules(0.0), 0.0)
    assert decision.action == action
    assert reason in decision.reason


def test_a_wave_shows_what_its_rules_ask_for() -> None:
    good = WaveEvidence(10, active=10, counted=10, attempts=99, old_right=1, new_right=1)
    assert "lasts 5 s more" in decide(good, WaveRules(10.0), 5.0).reason
    assert "saw 99 pictures, and 100 are needed" in decide(good, WaveRules(0.0, 100), 5.0).reason
    assert "2 disagreements are judged, and 3 are needed" in decide(good, WaveRules(0.0, 0, 3), 5.0).reason
    assert decide(good, WaveRules(10.0, 99, 2), 10.0).action == "widen"


def test_failures_that_somebody_accepted_hold_nothing() -> None:
    assert decide(WaveEvidence(1, failed=1), WaveRules(0.0, accepted_failures=1), 0.0).action == "widen"
    assert decide(WaveEvidence(2, failed=2), WaveRules(0.0, accepted_failures=1), 0.0).action == "hold"


def test_devices_that_count_nothing_do_not_hold_a_wave() -> None:
    assert decide(WaveEvidence(10, active=10), WaveRules(0.0, 5_000), 0.0).action == "widen"


def test_errors_are_compared_within_a_device_and_with_the_fleet_next_to_it() -> None:
    past, prone = VersionCounts([10_000, 10_000], [500, 1]), FleetDrift(10_000, 10_000, 1.0)
    assert error_evidence(past, VersionCounts([10_000, 10_000], [500, 1]), prone) < 0
    assert error_evidence(past, VersionCounts([10_000, 10_000], [1_000, 2]), prone) > HALT_AT
    night = FleetDrift(10_000, 20_000, 2.0)
    assert error_evidence(past, VersionCounts([10_000, 10_000], [1_000, 2]), night) < 0
    assert error_evidence(past, VersionCounts([10_000, 10_000], [1_000, 2]), FleetDrift()) == 0.0


def test_judged_pairs_of_a_worse_model_grow_and_of_an_equal_one_fall() -> None:
    assert pair_evidence(80, 40) > HALT_AT
    assert pair_evidence(50, 50) < 0


# -- what reports say -------------------------------------------------------------------------------------------------


def report(version: int, *tallies: ModelTally, **changes: object) -> ModelReport:
    return msgspec.structs.replace(ModelReport("bright", version, "active", tallies=tallies), **changes)


def test_the_evidence_is_what_the_reached_devices_report() -> None:
    slow = ((latency_bin(500.0), 50), (latency_bin(5_000.0), 50))
    reports = {
        "a": (report(2, ModelTally(2, 100, 5, latency=slow), ModelTally(1, 1_000, 10)),),
        "b": (report(1, ModelTally(1, 900, 9), ModelTally(2, 3, 7, deaths=2), refused=(2,)),),
        "c": (report(2, on_probation=True),),
        "d": (report(1, ModelTally(1, 100, 1)),),
    }
    rollout = in_waves(cohort="a,b,c", opened_ms=1_000, max_latency_ms=1_000.0)
    _, found = FleetWatch().decide(rollout, reports, JudgedPairs({"x": True, "y": False, "z": True}), 2_000)
    assert found == WaveEvidence(3, 1, 1, 1, counted=2, slow=1, died=1, attempts=115, errors=0.0, old_right=2, new_right=1)


def test_errors_of_everyone_are_not_the_models() -> None:
    def reports(now: int, failures: int) -> dict[str, tuple[ModelReport, ...]]:
        beside: dict[str, tuple[ModelReport, ...]] = {
            f"o-{n}": (report(1, ModelTally(1, 10_000 + now, 100 + failures)),) for n in range(20)
        }
        ours = (report(2, ModelTally(2, now, failures), ModelTally(1, 10_000, 100)),)
        return {**beside, "a": ours} if now else beside

    rollout = in_waves(cohort="a", opened_ms=1_000)
    night, worse = FleetWatch(), FleetWatch()
    for watch in (night, worse):
        watch.decide(rollout, reports(0, 0), NOTHING, 2_000)
    assert night.decide(rollout, reports(10_000, 300), NOTHING, 3_000)[1].errors < 0
    quiet = reports(10_000, 100) | {"a": (report(2, ModelTally(2, 10_000, 300), ModelTally(1, 10_000, 100)),)}
    decision, found = worse.decide(rollout, quiet, NOTHING, 3_000)
    assert (found.errors > HALT_AT, decision.action) == (True, "halt")


def test_a_report_carries_tallies_and_one_without_is_read_as_before() -> None:
    with_tallies = Reported("d", 1, "0.1", models=(report(2, ModelTally(2, 10, 1, 0, ((3, 10),))),))
    assert decode_reported(encode_reported(with_tallies)) == with_tallies
    assert b"tallies" not in encode_reported(Reported("d", 1, "0.1", models=(ModelReport("bright", 2, "active"),)))


@pytest.mark.parametrize("latency", [((3, 1), (3, 1)), ((4, 1), (3, 1)), ((-1, 1),), ((LATENCY_BINS, 1),)])
def test_a_histogram_that_is_none_is_refused(latency: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(SchemaError, match="latency histogram"):
        ModelTally(1, 1, latency=latency)


@given(st.floats(0.001, 100_000))
def test_a_duration_lies_in_its_bin(milliseconds: float) -> None:
    number = latency_bin(milliseconds)
    assert bin_start_ms(number) <= milliseconds * (1 + 1e-12)
    assert number == LATENCY_BINS - 1 or milliseconds * (1 - 1e-12) < bin_start_ms(number + 1)


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_judged_pictures_count_once_and_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "v.csv"
    file.write_text(
        "sample,current,candidate,truth\ns/1,ok,bad,ok\ns/2,ok,bad,bad\ns/3,ok,ok,bad\ns/4,ok,bad,other\ns/5,ok,bad,\n"
    )
    pairs = read_verdicts(file)
    assert dict(pairs.by_sample) == {"s/1": True, "s/2": False}
    add_judged(tmp_path, "r", pairs)
    assert add_judged(tmp_path, "r", JudgedPairs({"s/2": True})).old_right == 2
    assert (read_judged(tmp_path, "r").new_right, read_judged(tmp_path, "other").old_right) == (0, 0)


@pytest.mark.parametrize("text", ["sample,current\na,b\n", ""])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.csv").write_text(text)
    with pytest.raises(RefusedError, match=r"lacks the columns|neither CSV nor Parquet"):
        read_verdicts(tmp_path / "v.csv")


@pytest.mark.parametrize("body", ["[]", "{", json.dumps({"a": 1})])
def test_a_damaged_table_of_verdicts_is_named(tmp_path: Path, body: str) -> None:
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "r.json").write_text(body)
    with pytest.raises(CorruptLakeError, match="judge the pictures again"):
        read_judged(tmp_path, "r")


# -- back -------------------------------------------------------------------------------------------------------------


def test_the_way_back_orders_every_device_the_version_before() -> None:
    back = way_back(in_waves(cohort="all"), {1: "bright/1.onnx", 2: "bright/2.onnx", 3: "bright/3.onnx"}, None, 5_000)
    assert (back.name, back.version, back.target, back.waves, back.issued_ms) == ("r-back", 1, "bright/1.onnx", (), 5_000)
    assert back.covers("anyone")


@pytest.mark.parametrize(
    ("targets", "to"), [({2: "bright/2.onnx"}, None), ({1: "x/1.onnx", 2: "x/2.onnx"}, 2), ({1: "x/1.onnx"}, 9)]
)
def test_there_is_no_way_back_to_nothing(targets: dict[int, str], to: int | None) -> None:
    with pytest.raises(RefusedError, match="to go back to"):
        way_back(in_waves(), targets, to, 5_000)


# -- whole fleets -----------------------------------------------------------------------------------------------------


def reached(fleet: Fleet, runs: int) -> tuple[float, float]:
    """The share of runs that halted, and of those that reached at most 5 % of the devices."""
    found = [roll_out(fleet, np.random.default_rng(seed)) for seed in range(runs)]
    halted = sum(each.is_halted for each in found) / runs
    return halted, sum(each.reached <= 0.05 * fleet.devices for each in found) / runs


@pytest.mark.slow
@pytest.mark.parametrize(
    "bad",
    [Fleet(1_000, device_failure=0.2), Fleet(1_000, error_ratio=2.0), Fleet(1_000, disagreement=0.1, fall=0.03)],
    ids=["fails on a fifth", "errors doubled", "three points lost"],
)
def test_a_bad_model_reaches_a_twentieth_of_a_thousand_devices_at_most(bad: Fleet) -> None:
    halted, within = reached(bad, 200)
    assert halted == 1.0
    assert within >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("good", [Fleet(1_000), Fleet(1_000, night=3.0), Fleet(20), Fleet(200, disagreement=0.1)])
def test_a_good_model_is_not_halted_though_devices_differ_and_night_falls(good: Fleet) -> None:
    halted, _ = reached(good, 100)
    assert halted <= 0.01


@pytest.mark.parametrize("devices", [20, 1_000, 10_000])
def test_what_is_promised_is_what_the_simulator_finds(devices: int) -> None:
    fleet = Fleet(devices, device_failure=0.5, errors=0.001)
    promised = promised_exposure(wave_counts(WAVES, devices), 0.5)
    found = [roll_out(fleet, np.random.default_rng(seed), min_attempts=0).reached for seed in range(20)]
    assert sum(each <= promised for each in found) >= 17
    assert promised < devices / 2 or devices == 20


def test_a_small_fleet_is_promised_less() -> None:
    shares = [promised_exposure(wave_counts(WAVES, devices), 0.2) / devices for devices in (20, 60, 200, 1_000, 10_000)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2
    assert shares[-2] <= 0.05


def test_evidence_names_every_signal_that_shares_the_false_halt_rate() -> None:
    assert len(evidence_against(WaveEvidence(1))) == 5
