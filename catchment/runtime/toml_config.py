"""Read a TOML configuration into frozen structs, and report every error in it: the line, the key, a hint.

Each table is converted key by key, so that all errors are found at once and a wrong key costs nothing but itself.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args, get_origin

import msgspec

_HEADER = re.compile(r"^\s*(\[\[?)\s*([\w.\s\"-]+?)\s*\]\]?\s*(#.*)?$")
Step = str | int

MAX_CONFIG_BYTES = 1024 * 1024
_T = TypeVar("_T")
_INNER = re.compile(r" - at `\$([^`]*)`$")  # how msgspec ends a message about a part of a value
_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_FIRST_WORD = re.compile(r"(?:\w+\.)*(\w+)\b")
_WORD_VALUE = re.compile(r"^\s*[\w.-]+\s*=\s*[A-Za-z/][^\"']*$")
_PYTHON_WORDS = re.compile(r"=\s*(True|False|None|yes|no|on|off)\s*$")
_SYNTAX_HINTS = (
    (re.compile("overwrite|twice|Cannot declare|immutable"), "each key and [table] stands once; sources are several [[source]]"),
    (re.compile("Expected '='"), "a line is: key = value"),
    (re.compile("Unescaped|Illegal character|escape"), "put it in single quotes, in which nothing is special"),
    (re.compile("Expected newline"), "one key = value on each line; text with quotes in it stands in the other kind of quotes"),
)
_EXPECTED = {
    "int": "a whole number without quotes",
    "float": "a number without quotes",
    "str": "text: put it in quotes",
    "bool": "true or false, without quotes",
    "array": "a list: [ ... ]",
    "object": "a table: { key = value } or [name] on a line of its own",
}


def parse_path(text: str) -> tuple[Step, ...]:
    """`source[1].options.path` as its steps: source, 1, options, path."""
    found = re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", text)
    return tuple(int(number) if number.isdigit() else name for name, number in found if name or number.isdigit())


def path_text(path: Sequence[Step]) -> str:
    """The path that `parse_path` reads."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def line_of(text: str, path: Sequence[Step]) -> int | None:
    """The line of the key a path leads to; else of the deepest table on the way to it; None where there is none."""
    lines = text.splitlines()
    names = [step for step in path if isinstance(step, str)]
    index = next((step for step in path if isinstance(step, int)), 0)
    best: int | None = None
    for start, end, header in _tables(lines, index):
        if header != names[: len(header)]:
            continue
        if header:
            best = start  # a table's header stands one line above its first key, and lines count from 1
        if (found := _key_line(lines, start, end, names[len(header) :])) is not None:
            return found
    return best


def _key_line(lines: Sequence[str], start: int, end: int, names: Sequence[str]) -> int | None:
    """A key of the table, dotted or within an inline table on one line."""
    for depth in range(len(names), 0, -1):
        dotted = r"\s*\.\s*".join(re.escape(name) for name in names[:depth])
        pattern = re.compile(rf"^\s*\"?{dotted}\"?\s*(=|\.)")
        for number in range(start, end):
            if pattern.match(lines[number]):
                return number + 1
    return None


def _tables(lines: Sequence[str], index: int) -> Iterator[tuple[int, int, list[str]]]:
    """Start (the line after the header, counted from 0), end and name of each table; of arrays' tables the one asked for."""
    seen: dict[str, int] = {}
    current: tuple[int, list[str]] | None = (0, [])
    for number, line in enumerate(lines):
        header = _HEADER.match(line)
        if header is None:
            continue
        if current is not None:
            yield current[0], number, current[1]
        name = re.sub(r"[\s\"]", "", header.group(2))
        if header.group(1) == "[[":
            seen[name] = seen.get(name, -1) + 1
        array = next((known for known in seen if name == known or name.startswith(f"{known}.")), None)
        is_ours = array is None or seen[array] == index
        current = (number + 1, name.split(".")) if is_ours else None
    if current is not None:
        yield current[0], len(lines), current[1]


@dataclass(frozen=True, slots=True)
class TomlFault:
    """One thing that is wrong. `line` counts from 1; None: it is nowhere in the file."""

    line: int | None
    message: str

    def located(self, path: Path) -> str:
        """File, line and message, as compilers write them."""
        return f"{path}:{self.line}: {self.message}" if self.line else f"{path}: {self.message}"


class TomlSyntaxError(ValueError):
    """A file is not TOML; `fault` says where."""

    def __init__(self, fault: TomlFault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Converted(Generic[_T]):
    """The result of converting a document.

    Attributes:
        value: the configuration, less what is wrong with it; None where nothing of it could be kept.
        faults: all that is wrong, in the order of the file's keys.
        kept: path of an array of tables -> numbers of the tables that were kept.
    """

    value: _T | None
    faults: tuple[TomlFault, ...]
    kept: Mapping[tuple[Step, ...], tuple[int, ...]]


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a file, and the document in it.

    Raises:
        OSError: it cannot be read.
        TomlSyntaxError: it is not TOML.
    """
    body = path.read_bytes()[: MAX_CONFIG_BYTES + 1]
    if len(body) > MAX_CONFIG_BYTES:
        raise TomlSyntaxError(TomlFault(None, f"more than {MAX_CONFIG_BYTES:,} bytes; a configuration is smaller"))
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise TomlSyntaxError(TomlFault(line, f"not TOML: {error}; save it as UTF-8")) from error
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TomlSyntaxError(_syntax_fault(text, error)) from error


def convert_toml(
    text: str,
    document: Mapping[str, Any],
    kind: type[_T],
    dec_hook: Callable[[type, Any], Any] | None = None,
    stand_ins: Mapping[str, Any] | None = None,
) -> Converted[_T]:
    """Convert a document into a struct of structs, as far as it is right.

    Args:
        text: the file, for line numbers.
        document: what it holds.
        kind: the struct of the whole document.
        dec_hook: as msgspec's.
        stand_ins: field -> value for those of the document's own that are missing, so that the rest can be looked at.
    """
    converter = _Converter(text, dec_hook, stand_ins or {})
    value, _ = converter.table(kind, document, ())
    return Converted(value, tuple(dict.fromkeys(converter.faults)), converter.kept)


@dataclass(slots=True)
class _Converter:
    text: str
    dec_hook: Callable[[type, Any], Any] | None
    stand_ins: Mapping[str, Any]
    faults: list[TomlFault] = field(default_factory=list)
    kept: dict[tuple[Step, ...], tuple[int, ...]] = field(default_factory=dict)

    def table(self, kind: Any, table: Mapping[str, Any], path: tuple[Step, ...]) -> tuple[Any, bool]:
        """The struct of a table, None if it cannot be made; and whether a table in it was lost."""
        known = {each.encode_name: each for each in msgspec.structs.fields(kind)}
        values: dict[str, Any] = {}
        wrong: set[str] = set()
        is_lost = False
        for key, value in table.items():
            if key not in known:
                if kind.__struct_config__.forbid_unknown_fields:
                    self._report(path, f"Object contains unknown field `{key}`", (*path, key), _meant(key, known))
                    is_lost |= bool(path)  # what the table seems to lack may be what this key was to be
                continue
            found = self._value(known[key].type, value, (*path, key))
            is_lost |= found.is_lost
            if found.is_right:
                values[known[key].name] = found.value
            else:
                wrong.add(key)
        is_lost |= self._fill(known.values(), values, wrong, path)
        return (None, True) if self._lacks(known.values(), values) else self._made(kind, values, wrong, path, is_lost=is_lost)

    def _fill(self, fields: Iterable[Any], values: dict[str, Any], wrong: set[str], path: tuple[Step, ...]) -> bool:
        """Report keys that must be there and are not; whether one is gone because it is wrong."""
        absent = [each for each in fields if each.required and each.name not in values]
        for each in absent:
            if each.encode_name not in wrong:
                self._report(path, f"Object missing required field `{each.encode_name}`", path)
            if not path and each.name in self.stand_ins:
                values[each.name] = self.stand_ins[each.name]
        return bool(absent)

    @staticmethod
    def _lacks(fields: Iterable[Any], values: Mapping[str, Any]) -> bool:
        return any(each.required and each.name not in values for each in fields)

    def _made(
        self, kind: Any, values: dict[str, Any], wrong: set[str], path: tuple[Step, ...], *, is_lost: bool
    ) -> tuple[Any, bool]:
        """The struct, less keys that its own check refuses. What is missing because it was wrong is reported already."""
        names = {each.encode_name: each for each in msgspec.structs.fields(kind)}
        while True:
            try:
                return kind(**values), is_lost
            except (ValueError, TypeError) as error:
                message = str(error)
                word = _FIRST_WORD.match(message)
                key = word.group(1) if word and word.group(1) in names else ""
                is_given = bool(key) and names[key].name in values
                if not (is_lost or key in wrong):
                    self._report(path, message, (*path, key) if is_given else path)
                if is_given and not names[key].required:
                    del values[names[key].name]
                    wrong.add(key)
                elif not path and not self.stand_ins.keys() <= values.keys():
                    values = {**self.stand_ins, **values}
                else:
                    return None, True

    def _value(self, kind: Any, value: Any, path: tuple[Step, ...]) -> "_Found":
        struct = _struct_of(kind)
        if struct is not None and isinstance(value, dict):
            made, is_lost = self.table(struct, value, path)
            return _Found(made, made is not None, is_lost)
        item = _struct_of(get_args(kind)[0]) if get_origin(kind) is tuple and get_args(kind)[1:] == (...,) else None
        if item is not None and isinstance(value, list):
            return self._tables(item, value, path)
        try:
            return _Found(msgspec.convert(value, kind, strict=True, dec_hook=self.dec_hook), is_right=True)
        except msgspec.ValidationError as error:
            message = str(error)
            inner = _INNER.search(message)
            whole = (*path, *parse_path(inner.group(1))) if inner else path
            self._report(whole, _INNER.sub("", message), whole, _expected(message))
            return _Found(None, is_right=False)

    def _tables(self, kind: Any, items: list[Any], path: tuple[Step, ...]) -> "_Found":
        found = [self._value(kind, item, (*path, number)) for number, item in enumerate(items)]
        self.kept[path] = tuple(number for number, one in enumerate(found) if one.is_right)
        return _Found(tuple(one.value for one in found if one.is_right), is_right=True)

    def _report(self, named: tuple[Step, ...], message: str, at: tuple[Step, ...], hint: str = "") -> None:
        name = path_text(named)
        text = message if name and message.startswith(name) else f"{name or 'top level'}: {message}"
        self.faults.append(TomlFault(line_of(self.text, at), f"{text}; {hint}" if hint else text))


@dataclass(frozen=True, slots=True)
class _Found:
    value: Any
    is_right: bool
    is_lost: bool = False


def _struct_of(kind: Any) -> Any:
    """The struct that a table of this type becomes; None for all other types."""
    forms = [form for form in (get_args(kind) or (kind,)) if form is not type(None)]
    is_struct = len(forms) == 1 and isinstance(forms[0], type) and issubclass(forms[0], msgspec.Struct)
    return forms[0] if is_struct and get_origin(kind) not in (tuple, list, dict) else None


def _meant(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"


def _expected(message: str) -> str:
    expected = re.search(r"Expected `(\w+)", message)
    return f"this must be {_EXPECTED[expected.group(1)]}" if expected and expected.group(1) in _EXPECTED else ""


def _syntax_fault(text: str, error: tomllib.TOMLDecodeError) -> TomlFault:
    message = str(error)
    found = _PLACE.search(message)
    lines = text.splitlines()
    number = int(found.group(1)) if found else (len(lines) or None)
    line = lines[number - 1] if number and number <= len(lines) else ""
    plain = _PLACE.sub("", message).removesuffix(" (at end of document)")
    column = f", column {found.group(2)}" if found else ""
    hint = _syntax_hint(plain, line)
    return TomlFault(number, f"not TOML{column}: {plain}" + (f"; {hint}" if hint else ""))


def _syntax_hint(message: str, line: str) -> str:
    if _PYTHON_WORDS.search(line):
        return "truth is written true or false, in lower case; a key without a value is left out"
    if "Invalid value" in message and _WORD_VALUE.match(line):
        return "text stands in quotes"
    return next((hint for pattern, hint in _SYNTAX_HINTS if pattern.search(message)), "")
