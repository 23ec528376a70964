"""The language's functions that SQLite does not have, or has with another meaning. Standard library only.

SQLite's LIKE is blind to case and stops at a NUL character, its upper and lower know ASCII alone, its length stops at a
NUL, and its floor, ceil and sqrt are there only in some builds.
"""

import math
import re
import sqlite3
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

Value: TypeAlias = str | int | float | None
_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_THURSDAY = 3  # 1970-01-01, counted from Monday as 0


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


def _nulls(function: Callable[..., Value]) -> Callable[..., Value]:
    """NULL in, NULL out."""

    def strict(*arguments: Value) -> Value:
        return None if any(argument is None for argument in arguments) else function(*arguments)

    return strict


def _rounded(function: Callable[[float], int]) -> Callable[[float], float]:
    return lambda number: float(function(number)) if math.isfinite(number) else number


_FUNCTIONS: tuple[tuple[str, int, Callable[..., Value]], ...] = (
    ("ct_like", 2, _nulls(like)),
    ("ct_floor", 1, _nulls(_rounded(math.floor))),
    ("ct_ceil", 1, _nulls(_rounded(math.ceil))),
    ("ct_sqrt", 1, _nulls(lambda number: math.sqrt(number) if number >= 0 else None)),
    ("ct_lower", 1, _nulls(lambda text: text.lower())),
    ("ct_upper", 1, _nulls(lambda text: text.upper())),
    ("ct_length", 1, _nulls(lambda text: float(len(text)))),
    ("ct_starts_with", 2, _nulls(lambda text, part: text.startswith(part))),
    ("ct_ends_with", 2, _nulls(lambda text, part: text.endswith(part))),
    ("ct_contains", 2, _nulls(lambda text, part: part in text)),
    ("ct_hour", 1, _nulls(lambda micros: float(micros // _HOUR_US % 24))),
    ("ct_day_of_week", 1, _nulls(lambda micros: float((micros // _DAY_US + _THURSDAY) % 7 + 1))),
)

# SQLite's own that the generated SQL calls, beside ours.
_OWN = frozenset({"abs", "coalesce", "min", "max"})
FUNCTION_NAMES = _OWN | {name for name, _, _ in _FUNCTIONS}
