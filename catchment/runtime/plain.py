r"""Text from outside made safe to show: on a terminal, in a log line, in JSON that is printed, in a page.

Devices, file names, contracts and models bring text. As it stands it could colour and clear a terminal, make links in it, turn
the direction of what follows, or begin a line that looks like one of ours. Here it is shown instead: `\x1b`, `\u202e`, `\n`.
"""

import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any

MAX_CELL_CHARS = 8_000
MAX_LINE_CHARS = 16_000
# Joiners that scripts need; every other format character is invisible or changes the order of what is read.
_NEEDED = frozenset("\u200c\u200d")
_SHOWN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# What is neither printable ASCII nor plain Latin: its category says whether it is shown as it is.
_PERHAPS = re.compile(r"[^\x20-\x7e\xa0-\xac\xae-\u02ff]")
_NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def plain(value: object, max_chars: int = MAX_CELL_CHARS) -> str:
    """A value as one line of text that shows what it would do, and is cut after so many characters."""
    return _safe(_cut(str(value), max_chars), _NAMED.get)


def plain_lines(value: object, max_chars: int | None = None) -> str:
    """A text of ours with several lines: their ends and tabs stay, all else is shown."""
    text = str(value)
    return _safe(text if max_chars is None else _cut(text, max_chars), {"\n": "\n", "\t": "\t"}.get)


def plain_message(value: object) -> str:
    """A message that may have more than one line. Those after the first are indented: none of them can pose as a message."""
    text = plain_lines(value, MAX_LINE_CHARS)
    body = text.lstrip("\n")
    return text[: len(text) - len(body)] + body.replace("\n", "\n  ")


def plain_json(document: str | bytes) -> str:
    """A JSON document in which no character acts on a terminal: such stand only in its texts, and are escaped there."""
    text = document.decode() if isinstance(document, bytes) else document
    return _PERHAPS.sub(lambda found: _json_escape(found[0]), text)


def html_text(value: object) -> str:
    """Text for a page: neither markup nor what turns or hides the text around it."""
    import html  # noqa: PLC0415  # a small agent has no pages

    return html.escape(plain(value))


def plain_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Make every field of a log event one harmless line; a processor that stands before the renderer."""
    return {plain(name): _field(value) for name, value in event.items()}


def plain_tracebacks() -> None:
    """Have what nobody caught, warnings and the standard library's log printed with text from outside shown, not obeyed."""
    previous_format = warnings.formatwarning

    def formatted(*parts: Any, **more: Any) -> str:
        return plain_lines(previous_format(*parts, **more))

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(plain_lines("".join(traceback.format_exception(kind, error, trace))))

    warnings.formatwarning = formatted
    sys.excepthook = uncaught
    threading.excepthook = lambda args: uncaught(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PlainFormatter())


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return plain_lines(super().format(record))


def _field(value: object) -> object:
    is_number = value is None or isinstance(value, bool | int | float)
    return value if is_number else plain(value, MAX_LINE_CHARS)


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else f"{text[:max_chars]}… ({len(text) - max_chars:,} more characters)"


def _safe(text: str, special: Callable[[str], str | None]) -> str:
    return _PERHAPS.sub(lambda found: special(found[0]) or _shown(found[0]), text)


def _shown(character: str) -> str:
    if not _acts(character):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _acts(character: str) -> bool:
    from unicodedata import category  # noqa: PLC0415  # large, and not needed for plain ASCII

    return character not in _NEEDED and category(character) in _SHOWN


def _json_escape(character: str) -> str:
    if character in "\n\t" or not _acts(character):
        return character  # line ends and tabs stand between its parts only, where it is laid out for people
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
