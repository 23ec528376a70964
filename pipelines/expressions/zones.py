"""Time zones by name, as the tables of offsets that rules carry.

They come from the time zone database inside Polars, whose version the lock file fixes: not from the machine's.
"""

import difflib
import re
from functools import lru_cache
from zoneinfo import available_timezones

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from catchment.rules.calendar import SECOND_US, Zone, write_zone

# Before and after, a zone keeps the offset of that day.
FIRST, LAST = "1990-01-01", "2050-01-01"
_STEP_S = 900  # every change since 1990 is at a whole quarter of an hour
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
_OFFSET = re.compile(r"([+-])(0\d|1[0-4]):([0-5]\d)")


class UnknownZoneError(ValueError):
    """There is no such time zone; the message says which is near."""


@lru_cache(maxsize=256)
def zone_text(name: str) -> str:
    """The table of a zone: `UTC`, an offset as `+05:30`, or a name as `Europe/Berlin`.

    Raises:
        UnknownZoneError: there is no such zone.
    """
    if name in ("UTC", "Z"):
        return "0"
    fixed = _OFFSET.fullmatch(name)
    if fixed is not None:
        seconds = int(fixed.group(2)) * 3_600 + int(fixed.group(3)) * 60
        return str(-seconds if fixed.group(1) == "-" else seconds)
    return write_zone(_table(name))


def _table(name: str) -> Zone:
    first, last = (int(np.datetime64(day, "s").astype(np.int64)) for day in (FIRST, LAST))
    instants = np.arange(first, last, _STEP_S, dtype=np.int64)
    offsets = _offsets(name, instants)
    changes = np.flatnonzero(np.diff(offsets)) + 1
    starts = tuple(int(instants[index]) * SECOND_US for index in changes)
    return Zone(starts, tuple(int(offsets[index]) for index in (0, *changes)))


def _offsets(name: str, instants_s: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    if not _NAME.fullmatch(name):
        raise UnknownZoneError(f"time zone {name[:60]!r} is written as 'Europe/Berlin', 'UTC' or '+05:30'")
    utc = pl.Series(instants_s * SECOND_US).cast(pl.Datetime("us", "UTC"))
    try:
        local = utc.dt.convert_time_zone(name).dt.replace_time_zone(None)
    except PolarsError as error:
        close = difflib.get_close_matches(name, available_timezones(), n=1)
        hint = f"did you mean {close[0]!r}?" if close else "it is written as 'Europe/Berlin', 'UTC' or '+05:30'"
        raise UnknownZoneError(f"unknown time zone {name[:60]!r}; {hint}") from error
    shifted: np.ndarray[tuple[int], np.dtype[np.int64]] = (local.to_physical() - utc.to_physical()).to_numpy()
    return shifted
