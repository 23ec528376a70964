"""The functions of the expression language: their arguments, what they give, and the nodes they are expanded into.

The fewer nodes an engine must know, the fewer places there are in which two engines could differ.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from zoneinfo import available_timezones

import numpy as np
import polars as pl
from polars.exceptions import PolarsError

from catchment.rules.calendar import SECOND_US, Zone, write_zone
from catchment.rules.geo import PolygonError, read_polygon
from pipelines.expressions import ir
from pipelines.expressions.ir import Node, ValueKind

MAX_COUNT = 1_000_000
MAX_REGEX_CHARS = 200
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_UTC = "UTC"


# Before and after, a zone keeps the offset of that day.
FIRST, LAST = "1990-01-01", "2050-01-01"
_STEP_S = 900  # every change since 1990 is at a whole quarter of an hour
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
_OFFSET = re.compile(r"([+-])(0\d|1[0-4]):([0-5]\d)")


class ArgumentError(ValueError):
    """An argument has the right kind and cannot be what it says; the message is about it alone."""


def trunc(args: Sequence[Node]) -> Node:
    """Towards zero."""
    (x,) = args
    is_below = ir.Compare("<", x, ir.Number(0.0))
    return ir.Case(((is_below, _call("ceil", x)),), _call("floor", x), ValueKind.NUMBER)


def norm(args: Sequence[Node]) -> Node:
    """The length of a vector: the root of the sum of squares, added from left to right."""
    squares: list[Node] = [ir.Arithmetic("*", arg, arg) for arg in args]
    return _call("sqrt", reduce(lambda left, right: ir.Arithmetic("+", left, right), squares))


def mod(args: Sequence[Node]) -> Node:
    """The remainder a - b * floor(a / b): its sign is the divisor's."""
    a, b = args
    return ir.Arithmetic("-", a, ir.Arithmetic("*", b, _call("floor", ir.Arithmetic("/", a, b))))


def clamp(args: Sequence[Node]) -> Node:
    """Between low and high; high wins where they cross."""
    x, low, high = args
    return _call("least", _call("greatest", x, low), high)


def left(args: Sequence[Node]) -> Node:
    """The first n characters."""
    return ir.Call("substr", (args[0], ir.Number(1.0), ir.Number(_count(args[1], 0))), ValueKind.TEXT)


def right(args: Sequence[Node]) -> Node:
    """The last n characters."""
    return ir.Call("right", (args[0], ir.Number(_count(args[1], 0))), ValueKind.TEXT)


def substr(args: Sequence[Node]) -> Node:
    """`count` characters from `start`, which counts from 1."""
    return ir.Call("substr", (args[0], ir.Number(_count(args[1], 1)), ir.Number(_count(args[2], 0))), ValueKind.TEXT)


def replace(args: Sequence[Node]) -> Node:
    """Every occurrence; what is put in must not be longer, so that no expression can blow a text up."""
    old, new = _text(args[1]), _text(args[2])
    if not old or len(new.encode()) > len(old.encode()):
        raise ArgumentError("a text is replaced by one that is not longer, in bytes of UTF-8")
    return ir.Call("replace", tuple(args), ValueKind.TEXT)


def split_part(args: Sequence[Node]) -> Node:
    """The n-th part, counted from 1; NULL if there are fewer."""
    return ir.Call("split_part", (args[0], ir.Text(_filled(args[1])), ir.Number(_count(args[2], 1))), ValueKind.TEXT)


def occurrences(args: Sequence[Node]) -> Node:
    """Count how often a part stands in the text, without overlap."""
    return ir.Call("occurrences", (args[0], ir.Text(_filled(args[1]))), ValueKind.NUMBER)


def is_blank(args: Sequence[Node]) -> Node:
    """Nothing but blanks."""
    return ir.Compare("=", _call("trim", args[0], kind=ValueKind.TEXT), ir.Text(""))


def matches(args: Sequence[Node]) -> Node:
    """A regular expression of the RE2 class, somewhere in the text: time linear in the text. In the core only."""
    pattern = _filled(args[1])
    if len(pattern) > MAX_REGEX_CHARS:
        raise ArgumentError(f"it takes a pattern of at most {MAX_REGEX_CHARS} characters")
    try:
        pl.Series([""]).str.contains(pattern)
    except PolarsError as error:
        raise ArgumentError(f"cannot use this pattern: {_first_words(error)}") from error
    return ir.Matches(args[0], pattern)


def nullif(args: Sequence[Node]) -> Node:
    """NULL where both are equal, else the first."""
    a, b = args
    if a.kind not in (ValueKind.NUMBER, ValueKind.TEXT, ValueKind.BOOL, ValueKind.TIME):
        raise ArgumentError(f"cannot compare {a.kind}")
    return ir.Case(((ir.Compare("=", a, b), ir.Nothing(a.kind)),), a, a.kind)


def zoned(name: str, gives: ValueKind) -> Callable[[Sequence[Node]], Node]:
    """A calendar function: of the clock on the wall of the zone."""
    return lambda args: ir.Call(name, (_local(args),), gives)


def quarter(args: Sequence[Node]) -> Node:
    """1 to 4."""
    moved = ir.Arithmetic("+", ir.Call("month", (_local(args),), ValueKind.NUMBER), ir.Number(2.0))
    return _call("floor", ir.Arithmetic("/", moved, ir.Number(3.0)))


def minute_of_day(args: Sequence[Node]) -> Node:
    """0 to 1439."""
    local = _local(args)
    hours = ir.Arithmetic("*", ir.Call("hour", (local,), ValueKind.NUMBER), ir.Number(60.0))
    return ir.Arithmetic("+", hours, ir.Call("minute", (local,), ValueKind.NUMBER))


def is_weekend(args: Sequence[Node]) -> Node:
    """Saturday or Sunday."""
    return ir.Compare(">=", ir.Call("day_of_week", (_local(args),), ValueKind.NUMBER), ir.Number(6.0))


def time_between(args: Sequence[Node]) -> Node:
    """From `first` on and before `last`, over midnight if last is the earlier one."""
    first, last = (_clock(arg) for arg in args[1:3])
    minute = minute_of_day((args[0], *args[3:]))
    parts = (ir.Compare(">=", minute, ir.Number(first)), ir.Compare("<", minute, ir.Number(last)))
    return ir.And(parts) if first <= last else ir.Or(parts)


def epoch_s(args: Sequence[Node]) -> Node:
    """Seconds since 1970 in UTC."""
    return ir.Arithmetic("/", _call("epoch_us", args[0]), ir.Number(1e6))


def seconds_between(args: Sequence[Node]) -> Node:
    """From the first to the second."""
    first, second = args
    return ir.Arithmetic("/", ir.Arithmetic("-", _call("epoch_us", second), _call("epoch_us", first)), ir.Number(1e6))


def geo_in_box(args: Sequence[Node]) -> Node:
    """South, west, north, east; a box whose west is greater than its east crosses the 180th meridian."""
    lat, lon, south, west, north, east = args
    is_between = (ir.Compare(">=", lon, west), ir.Compare("<=", lon, east))
    crosses = ir.Compare(">", west, east)
    around = ir.Case(((crosses, ir.Or(is_between)),), ir.And(is_between), ValueKind.BOOL)
    return ir.And((ir.Compare(">=", lat, south), ir.Compare("<=", lat, north), around))


def geo_in_polygon(args: Sequence[Node]) -> Node:
    """Straight sides in degrees, even-odd rule."""
    polygon = _text(args[2])
    try:
        read_polygon(polygon)
    except PolygonError as error:
        raise ArgumentError(str(error)) from error
    return ir.Compare("=", ir.Call("geo_inside", tuple(args), ValueKind.NUMBER), ir.Number(1.0))


def list_contains(args: Sequence[Node]) -> Node:
    """Whether an item equals the literal; NULL items equal nothing."""
    items, item = args
    wanted = ValueKind.TEXT if items.kind is ValueKind.TEXTS else ValueKind.NUMBER
    if item.kind is not wanted:
        raise ArgumentError(f"it looks for {wanted} in a {items.kind}, not for {item.kind}")
    return ir.Call("list_contains", (items, item), ValueKind.BOOL)


def list_any(args: Sequence[Node]) -> Node:
    """Whether an item equals one of the literals."""
    return ir.Or(tuple(list_contains((args[0], item)) for item in args[1:]))


def list_get(args: Sequence[Node]) -> Node:
    """The n-th item, counted from 1; NULL if there are fewer."""
    kind = ValueKind.TEXT if args[0].kind is ValueKind.TEXTS else ValueKind.NUMBER
    return ir.Call("list_get", (args[0], ir.Number(_count(args[1], 1))), kind)


def _call(name: str, *args: Node, kind: ValueKind = ValueKind.NUMBER) -> Node:
    return ir.Call(name, args, kind)


def _local(args: Sequence[Node]) -> Node:
    zone = _text(args[1]) if len(args) > 1 else _UTC
    try:
        return ir.Call("local", (args[0], ir.Text(zone_text(zone))), ValueKind.TIME)
    except ValueError as error:
        raise ArgumentError(str(error)) from error


def _first_words(error: PolarsError) -> str:
    return " ".join(str(error).partition("This error occurred")[0].split())[:160]


def _clock(node: Node) -> float:
    found = _CLOCK.fullmatch(_text(node))
    if found is None:
        raise ArgumentError("it takes times of day as '06:30'")
    return float(int(found.group(1)) * 60 + int(found.group(2)))


def _count(node: Node, least: int) -> float:
    value = node.value if isinstance(node, ir.Number) else -1.0
    if not value.is_integer() or not least <= value <= MAX_COUNT:
        raise ArgumentError(f"it takes whole numbers from {least} to {MAX_COUNT:,} here")
    return value


def _filled(node: Node) -> str:
    text = _text(node)
    if not text:
        raise ArgumentError("it takes a text that is not empty here")
    return text


def _text(node: Node) -> str:
    if not isinstance(node, ir.Text):
        raise ArgumentError("it takes a text literal here")
    return node.value


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


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the language.

    Attributes:
        takes: kinds of its arguments; the last repeats when `variadic`. `ValueKind.NULL` stands for any kind, the same for all of
            them and the result. A tuple of kinds says that each of them will do.
        gives: the kind of its result.
        build: makes its node; without it the node is a call of the same name, which every engine knows.
        literals: places (from 0) of arguments that must be literals.
        optional: how many of the last arguments may be left out.
    """

    name: str
    takes: tuple[ValueKind | tuple[ValueKind, ...], ...]
    gives: ValueKind
    example: str
    build: Callable[[Sequence[Node]], Node] | None = None
    literals: frozenset[int] = field(default_factory=frozenset)
    optional: int = 0
    variadic: bool = False


_N, _T, _B, _TIME, _ANY = ValueKind.NUMBER, ValueKind.TEXT, ValueKind.BOOL, ValueKind.TIME, ValueKind.NULL
_LIST, _ITEM = (ValueKind.TEXTS, ValueKind.NUMBERS), (ValueKind.TEXT, ValueKind.NUMBER)
_REST = frozenset(range(1, 64))


def _zoned(name: str, gives: ValueKind = _N) -> Function:
    example = f"{name}(event_time, 'Europe/Berlin')"
    return Function(name, (_TIME, _T), gives, example, zoned(name, gives), frozenset({1}), optional=1)


FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        Function("abs", (_N,), _N, "abs(steering_deg)"),
        Function("floor", (_N,), _N, "floor(speed_mps)"),
        Function("ceil", (_N,), _N, "ceil(speed_mps)"),
        Function("round", (_N,), _N, "round(speed_mps)"),
        Function("trunc", (_N,), _N, "trunc(speed_mps)", trunc),
        Function("sign", (_N,), _N, "sign(steering_deg)"),
        Function("sqrt", (_N,), _N, "sqrt(x)"),
        Function("norm", (_N, _N), _N, "norm(x, y, z)", norm, variadic=True),
        Function("mod", (_N, _N), _N, "mod(seq, 10)", mod),
        Function("clamp", (_N, _N, _N), _N, "clamp(x, 0, 1)", clamp),
        Function("least", (_N, _N), _N, "least(a, b)", variadic=True),
        Function("greatest", (_N, _N), _N, "greatest(a, b)", variadic=True),
        Function("to_number", (_T,), _N, "to_number(text)"),
        Function("lower", (_T,), _T, "lower(label)"),
        Function("upper", (_T,), _T, "upper(label)"),
        Function("trim", (_T,), _T, "trim(label)"),
        Function("ltrim", (_T,), _T, "ltrim(label)"),
        Function("rtrim", (_T,), _T, "rtrim(label)"),
        Function("left", (_T, _N), _T, "left(label, 3)", left, frozenset({1})),
        Function("right", (_T, _N), _T, "right(label, 3)", right, frozenset({1})),
        Function("substr", (_T, _N, _N), _T, "substr(label, 1, 3)", substr, frozenset({1, 2})),
        Function("replace", (_T, _T, _T), _T, "replace(label, '_', ' ')", replace, frozenset({1, 2})),
        Function("split_part", (_T, _T, _N), _T, "split_part(file_name, '/', 1)", split_part, frozenset({1, 2})),
        Function("concat", (_T, _T), _T, "concat(make, ' ', model)", variadic=True),
        Function("length", (_T,), _N, "length(label)"),
        Function("occurrences", (_T, _T), _N, "occurrences(message, 'error')", occurrences, frozenset({1})),
        Function("is_blank", (_T,), _B, "is_blank(label)", is_blank),
        Function("starts_with", (_T, _T), _B, "starts_with(label, 'car')"),
        Function("ends_with", (_T, _T), _B, "ends_with(file_name, '.png')"),
        Function("contains", (_T, _T), _B, "contains(label, 'car')"),
        Function("matches", (_T, _T), _B, "matches(message, '^E[0-9]+')", matches, frozenset({1})),
        Function("coalesce", (_ANY, _ANY), _ANY, "coalesce(label, 'none')", variadic=True),
        Function("nullif", (_ANY, _ANY), _ANY, "nullif(label, '')", nullif),
        _zoned("year"),
        Function("quarter", (_TIME, _T), _N, "quarter(event_time)", quarter, frozenset({1}), optional=1),
        *map(_zoned, ("month", "week", "day", "day_of_year", "day_of_week", "hour", "minute", "second")),
        Function("minute_of_day", (_TIME, _T), _N, "minute_of_day(event_time)", minute_of_day, frozenset({1}), optional=1),
        Function("is_weekend", (_TIME, _T), _B, "is_weekend(event_time)", is_weekend, frozenset({1}), optional=1),
        Function(
            "time_between", (_TIME, _T, _T, _T), _B, "time_between(event_time, '22:00', '06:00', 'Europe/Berlin')",
            time_between, frozenset({1, 2, 3}), optional=1,
        ),
        _zoned("date_text", _T),
        Function("epoch_s", (_TIME,), _N, "epoch_s(event_time)", epoch_s),
        Function("seconds_between", (_TIME, _TIME), _N, "seconds_between(event_time, received_at)", seconds_between),
        Function("geo_distance_m", (_N, _N, _N, _N), _N, "geo_distance_m(latitude_deg, longitude_deg, 48.137, 11.575)"),
        Function("geo_in_box", (_N,) * 6, _B, "geo_in_box(latitude_deg, longitude_deg, 47, 5, 55, 15)", geo_in_box),
        Function(
            "geo_in_polygon", (_N, _N, _T), _B, "geo_in_polygon(latitude_deg, longitude_deg, 'POLYGON((11 48, 12 48, 12 49))')",
            geo_in_polygon, frozenset({2}),
        ),
        Function("list_contains", (_LIST, _ITEM), _B, "list_contains(labels, 'car')", list_contains, frozenset({1})),
        Function(
            "list_any", (_LIST, _ITEM), _B, "list_any(labels, 'car', 'van')", list_any, _REST, variadic=True
        ),
        Function("list_length", ((*_LIST, ValueKind.ITEMS),), _N, "list_length(labels)"),
        Function("list_get", (_LIST, _N), _ANY, "list_get(labels, 1)", list_get, frozenset({1})),
    )
}  # fmt: skip
