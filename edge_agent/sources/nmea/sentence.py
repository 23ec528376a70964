"""NMEA 0183 sentences and gpsd's reports: what a satellite receiver says of time, place and speed. Pure."""

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from edge_agent.sources.rows.cells import CellError, to_time_us
from schemas.written_values import TimeForm

_RFC_3339 = TimeForm("rfc3339", zone=UTC)
_KNOT_MPS = 1852 / 3600
_MAX_SENTENCE = 1_024
OTHER = "report: sentence of another kind"


class SentenceError(ValueError):
    """It is damaged, or says what cannot be."""


@dataclass(frozen=True, slots=True)
class Fix:
    """Where and when. None: not told.

    Attributes:
        time_us: microseconds since 1970 UTC, of the satellites.
        course_deg: over ground, clockwise from north.
        hdop: horizontal dilution of precision.
    """

    time_us: int
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    altitude_m: float | None = None
    speed_mps: float | None = None
    course_deg: float | None = None
    satellites: int | None = None
    hdop: float | None = None


def read_fields(sentence: str) -> list[str]:
    """The fields of a sentence whose checksum is right. Tag blocks before it (NMEA 4.10) are no part of it.

    Raises:
        SentenceError: it is none, or damaged on its way.
    """
    text = sentence.strip()
    while text.startswith("\\") and (end := text.find("\\", 1)) > 0:
        text = text[end + 1 :]
    if not text.startswith(("$", "!")) or len(text) > _MAX_SENTENCE:
        raise SentenceError("no NMEA sentence")
    body, star, checksum = text[1:].rpartition("*")
    if not star:
        raise SentenceError("no checksum")
    total = 0
    for char in body.encode():
        total ^= char
    if checksum.upper() != f"{total:02X}":
        raise SentenceError("wrong checksum")
    return body.split(",")


class FixBuilder:
    """Joins the sentences of one moment: RMC tells date, speed and course, GGA height and quality.

    Attributes:
        dateless: moments with a fix of which no RMC told the date.
    """

    def __init__(self) -> None:
        self._moment = ""
        self._fix: Fix | None = None
        self._more: dict[str, float | int | None] = {}
        self.dateless = 0

    def take(self, fields: list[str]) -> tuple[Fix | None, str]:
        """One sentence: the fix of the moment before, where this one begins another, and why this one was refused."""
        kind = fields[0][-3:]
        if kind not in ("RMC", "GGA") or len(fields) < 10:
            return None, OTHER
        moment = _plain_moment(fields[1])
        done = self.flush() if moment != self._moment else None
        self._moment = moment
        try:
            if kind == "RMC":
                self._fix = _rmc(fields)
            elif fields[6] not in ("", "0"):
                self._more = {"altitude_m": _number(fields[9]), "satellites": _whole(fields[7]), "hdop": _number(fields[8])}
        except SentenceError as error:
            return done, str(error)
        except (ValueError, OverflowError):
            return done, f"{kind} says what cannot be"
        return done, ""

    def flush(self) -> Fix | None:
        """What is known of the moment so far; None without time and place."""
        fix, more = self._fix, self._more
        self.dateless += fix is None and bool(more)
        self._fix, self._more, self._moment = None, {}, ""
        return None if fix is None else replace(fix, **more)  # type: ignore[arg-type]  # the names are a fix's own


def read_tpv(report: dict[str, object]) -> Fix | None:
    """Gpsd's time-position-velocity report; None for its other classes.

    Raises:
        SentenceError: the receiver has no fix, or the report says what cannot be.
    """
    if report.get("class") != "TPV":
        return None
    mode = report.get("mode")
    if not isinstance(mode, int) or mode < 2 or "time" not in report:
        raise SentenceError("no fix")
    try:
        time_us = to_time_us(report["time"], _RFC_3339)
    except CellError as error:
        raise SentenceError("a time that cannot be") from error
    return Fix(
        time_us,
        _within(report.get("lat"), 90),
        _within(report.get("lon"), 180),
        _within(report.get("altMSL", report.get("altHAE", report.get("alt"))), 1e6),
        _within(report.get("speed"), 1e5),
        _within(report.get("track"), 360),
    )


def _rmc(fields: list[str]) -> Fix:
    if fields[2] != "A":
        raise SentenceError("no fix")
    return Fix(
        _moment(fields[9], fields[1]),
        _angle(fields[3], fields[4], 2, 90),
        _angle(fields[5], fields[6], 3, 180),
        speed_mps=None if not fields[7] else float(_number(fields[7]) or 0.0) * _KNOT_MPS,
        course_deg=_number(fields[8]),
    )


def _moment(date: str, time: str) -> int:
    if len(date) != 6 or not date.isdigit() or len(time) < 6 or not time[:6].isdigit():
        raise SentenceError("a time that cannot be")
    if int(time[:2]) > 23 or int(time[2:4]) > 59 or int(time[4:6]) > 60:
        raise SentenceError("a time that cannot be")
    year = int(date[4:6])
    day = datetime(year + (1900 if year >= 80 else 2000), int(date[2:4]), int(date[:2]), tzinfo=UTC)
    since = timedelta(hours=int(time[:2]), minutes=int(time[2:4]), seconds=int(time[4:6]))
    micros = round(float(f"0{time[6:] or '.0'}") * 1e6)
    return round((day + since).timestamp()) * 1_000_000 + micros


def _plain_moment(time: str) -> str:
    """One form of a time of day: sentences of one moment write its fraction in different lengths."""
    whole, _, fraction = time.partition(".")
    return f"{whole}.{fraction.rstrip('0')}"


def _angle(text: str, side: str, digits: int, most: float) -> float:
    minutes = float(text[digits:])
    number = int(text[:digits]) + minutes / 60
    if side not in ("N", "S", "E", "W") or not 0 <= minutes < 60 or not number <= most:
        raise SentenceError("a place that cannot be")
    return -number if side in ("S", "W") else number


def _number(text: str) -> float | None:
    if not text:
        return None
    number = float(text)
    if not math.isfinite(number):
        raise SentenceError("a number that is none")
    return number


def _whole(text: str) -> int | None:
    return int(text) if text else None


def _within(value: object, most: float) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    if not math.isfinite(value) or abs(value) > most:
        raise SentenceError("a number that cannot be")
    return float(value)
