"""Text that an attacker would send, values made of it, and whether something that was printed lets it act."""

import dataclasses
import enum
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from catchment.runtime.plain import plain_lines

MARK = "HOSTILE"
# Clear the screen, a title, a link, colours by C0 and C1, a bell, a line of its own, a way back, text turned round, markup.
TEXT = (
    f"{MARK}\x1b[2J\x1b]0;title\x07\x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\\x9b31m\x07\x08"
    "\nALL IS WELL\r\u202e\u2066\u200b\u2028[/] [red]x[/red] [link=http://evil.example]y[/link] [bold :skull: "
    "<script>alert(1)</script>"
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def acts(printed: str) -> str:
    """What of an output would act on a terminal; empty if nothing would. Colours are the command's own."""
    left = _COLOURS.sub("", printed)
    return "".join(sorted({character for character in left if plain_lines(character) != character}))


def forged(printed: str) -> bool:
    """Whether a line of the output is one that the hostile text has made up."""
    return any(line.startswith("ALL IS WELL") for line in printed.splitlines())


def hostile(kind: Any, **known: Any) -> Any:
    """A value of a type in which every text is the hostile one; `known` for fields that must be something else."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    made = _GENERIC.get(origin)
    if made is not None:
        return made(arguments)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    if dataclasses.is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return _record(kind, known)
    return _SIMPLE.get(kind, TEXT)


def _one_of(arguments: Any) -> Any:
    return hostile(next(each for each in arguments if each not in (type(None), msgspec.UnsetType)))


_GENERIC: dict[Any, Callable[[Any], Any]] = {
    typing.Annotated: lambda arguments: hostile(arguments[0]),
    types.UnionType: _one_of,
    typing.Union: _one_of,
    typing.Literal: lambda arguments: arguments[0],
    tuple: lambda arguments: tuple(hostile(each) for each in arguments if each is not ...),
    list: lambda arguments: [hostile(arguments[0])],
    dict: lambda arguments: {hostile(arguments[0]): hostile(arguments[1])},
}


def _record(kind: Any, known: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind) if field.init]
    else:
        names = list(kind.__struct_fields__)
    return kind(**{name: known[name] if name in known else hostile(hints[name]) for name in names})


_SIMPLE: dict[Any, Any] = {
    int: 1,
    float: 1.0,
    bool: True,
    bytes: TEXT.encode(errors="surrogatepass"),
    Path: Path(TEXT.replace("\0", "")),
    np.ndarray: np.zeros((1, 1)),
}
