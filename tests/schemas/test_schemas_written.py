"""Times and numbers as people write them are read exactly, or refused with the setting that is missing."""

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.envelope import parse_time
from schemas.source_names import column_name_of, match_columns
from schemas.written_values import SKIPPED, TWICE, NumberForm, TimeForm, WrittenValueError, quick_micros, read_time, read_zone

BERLIN = ZoneInfo("Europe/Berlin")
MAY_US = 1_714_521_600_000_000  # 2024-05-01T00:00:00Z
HOUR_US = 3_600_000_000
NAIVE = datetime  # Hypothesis puts the zone in


@pytest.mark.parametrize(
    ("value", "form", "micros"),
    [
        (1_714_521_600, TimeForm(), MAY_US),
        ("1714521600", TimeForm(), MAY_US),
        ("1714521600000", TimeForm(), MAY_US),
        (1_714_521_600_000.0, TimeForm(), MAY_US),
        (1_714_521_600_000_000, TimeForm(), MAY_US),
        (1_714_521_600_000_000_000, TimeForm(), MAY_US),
        ("1714521600.444458", TimeForm(), MAY_US + 444_458),
        ("1714521600444.458", TimeForm(), MAY_US + 444_458),
        ("1714521600444458999", TimeForm(), MAY_US + 444_459),
        ("-1.5", TimeForm(), -1_500_000),
        ("1.714.521.600.000,5", TimeForm(numbers=NumberForm(",", "."), unit="ms"), 1_714_521_600_000_500),
        ("2024-05-01T00:00:00Z", TimeForm(), MAY_US),
        ("2024-05-01 02:00:00.5+02:00", TimeForm(), MAY_US + 500_000),
        ("2024-05-01 02:00:00,5 +0200", TimeForm(), MAY_US + 500_000),
        ("2024/05/01 00:00:00 UTC", TimeForm(), MAY_US),
        ("20240501T000000Z", TimeForm(), MAY_US),
        ("2024-05-01 02:00:00", TimeForm(zone=BERLIN), MAY_US),
        ("2024-05-01", TimeForm(zone=UTC), MAY_US),
        ("31.12.2016 23:59:60", TimeForm(format="%d.%m.%Y %H:%M:%S", zone=UTC), 1_483_228_800_000_000),
        ("20161231235960+0000", TimeForm(format="%Y%m%d%H%M%S%z"), 1_483_228_800_000_000),
        ("01.05.2024 02:00:00", TimeForm(format="%d.%m.%Y %H:%M:%S", zone=BERLIN), MAY_US),
        (20_240_501_020_000, TimeForm(format="%Y%m%d%H%M%S", zone=BERLIN), MAY_US),
        ("01/May/2024:02:00:00 +0200", TimeForm(format="%d/%b/%Y:%H:%M:%S %z"), MAY_US),
    ],
)
def test_a_time_is_read_exactly(value: object, form: TimeForm, micros: int) -> None:
    assert read_time(value, form).micros == micros


@pytest.mark.parametrize(
    ("value", "form", "needs"),
    [
        ("2024-05-01 00:00:00", TimeForm(), "time_zone"),
        ("2024-05-01T00:00:00", TimeForm("rfc3339"), "time_zone"),
        ("01.05.2024 00:00", TimeForm(), "time_format"),
        ("2024-05-01 00:00:00Z", TimeForm(format="%d.%m.%Y %H:%M", zone=UTC), "time_format"),
        (1_714_521_600_000, TimeForm("s"), "time_unit"),
        (10**40, TimeForm(), "time_unit"),
        ("1714521600,5", TimeForm(), "decimal"),
        ("yesterday", TimeForm(), ""),
        ("", TimeForm(zone=UTC), ""),
        (float("nan"), TimeForm(), ""),
        (True, TimeForm(), ""),
        (None, TimeForm(), ""),
    ],
)
def test_what_cannot_be_read_names_the_setting_that_is_missing(value: object, form: TimeForm, needs: str) -> None:
    with pytest.raises(WrittenValueError) as raised:
        read_time(value, form)
    assert raised.value.needs == needs


def test_a_local_time_that_occurs_twice_is_the_one_that_follows_what_was_read() -> None:
    form = TimeForm(zone=BERLIN)
    first = int(datetime(2024, 10, 27, 0, 30, tzinfo=UTC).timestamp() * 1e6)
    text = "2024-10-27 02:30:00"
    assert (read_time(text, form).micros, read_time(text, form).doubt) == (first, TWICE)
    assert read_time(text, form, after_us=first - 1).micros == first
    assert read_time(text, form, after_us=first + 30_000_000).micros == first  # a clock that jitters
    assert read_time(text, form, after_us=first + HOUR_US // 2).micros == first + HOUR_US
    assert read_time(text, form, near_us=first + HOUR_US + 5).micros == first + HOUR_US
    assert read_time(text, form, near_us=first + 5).micros == first
    skipped = read_time("2024-03-31 02:30:00", form)
    assert (skipped.micros, skipped.doubt) == (int(datetime(2024, 3, 31, 1, 30, tzinfo=UTC).timestamp() * 1e6), SKIPPED)


@given(st.datetimes(NAIVE(2023, 1, 1), NAIVE(2025, 1, 1)), st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata"]))
def test_a_logger_that_runs_through_the_year_keeps_its_order(start: datetime, zone: str) -> None:
    form, at = TimeForm(zone=ZoneInfo(zone)), start.replace(tzinfo=UTC)
    after_us = int(at.timestamp()) * 1_000_000
    for _ in range(200):
        at += timedelta(minutes=7)
        local = at.astimezone(ZoneInfo(zone)).replace(tzinfo=None, microsecond=0)
        after_us = read_time(str(local), form, after_us=after_us).micros
        assert after_us == int(at.timestamp()) * 1_000_000


@given(st.datetimes(NAIVE(1990, 1, 1), NAIVE(2099, 1, 1)), st.sampled_from(["s", "ms", "us", "ns"]))
def test_numbers_since_1970_are_known_by_their_size(moment: datetime, unit: str) -> None:
    micros = round(moment.replace(tzinfo=UTC).timestamp()) * 1_000_000
    written = {"s": micros // 1_000_000, "ms": micros // 1_000, "us": micros, "ns": micros * 1_000}[unit]
    for value in (written, str(written)):
        assert read_time(value, TimeForm()).micros == read_time(value, TimeForm(unit)).micros == micros


@given(
    st.floats()
    | st.text(max_size=30)
    | st.from_regex(r"\d{1,12}(\.\d{1,8})?", fullmatch=True)
    | st.datetimes().map(str)
    | st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat())
)
def test_the_quick_way_reads_what_the_long_one_reads(value: object) -> None:
    found = quick_micros(value)
    if found is not None:
        assert read_time(value).micros == found


@pytest.mark.parametrize(
    ("form", "text", "plain"),
    [
        (NumberForm(), "1_5", "1_5"),
        (NumberForm(","), " 12,5 ", "12.5"),
        (NumberForm(",", "."), "-1.234.567,5", "-1234567.5"),
        (NumberForm(".", ","), "12,34,567.5", "1234567.5"),
        (NumberForm(",", " "), "1\u00a0234,5", "1234.5"),
        (NumberForm(".", "'"), "1\u2019234.5", "1234.5"),
        (NumberForm(","), "nan", "nan"),
    ],
)
def test_numbers_lose_their_groups_and_their_decimal_comma(form: NumberForm, text: str, plain: str) -> None:
    assert form.plain(text) == plain


def test_a_number_that_is_not_so_written_is_refused_and_never_read_as_another() -> None:
    for form, text in (
        (NumberForm(","), "1.234"),
        (NumberForm(",", "."), "1.5"),
        (NumberForm(",", "."), "1234.5,2"),
        (NumberForm(",", "."), "1,234.5"),
    ):
        with pytest.raises(WrittenValueError):
            form.plain(text)
    for wrong in ({"decimal": ";"}, {"thousands": "x"}, {"decimal": ",", "thousands": ","}):
        with pytest.raises(WrittenValueError):
            NumberForm(**wrong)


def test_forms_that_name_no_instant_are_refused_before_anything_is_read() -> None:
    wrongs: list[dict[str, Any]] = [{"format": "%H:%M"}, {"format": "%Y %Z"}, {"format": "%Y", "unit": "s"}, {"format": "%Y %Q"}]
    for wrong in wrongs:
        with pytest.raises(WrittenValueError):
            TimeForm(**wrong)
    for name in ("Mars/Phobos", "../../etc/passwd", "Europe", "x" * 300, "a\0b"):
        with pytest.raises(WrittenValueError):
            read_zone(name)
    assert (read_zone(""), read_zone("UTC")) == (None, UTC)


@given(st.text(max_size=80))
def test_every_name_gives_a_column_name(name: str) -> None:
    from schemas.contract import Column, ColumnType

    made = column_name_of(name)
    if made != "event_time":
        Column(made, ColumnType.STRING)


def test_a_name_written_in_two_ways_of_unicode_is_one_name() -> None:
    from schemas.contract import Column, ColumnType

    column = Column("grosse", ColumnType.STRING, source_name="Gr\u00f6\u00dfe")
    assert match_columns(["Gro\u0308\u00dfe"], [column], {}) == {"Gro\u0308\u00dfe": column}


@pytest.mark.parametrize(
    "text",
    [
        "2016-12-31T23:59:60Z",
        "2016-12-31T23:59:60.25+00:00",
        "2026-01-01t00:00:00z",
        "2026-01-01T00:00:00Z",
        "2016-12-31T20:59:60-03:00",
    ],
)
def test_a_time_means_the_same_on_the_device_and_in_the_core(text: str) -> None:
    assert read_time(text).micros == parse_time(text)
