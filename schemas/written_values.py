"""Numbers and times as people and loggers write them, read exactly or refused with what the configuration lacks. Pure.

A time without a zone is read in the zone that the configuration names, and refused without one: a guess would be wrong by
hours and nobody would see it. Where the clocks are set back a local time occurs twice; what was read before, or the time of
arrival, says which one is meant.
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

# Powers of ten from each unit to microseconds.
UNITS = {"s": 6, "ms": 3, "us": 0, "ns": -3}
MAX_TIME_US = 253_402_300_800_000_000  # the year 10000: above it no calendar we write to can tell the time
# No number here is longer, and Python itself refuses to read one of thousands of digits.
MAX_DIGITS = 400
DECIMALS = (".", ",")
THOUSANDS = ("", ",", ".", " ", "'")
# Years from 1973 on: as seconds a number is below 1e11 until the year 5138, as milliseconds above it since 1973.
_MAGNITUDES = ((1e11, "s"), (1e14, "ms"), (1e17, "us"), (math.inf, "ns"))
_NUMBER = re.compile(r"([+-]?)(\d+)(?:\.(\d*))?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_LEAST_DIGITS = 4
_ZONE_AT_END = re.compile(r"(?<=\d) ?(Z|z|UTC|GMT|[+-]\d\d(?::?\d\d)?)$")
_LEAP_SECOND = re.compile(r"([T ]\d\d:\d\d:)60(?!\d)")
_LEAP_SECOND_OF_FORMAT = re.compile(r"(\d\d[:.]?\d\d[:.]?)60(?!\d)")
_YEAR_FIRST = re.compile(r"(\d{4})/(\d\d)/(\d\d)(?=$|[T ])")
_SECONDS_BELOW = 1e11
_ISO_CHARS = 19  # 2024-05-01T00:00:00
_QUICK_SECONDS = re.compile(r"(\d{1,10})\.(\d{1,6})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# How far a clock may seem to run backwards before it is taken for one that was set back by an hour.
_SLACK_US = 60_000_000
# What "thousands" of this sign stands for, too: typographers' forms.
_ALSO = {" ": "\u00a0\u202f\u2009", "'": "\u2019"}
_YEAR_DIRECTIVES = ("%Y", "%y", "%G", "%c", "%x")

TWICE = "local time that occurs twice, as the clocks are set back"
SKIPPED = "local time that does not occur, as the clocks are set forward; read with the zone's offset before"


class WrittenValueError(ValueError):
    """A value cannot be read. `needs` names the setting that could change it; empty where none could."""

    def __init__(self, reason: str, needs: str = "") -> None:
        super().__init__(reason)
        self.needs = needs


def read_zone(name: str) -> tzinfo | None:
    """The time zone of an IANA name; None for "".

    Raises:
        WrittenValueError: there is none of this name here.
    """
    if name in ("UTC", "Etc/UTC", "Z"):
        return UTC  # also where no time zones are installed
    try:
        return ZoneInfo(name) if name else None
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise WrittenValueError(f"time_zone {name[:80]!r} is unknown here; write a name such as Europe/Berlin") from error


@dataclass(frozen=True, slots=True)
class NumberForm:
    """The form of numbers: the decimal sign, and the separator of groups of digits ("": none).

    Raises:
        WrittenValueError: the two are equal, or not in use anywhere.
    """

    decimal: str = "."
    thousands: str = ""

    def __post_init__(self) -> None:
        if self.decimal not in DECIMALS:
            raise WrittenValueError(f"decimal = {self.decimal[:20]!r} must be '.' or ','")
        if self.thousands not in THOUSANDS or self.thousands == self.decimal:
            shown = ", ".join(map(repr, THOUSANDS))
            raise WrittenValueError(f"thousands = {self.thousands[:20]!r} must be one of {shown}, and not the decimal sign")

    @property
    def is_plain(self) -> bool:
        """Whether numbers are written as programs write them."""
        return (self.decimal, self.thousands) == (".", "")

    def plain(self, text: str) -> str:
        """The number as programs write it.

        Raises:
            WrittenValueError: its groups or its decimal sign are not as configured.
        """
        if self.is_plain:
            return text
        text = text.strip()
        whole, sign, fraction = text.partition(self.decimal)
        if self.thousands:
            for also in _ALSO.get(self.thousands, ""):
                whole = whole.replace(also, self.thousands)
            if self.thousands in whole:
                if not _groups(self.thousands).fullmatch(whole):
                    raise WrittenValueError("not a number: its groups of digits are not of three")
                whole = whole.replace(self.thousands, "")
        found = whole + sign.replace(self.decimal, ".") + fraction
        if self.decimal == "," and ("." in whole or "." in fraction):
            raise WrittenValueError("not a number with a decimal comma", "decimal")
        return found


def _groups(sign: str) -> re.Pattern[str]:
    # The last group has three digits, those before it two (India) or three.
    mark = re.escape(sign)
    return re.compile(rf"[+-]?\d{{1,3}}(?:{mark}\d{{2,3}})*{mark}\d{{3}}")


@dataclass(frozen=True, slots=True)
class TimeForm:
    """The form of times.

    Attributes:
        unit: of numbers: s, ms, us, ns; auto: by their size; rfc3339: no numbers, text alone.
        format: as strptime has it; empty: RFC 3339 text or numbers.
        zone: of text that tells none; None: such text is refused.
        numbers: how numbers are written.

    Raises:
        WrittenValueError: the format names no whole date.
    """

    unit: str = "auto"
    format: str = ""
    zone: tzinfo | None = None
    numbers: NumberForm = NumberForm()

    def __post_init__(self) -> None:
        if not self.format:
            return
        if self.unit != "auto":
            raise WrittenValueError("time_format and time_unit exclude each other: give the one that fits")
        if not any(directive in self.format for directive in _YEAR_DIRECTIVES) or "%Z" in self.format:
            raise WrittenValueError("time_format must hold the year (%Y), and a zone only as %z")
        try:
            datetime.strptime(datetime(2024, 5, 1, tzinfo=UTC).strftime(self.format), self.format)  # noqa: DTZ007 # only tried
        except (ValueError, re.error) as error:
            raise WrittenValueError(f"time_format {self.format[:80]!r} cannot be read back: {error}") from error

    @property
    def is_quick(self) -> bool:
        """Whether `quick_micros` reads as this form does."""
        return self.unit == "auto" and not self.format and self.numbers.is_plain

    @property
    def tells_zone(self) -> bool:
        """Whether text in this form is an instant without more said."""
        return self.zone is not None or "%z" in self.format


PLAIN_TIME = TimeForm()


@dataclass(frozen=True, slots=True)
class WrittenTime:
    """A time that was read: microseconds since 1970 UTC, and what is doubtful about it ("": nothing)."""

    micros: int
    doubt: str = ""


def quick_micros(value: object) -> int | None:
    """The commonest times without detours: seconds since 1970, and RFC 3339 with its zone. None: `read_time` must look.

    Agrees with `read_time` under any form of unit auto, no format and plain numbers.
    """
    if type(value) is float:
        return round(value * 1e6) if -_SECONDS_BELOW < value < _SECONDS_BELOW else None
    if type(value) is not str:
        return None
    if len(value) < _ISO_CHARS:
        found = _QUICK_SECONDS.fullmatch(value)
        return None if found is None else int(found[1] + found[2].ljust(6, "0"))
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    offset = moment.utcoffset()
    return None if offset is None else _micros(moment, offset)


def read_time(value: object, form: TimeForm = PLAIN_TIME, after_us: int | None = None, near_us: int | None = None) -> WrittenTime:
    """Read a time.

    Args:
        value: text or a number.
        form: how it is written.
        after_us: the time read before it in the same file, which tells of two possible times the one that follows.
        near_us: when it arrived, which does so where nothing was read before.

    Raises:
        WrittenValueError: it is no time in this form.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise WrittenValueError("not a time")
    if form.format:
        return _placed(_by_format(value if isinstance(value, str) else repr(value), form.format), form, after_us, near_us)
    if isinstance(value, str) and form.unit in ("auto", "rfc3339") and any(mark in value[1:] for mark in "-:/T"):
        return _placed(_by_rfc3339(value), form, after_us, near_us)
    if form.unit == "rfc3339":
        raise WrittenValueError("not a time", "time_unit")
    return WrittenTime(_number(value, form))


def _number(value: float | str, form: TimeForm) -> int:
    text = form.numbers.plain(value) if isinstance(value, str) else None
    found = _NUMBER.fullmatch(text.strip()) if text is not None and len(text) <= MAX_DIGITS else None
    if found is not None:
        micros = _exactly(found, UNITS[form.unit if form.unit != "auto" else _unit_of(float(found[2]))])
    elif isinstance(value, int):
        size = float(abs(value)) if abs(value) < 10**30 else math.inf
        micros = _rounded(value, UNITS[form.unit if form.unit != "auto" else _unit_of(size)])
    else:
        number = _float(value if text is None else text)
        power = UNITS[form.unit if form.unit != "auto" else _unit_of(abs(number))]
        micros = round(number * 10.0**power) if abs(number) < 1e20 else MAX_TIME_US
    if abs(micros) >= MAX_TIME_US:
        raise WrittenValueError("time out of range", "time_unit")
    return micros


def _unit_of(size: float) -> str:
    return next(unit for limit, unit in _MAGNITUDES if size < limit or limit == math.inf)


def _float(value: float | str) -> float:
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise WrittenValueError("not a number", _need_of(value) if isinstance(value, str) else "") from error
    if not math.isfinite(number):
        raise WrittenValueError("not a time")
    return number


def _need_of(text: str) -> str:
    """The setting that may make a text a time: words without digits are none in any form."""
    if _DECIMAL_COMMA.fullmatch(text.strip()):
        return "decimal"
    return "time_format" if sum(map(str.isdigit, text)) >= _LEAST_DIGITS else ""


def _exactly(found: re.Match[str], power: int) -> int:
    # A double holds 1655071198.444458 only to 0.24 us; the decimal digits hold it exactly.
    sign = -1 if found[1] == "-" else 1
    if power < 0:
        return sign * _rounded(int(found[2]), power)
    digits = (found[3] or "")[: power + 1].ljust(power + 1, "0")
    return sign * ((int(found[2] + digits) + 5) // 10)


def _rounded(value: int, power: int) -> int:
    return value * int(10.0**power) if power >= 0 else (value + 500) // 1_000


def _by_format(text: str, form: str) -> datetime:
    text = text.strip()
    # A leap second, as in RFC 3339 text.
    plain, leaps = _LEAP_SECOND_OF_FORMAT.subn(r"\g<1>59", text, count=1) if "%S" in form or "%T" in form else (text, 0)
    try:
        try:
            return datetime.strptime(text, form)  # noqa: DTZ007 # a zone is put in next
        except ValueError:
            if not leaps:
                raise
            return datetime.strptime(plain, form) + timedelta(seconds=1)  # noqa: DTZ007
    except (ValueError, OverflowError) as error:
        raise WrittenValueError("not written as time_format says", "time_format") from error


def _by_rfc3339(text: str) -> datetime:
    plain = _YEAR_FIRST.sub(r"\1-\2-\3", text.strip())
    zone = _ZONE_AT_END.search(plain)
    if zone is not None and ":" in plain[: zone.start()]:  # else the end of a date would be taken for one
        plain = plain[: zone.start()] + ("+00:00" if zone[1] in ("Z", "z", "UTC", "GMT") else zone[1])
    # A leap second is 60, which Python does not read; in POSIX time it is the second after 59, as the core has it.
    plain, leaps = _LEAP_SECOND.subn(r"\g<1>59", plain, count=1)
    try:
        return datetime.fromisoformat(plain) + timedelta(seconds=leaps)
    except (ValueError, OverflowError) as error:
        raise WrittenValueError("not an RFC 3339 time", _need_of(text)) from error


def _placed(moment: datetime, form: TimeForm, after_us: int | None, near_us: int | None) -> WrittenTime:
    """The instant of a moment; the zone of the configuration where it tells none."""
    if moment.tzinfo is not None:
        return WrittenTime(_micros(moment, moment.utcoffset() or timedelta()))
    if form.zone is None:
        raise WrittenValueError("a time that tells no zone", "time_zone")
    try:
        first, second = (moment.replace(tzinfo=form.zone, fold=fold).utcoffset() or timedelta() for fold in (0, 1))
    except OverflowError as error:
        raise WrittenValueError("time out of range") from error
    early, late = _micros(moment, first), _micros(moment, second)
    if first == second:
        return WrittenTime(early)
    if first < second:
        return WrittenTime(early, SKIPPED)
    if after_us is not None:
        return WrittenTime(early if early >= after_us - _SLACK_US else late, TWICE)
    is_late = near_us is not None and abs(late - near_us) < abs(early - near_us)
    return WrittenTime(late if is_late else early, TWICE)


def _micros(moment: datetime, offset: timedelta) -> int:
    since = moment.replace(tzinfo=UTC) - _EPOCH - offset
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
