"""Prometheus text: what every reader of metrics gets, from agent and core."""

import pytest

from catchment.runtime.metrics_text import MetricsPage, number_text


def test_a_family_has_its_help_once_and_its_samples_together() -> None:
    page = MetricsPage()
    page.add("a_total", "First.", [({"x": "1"}, 2)], kind="counter")
    page.add_one("b", "Another.", 1.5)
    page.add("a_total", "Not shown.", [({"x": "2"}, 3.0)], kind="counter")
    assert page.text() == (
        '# HELP a_total First.\n# TYPE a_total counter\na_total{x="1"} 2\na_total{x="2"} 3\n'
        "# HELP b Another.\n# TYPE b gauge\nb 1.5\n"
    )


def test_a_family_without_a_sample_is_left_out() -> None:
    page = MetricsPage()
    page.add("a", "None.", [])
    page.add_one("b", "None either.", None)
    page.add_one("c", "One.", 0)
    assert page.text() == "# HELP c One.\n# TYPE c gauge\nc 0\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12_345_678_901, "12345678901"),
        (12_345_678.0, "12345678"),
        (0.04, "0.04"),
        (1 / 3, "0.333333333"),
        (-2.5, "-2.5"),
        (1e300, "1e+300"),
        (float("nan"), "NaN"),
        (float("inf"), "+Inf"),
        (float("-inf"), "-Inf"),
    ],
)
def test_a_whole_number_is_written_in_full(value: float, text: str) -> None:
    assert number_text(value) == text


def test_no_text_from_outside_becomes_a_line_of_its_own() -> None:
    page = MetricsPage()
    page.add("a\nb 1", "help\nc 2", [({"x": 'q"\\\nd 3\x1b'}, 1)])
    assert page.text() == '# HELP a_b_1 help\\nc 2\n# TYPE a_b_1 gauge\na_b_1{x="q\\"\\\\\\nd 3\\\\x1b"} 1\n'
