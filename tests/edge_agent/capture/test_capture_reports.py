"""Deadbands and change-only reporting, and the quality of a clock."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.capture.transforms import UNCHANGED, ChangeReport, build_transforms
from edge_agent.clock_quality import ClockQuality, ClockWatch
from edge_agent.errors import ConfigError
from edge_agent.sections import ReportConfig
from edge_agent.sources.api import Rejects, SampleBatch
from schemas.contract import builtin_contract


class TwoClocks:
    def __init__(self) -> None:
        self.wall_ms = 1_700_000_000_000
        self.s = 0.0

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_s(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        self.pass_s(seconds)

    def pass_s(self, seconds: float) -> None:
        self.s += seconds
        self.wall_ms += int(seconds * 1000)


def kept(config: ReportConfig, times: list[int], **columns: list[Any]) -> list[int]:
    return list(ChangeReport(config, Rejects("test"))(SampleBatch(times, columns)).event_time_us)


def test_a_value_within_its_deadband_is_not_reported() -> None:
    config = ReportConfig(deadband={"v": 0.5})
    assert kept(config, [0, 1, 2, 3, 4], v=[1.0, 1.4, 1.5, 1.6, 1.3]) == [0, 3]


def test_a_slow_drift_is_measured_from_what_was_last_reported() -> None:
    config = ReportConfig(deadband={"v": 1.0})
    assert kept(config, list(range(100)), v=[n * 0.25 for n in range(100)]) == list(range(0, 100, 5))


def test_change_only_reports_each_other_value_and_null_is_one() -> None:
    config = ReportConfig(change_only=("state",))
    assert kept(config, [0, 1, 2, 3, 4], state=["on", "on", None, None, "on"]) == [0, 2, 4]


def test_each_key_is_watched_by_itself() -> None:
    config = ReportConfig(deadband={"v": 1.0}, key=("signal",))
    assert kept(config, [0, 1, 2, 3], v=[1.0, 50.0, 1.2, 52.0], signal=["a", "b", "a", "b"]) == [0, 1, 3]


def test_silence_lasts_no_longer_than_the_interval() -> None:
    config = ReportConfig(change_only=("v",), max_interval_s=1.0)
    assert kept(config, [0, 500_000, 1_000_000, 1_900_000, 2_000_000], v=[1] * 5) == [0, 1_000_000, 2_000_000]


def test_a_clock_that_goes_back_is_reported() -> None:
    assert kept(ReportConfig(change_only=("v",), max_interval_s=10.0), [5_000_000, 1_000_000, 1_100_000], v=[1] * 3) == [
        5_000_000,
        1_000_000,
    ]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60), st.floats(0, 5))
def test_what_was_last_reported_is_never_further_off_than_the_deadband(values: list[float], width: float) -> None:
    rejects = Rejects("test")
    report = ChangeReport(ReportConfig(deadband={"v": width}), rejects)
    last = None
    for n, value in enumerate(values):
        out = report(SampleBatch([n], {"v": [value]}))
        last = out.columns["v"][0] if len(out) else last
        assert isinstance(last, float)
        assert abs(value - last) <= width
    given_out = len(values) - rejects.counts.get(UNCHANGED, 0)
    assert 1 <= given_out <= len(values)


def test_a_deadband_on_a_text_or_an_unknown_column_or_a_payload_is_a_configuration_error() -> None:
    clock = TwoClocks()
    for stream, config in (
        ("vehicle_telemetry", ReportConfig(deadband={"gear": 1.0})),
        ("network_flow", ReportConfig(deadband={"proto": 1.0})),
        ("camera_frame", ReportConfig(change_only=("camera",))),
    ):
        with pytest.raises(ConfigError):
            build_transforms(builtin_contract(stream), config, b"", ClockWatch(clock), None)


def test_a_clock_that_jumps_is_marked_for_ten_minutes_whichever_way_it_jumps() -> None:
    clock = TwoClocks()
    watch = ClockWatch(clock, lambda: True)
    assert watch.judge() is ClockQuality.SYNCHRONISED
    for years in (10, -9):
        clock.wall_ms += years * 365 * 86_400_000
        assert watch.judge() is ClockQuality.STEPPED
        clock.pass_s(599)
        assert watch.judge() is ClockQuality.STEPPED
        clock.pass_s(2)
        assert watch.judge() is ClockQuality.SYNCHRONISED


def test_a_free_running_clock_is_marked_and_a_devices_own_time_is_the_devices() -> None:
    contract = builtin_contract("vehicle_telemetry")
    transforms = build_transforms(contract, None, b"", ClockWatch(TwoClocks(), lambda: False), None)
    now_us = TwoClocks().wall_ms * 1000
    assert transforms(SampleBatch([now_us], {}, agent_clock=True)).columns["clock_quality"] == ["unsynchronised"]
    assert transforms(SampleBatch([0], {})).columns["clock_quality"] == ["device"]
    assert transforms(SampleBatch([0], {"clock_quality": ["gnss"]})).columns["clock_quality"] == ["gnss"]
