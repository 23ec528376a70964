"""Counts the ordinary patterns in one text, by the standard library: the same counts as the core's engine gives.

A step's own patterns are for the core alone: here the engine goes back on itself, and a pattern could hold the device up.
"""

import re
import unicodedata

from edge_agent.errors import UninspectableError
from schemas.inspectors import PATTERNS

MAX_CHARS = 65_536
_COMPILED = tuple(re.compile(pattern) for pattern in PATTERNS.values())
# Where the two engines draw the line between word, space and neither differently, or their Unicode is of another year.
_DIFFERS = re.compile("[\x1c-\x1f]")
_SAME = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "Zs"})


def text_counts(text: str) -> tuple[int, ...]:
    """The values of `schemas.inspectors.TEXT_COLUMNS`, in order.

    Raises:
        UninspectableError: too long for a device, or with characters that the core's engine sorts otherwise.
    """
    if len(text) > MAX_CHARS:
        raise UninspectableError(f"a text of {len(text)} characters is left to the core; a device reads {MAX_CHARS}")
    if _DIFFERS.search(text) or not (text.isascii() or all(_is_same(character) for character in set(text))):
        raise UninspectableError("a text with combining or control characters is left to the core")
    return tuple(sum(1 for _ in pattern.finditer(text)) for pattern in _COMPILED)


def _is_same(character: str) -> bool:
    return character.isascii() or unicodedata.category(character) in _SAME
