"""Decode a satellite receiver: sentences out of its bytes, and time, place and speed out of NMEA 0183 and gpsd's reports. Pure.

Messages in binary (UBX, RTCM 3) may stand between sentences, and noise anywhere. A binary message is skipped as a whole once
its own checksum is right, so that nothing within it is taken for a sentence.
"""

import math
import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from edge_agent.sources.api import Rejects
from edge_agent.sources.rows.cells import CellError, to_time_us
from schemas.written_values import TimeForm

UBX = "report: binary message (UBX)"
RTCM = "report: binary message (RTCM)"
NOISE = "row: no NMEA sentence"
_MAX_SENTENCE_BYTES = 2_048
_MAX_UBX_BYTES = 8_192
_UBX_FRAME_BYTES, _RTCM_FRAME_BYTES = 8, 6
_UBX_SYNC, _RTCM_SYNC = b"\xb5b", b"\xd3"
# What a sentence, its tag block or a binary message begins with, or what ends a line of noise.
_BEGIN = re.compile(rb"[$!\\\xb5\xd3\n]")
_END = re.compile(rb"[\r\n]")
# The last beginning within a line, with the tag blocks that stand right before it.
_SENTENCE = re.compile(rb"(?:\\[^\\]*\\)*[$!][^$!]*\Z")
_CRC24Q = 0x1864CFB

_RFC_3339 = TimeForm("rfc3339", zone=UTC)
_KNOT_MPS = 1852 / 3600
_MAX_SENTENCE = 1_024
OTHER = "report: sentence of another kind"


class SentenceStream:
    """Takes bytes as they come, gives sentences.

    Args:
        rejects: where noise and binary messages are counted.
    """

    def __init__(self, rejects: Rejects) -> None:
        self._rejects = rejects
        self._bytes = bytearray()
        self._is_noise = False

    def add(self, piece: bytes) -> None:
        """Take more bytes."""
        self._bytes += piece

    def take(self, most: int) -> list[str]:
        """At most so many sentences, each with its tag block, without the line's end."""
        found: list[str] = []
        while self._bytes and len(found) < most:
            byte = self._bytes[0]
            if byte in (_UBX_SYNC[0], _RTCM_SYNC[0]):
                count = self._binary()
                if count == 0:
                    break  # the rest of it is still to come
                if count > 0:
                    del self._bytes[:count]
                    continue
            elif byte in b"$!\\":
                end = _END.search(self._bytes)
                if end is None and len(self._bytes) < _MAX_SENTENCE_BYTES:
                    break
                if end is not None and end.start() < _MAX_SENTENCE_BYTES:
                    found += self._sentence(bytes(self._bytes[: end.start()]))
                    del self._bytes[: end.start()]
                    continue
            self._skip(1 if byte in b"$!\\\xb5\xd3" else 0)
        return found

    def _sentence(self, line: bytes) -> list[str]:
        """The sentence in a line that begins as one; where another begins within it, that one, and the first was torn."""
        whole = _SENTENCE.search(line)
        if whole is None or whole.start() > 0:
            self._rejects.count(NOISE, line[:80])
        self._is_noise = False
        return [] if whole is None else [whole.group().decode("utf-8", errors="replace")]

    def _skip(self, least: int) -> None:
        """Leave out what begins nothing, at least so many bytes; each run of noise counts once."""
        if self._bytes[0] in b"\r\n":
            self._is_noise = False
            del self._bytes[: len(self._bytes) - len(self._bytes.lstrip(b"\r\n\0"))]
            return
        found = _BEGIN.search(self._bytes, least)
        end = found.start() if found else len(self._bytes)
        if not self._is_noise and self._bytes[:end].strip(b"\0 "):
            self._rejects.count(NOISE, bytes(self._bytes[: min(end, 80)]))
            self._is_noise = True
        del self._bytes[:end]

    def _binary(self) -> int:
        """The length of the binary message that begins here; 0: not all of it is here; below 0: there is none."""
        if self._bytes[0] == _UBX_SYNC[0]:
            return self._ubx()
        return self._rtcm()

    def _ubx(self) -> int:
        data = self._bytes
        if not _UBX_SYNC.startswith(bytes(data[:2])) and bytes(data[:2]) != _UBX_SYNC:
            return -1
        if len(data) < 6:
            return 0
        count = int.from_bytes(data[4:6], "little") + _UBX_FRAME_BYTES
        if count > _MAX_UBX_BYTES:
            return -1
        if len(data) < count:
            return 0
        first = second = 0
        for byte in data[2 : count - 2]:
            first = (first + byte) & 0xFF
            second = (second + first) & 0xFF
        return self._counted(UBX, count) if bytes(data[count - 2 : count]) == bytes((first, second)) else -1

    def _rtcm(self) -> int:
        data = self._bytes
        if len(data) < 3:
            return 0 if len(data) < 2 or not data[1] & 0xFC else -1
        count = int.from_bytes(data[1:3], "big") + _RTCM_FRAME_BYTES
        if data[1] & 0xFC:
            return -1
        if len(data) < count:
            return 0
        crc = 0
        for byte in data[: count - 3]:
            crc ^= byte << 16
            for _ in range(8):
                crc <<= 1
                if crc & 0x1000000:
                    crc ^= _CRC24Q
        return self._counted(RTCM, count) if data[count - 3 : count] == crc.to_bytes(3, "big") else -1

    def _counted(self, reason: str, count: int) -> int:
        self._rejects.count(reason)
        return count


class SentenceError(ValueError):
    """The sentence is damaged, or holds impossible values."""


@dataclass(frozen=True, slots=True)
class Fix:
    """A fix: time, place and motion. None: not reported.

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
        dateless: moments with a fix of which no RMC gave the date.
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
        """Return the fix of the current moment so far; None without time and place."""
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
