"""The calendar in whole numbers: microseconds since 1970 to year, month, day, week and time of day, and time zones as tables.

A rule carries its time zone as a table of offsets that the core wrote when it compiled it. So a device needs no time zone
database, and cannot have another one than the core.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
DAY_US = 24 * HOUR_US
# Calendar functions know the years 1 to 9998 and give NULL for others; one day is kept free on both sides for the zone.
EARLIEST_US = -62_135_510_400 * SECOND_US  # 0001-01-02
LATEST_US = 253_370_764_800 * SECOND_US  # 9999-01-01, itself out
_THURSDAY = 3  # 1970-01-01, counted from Monday as 0
_MAX_ZONE_CHARS = 16_384


class ZoneError(ValueError):
    """A text is not a table of a time zone's offsets."""


@dataclass(frozen=True, slots=True)
class Zone:
    """The offsets from UTC of a time zone: `offsets[0]` before `starts[0]`, `offsets[n]` from `starts[n - 1]` on; in us."""

    starts: tuple[int, ...]
    offsets: tuple[int, ...]


@lru_cache(maxsize=256)
def read_zone(text: str) -> Zone:
    """A zone from its text: an offset in seconds, then `start:offset` for each change, in seconds since 1970.

    Raises:
        ZoneError: not such a text.
    """
    try:
        first, *changes = text[:_MAX_ZONE_CHARS].split(" ")
        pairs = [tuple(map(int, change.split(":"))) for change in changes]
        starts = tuple(start * SECOND_US for start, _ in pairs)
        offsets = tuple(offset * SECOND_US for offset in (int(first), *(offset for _, offset in pairs)))
    except ValueError as error:
        raise ZoneError(f"not a table of offsets: {text[:60]!r}") from error
    if any(abs(offset) >= DAY_US for offset in offsets) or list(starts) != sorted(set(starts)):
        raise ZoneError(f"not a table of offsets: {text[:60]!r}")
    return Zone(starts, offsets)


def write_zone(zone: Zone) -> str:
    """The text that `read_zone` reads."""
    changes = zip(zone.starts, zone.offsets[1:], strict=True)
    return " ".join((
        str(zone.offsets[0] // SECOND_US),
        *(f"{start // SECOND_US}:{offset // SECOND_US}" for start, offset in changes),
    ))  # fmt: skip


def local_us(micros: int, zone: str) -> int | None:
    """The clock on the wall in that zone, as microseconds since 1970 there; None outside the years 1 to 9998."""
    if not EARLIEST_US <= micros < LATEST_US:
        return None
    table = read_zone(zone)
    return micros + table.offsets[bisect_right(table.starts, micros)]


def year_month_day(micros: int) -> tuple[int, int, int]:
    """Of the proleptic Gregorian calendar (after H. Hinnant: counted from 1 March, so that leap days come last)."""
    days = micros // DAY_US + 719_468
    era, of_era = divmod(days, 146_097)
    year = (of_era - of_era // 1_460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    march = (5 * of_year + 2) // 153
    month = march + 3 if march < 10 else march - 9
    return era * 400 + year + (month <= 2), month, of_year - (153 * march + 2) // 5 + 1


def day_of_week(micros: int) -> int:
    """1 is Monday, 7 Sunday."""
    return (micros // DAY_US + _THURSDAY) % 7 + 1


def day_of_year(micros: int) -> int:
    """1 to 366."""
    return micros // DAY_US - _new_year(year_month_day(micros)[0]) + 1


def week(micros: int) -> int:
    """The week of ISO 8601, 1 to 53: the one that its Thursday's year counts."""
    days = micros // DAY_US
    thursday = days - (days + _THURSDAY) % 7 + _THURSDAY
    return (thursday - _new_year(year_month_day(thursday * DAY_US)[0])) // 7 + 1


def date_text(micros: int) -> str:
    """As 2026-01-31."""
    year, month, day = year_month_day(micros)
    return f"{year:04d}-{month:02d}-{day:02d}"


def _new_year(year: int) -> int:
    """The days since 1970 on 1 January."""
    before = year - 1
    return before * 365 + before // 4 - before // 100 + before // 400 - 719_162
