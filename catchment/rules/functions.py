"""The language's functions that SQLite does not have, or has with another meaning. Standard library only.

SQLite's LIKE is blind to case and stops at a NUL character, its upper and lower know ASCII alone, its length stops at a
NUL, and its floor, ceil and sqrt are there only in some builds.
"""

import json
import math
import re
import sqlite3
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeAlias

from catchment.rules import calendar, geo

Value: TypeAlias = str | int | float | None
BLANKS = " \t\r\n"
NUMBER_TEXT = r"[+-]?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,4})?"
_NUMBER = re.compile(NUMBER_TEXT)


def register_functions(connection: sqlite3.Connection) -> None:
    """Give a connection the functions that the generated SQL calls."""
    for name, arguments, function in _FUNCTIONS:
        connection.create_function(name, arguments, function, deterministic=True)


def like(text: str, pattern: str) -> bool:
    """Whether the whole text matches: % for any run of characters, _ for one, case-sensitive.

    Each piece between two % is taken at its first place, so time grows with the text's length and never with its power.
    """
    first, *rest = _pieces(pattern)
    if not rest:
        return first.fullmatch(text) is not None
    start = first.match(text)
    if start is None:
        return False
    position = start.end()
    *middle, last = rest
    for piece in middle:
        found = piece.search(text, position)
        if found is None:
            return False
        position = found.end()
    width = len(pattern) - pattern.rindex("%") - 1
    return len(text) - width >= position and last.fullmatch(text, len(text) - width) is not None


@lru_cache(maxsize=1024)
def _pieces(pattern: str) -> tuple[re.Pattern[str], ...]:
    """Every piece matches texts of one length only: letters and dots."""
    return tuple(
        re.compile("".join("." if character == "_" else re.escape(character) for character in piece), re.DOTALL)
        for piece in pattern.split("%")
    )


def to_number(text: str) -> float | None:
    """The finite double that a plain decimal number means, else None."""
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None


def rounded(number: float) -> float:
    """To the nearest whole number, halves away from zero. Exact: a double's distance to its floor is a double."""
    if not math.isfinite(number):
        return number
    whole, size = math.floor(abs(number)), abs(number)
    return math.copysign(float(whole + (size - whole >= 0.5)), number)


def _split_part(text: str, separator: str, number: int) -> str | None:
    parts = text.split(separator)
    return parts[number - 1] if number <= len(parts) else None


@lru_cache(maxsize=64)
def _items(text: str) -> list[Any]:
    items: list[Any] = json.loads(text)
    return items


def _list_get(text: str, number: int) -> Value:
    items = _items(text)
    found: Value = items[number - 1] if number <= len(items) else None
    return found if found is None or isinstance(found, str) else float(found)


def _nulls(function: Callable[..., Value]) -> Callable[..., Value]:
    """NULL in, NULL out."""

    def strict(*arguments: Value) -> Value:
        return None if any(argument is None for argument in arguments) else function(*arguments)

    return strict


def _whole(function: Callable[[float], int]) -> Callable[[float], float]:
    return lambda number: float(function(number)) if math.isfinite(number) else number


def _calendar(read: Callable[[int], int]) -> Callable[[int], float]:
    return lambda micros: float(read(micros))


_FUNCTIONS: tuple[tuple[str, int, Callable[..., Value]], ...] = tuple(
    (f"ct_{name}", arguments, _nulls(function))
    for name, arguments, function in (
        ("like", 2, like),
        ("floor", 1, _whole(math.floor)),
        ("ceil", 1, _whole(math.ceil)),
        ("round", 1, rounded),
        ("sign", 1, lambda number: float((number > 0) - (number < 0))),
        ("sqrt", 1, lambda number: math.sqrt(number) if number >= 0 else None),
        ("to_number", 1, to_number),
        ("lower", 1, str.lower),
        ("upper", 1, str.upper),
        ("length", 1, lambda text: float(len(text))),
        ("trim", 1, lambda text: text.strip(BLANKS)),
        ("ltrim", 1, lambda text: text.lstrip(BLANKS)),
        ("rtrim", 1, lambda text: text.rstrip(BLANKS)),
        ("substr", 3, lambda text, start, count: text[int(start) - 1 : int(start) - 1 + int(count)]),
        ("right", 2, lambda text, count: text[-int(count) :] if count else ""),
        ("replace", 3, str.replace),
        ("split_part", 3, lambda text, separator, number: _split_part(text, separator, int(number))),
        ("concat", -1, lambda *texts: "".join(texts)),
        ("starts_with", 2, str.startswith),
        ("ends_with", 2, str.endswith),
        ("contains", 2, lambda text, part: part in text),
        ("occurrences", 2, lambda text, part: float(text.count(part))),
        ("local", 2, calendar.local_us),
        ("year", 1, _calendar(lambda micros: calendar.year_month_day(micros)[0])),
        ("month", 1, _calendar(lambda micros: calendar.year_month_day(micros)[1])),
        ("day", 1, _calendar(lambda micros: calendar.year_month_day(micros)[2])),
        ("hour", 1, _calendar(lambda micros: micros // calendar.HOUR_US % 24)),
        ("minute", 1, _calendar(lambda micros: micros // (60 * calendar.SECOND_US) % 60)),
        ("second", 1, _calendar(lambda micros: micros // calendar.SECOND_US % 60)),
        ("day_of_week", 1, _calendar(calendar.day_of_week)),
        ("day_of_year", 1, _calendar(calendar.day_of_year)),
        ("week", 1, _calendar(calendar.week)),
        ("date_text", 1, calendar.date_text),
        ("geo_distance_m", 4, partial(geo.distance_m, geo.PLAIN)),
        ("geo_inside", 3, partial(geo.inside, geo.PLAIN)),
        ("list_contains", 2, lambda items, item: item in _items(items)),
        ("list_length", 1, lambda items: float(len(_items(items)))),
        ("list_get", 2, lambda items, number: _list_get(items, int(number))),
    )
)

COUNT_ITEMS = "ct_count_items"  # the evaluator has it: it runs a rule itself

# SQLite's own that the generated SQL calls, next to ours.
_OWN = frozenset({"abs", "coalesce", "min", "max"})
FUNCTION_NAMES = _OWN | {name for name, _, _ in _FUNCTIONS} | {COUNT_ITEMS}
