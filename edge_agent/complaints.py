"""What is wrong in a TOML file, said so that it can be mended: the line, the key, and a hint. Pure."""

import difflib
import re
import tomllib

import msgspec

_PATH = re.compile(r"`\$\.?([^`]*)`")
_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")
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


def explain_toml(text: str, error: tomllib.TOMLDecodeError) -> tuple[int | None, str]:
    """The line of a syntax error and what to say about it."""
    message = str(error)
    found = _PLACE.search(message)
    lines = text.splitlines()
    number = int(found.group(1)) if found else (len(lines) or None)
    line = lines[number - 1] if number and number <= len(lines) else ""
    plain = _PLACE.sub("", message).removesuffix(" (at end of document)")
    column = f", column {found.group(2)}" if found else ""
    hint = _syntax_hint(plain, line)
    return number, f"not TOML{column}: {plain}" + (f"; {hint}" if hint else "")


def explain_value(text: str, error: msgspec.ValidationError, known: type) -> tuple[int | None, str]:
    """The line a wrong key or value stands on, found by the last word of its key or by the key the message names."""
    message = str(error)
    found = _PATH.search(message)
    key = found.group(1).strip(".") if found else ""
    plain = _PATH.sub("", message).removesuffix(" - at ").strip()
    line = _line_of(text, message, key)
    hint = _value_hint(message, key, known)
    return line, f"{key or 'top level'}: {plain}" + (f"; {hint}" if hint else "")


def _syntax_hint(message: str, line: str) -> str:
    if _PYTHON_WORDS.search(line):
        return "truth is written true or false, in lower case; a key without a value is left out"
    if "Invalid value" in message and _WORD_VALUE.match(line):
        return "text stands in quotes"
    return next((hint for pattern, hint in _SYNTAX_HINTS if pattern.search(message)), "")


def _value_hint(message: str, key: str, known: type) -> str:
    unknown = re.search(r"unknown field `([^`]+)`", message)
    if unknown:
        names = _names_at(known, key)
        near = difflib.get_close_matches(unknown.group(1), names, 1, 0.6)
        return f"did you mean {near[0]}?" if near else f"known here: {', '.join(names)}"
    expected = re.search(r"Expected `(\w+)", message)
    return f"this must be {_EXPECTED[expected.group(1)]}" if expected and expected.group(1) in _EXPECTED else ""


def _names_at(known: type, key: str) -> list[str]:
    """The keys that may stand in the table that `key` leads to."""
    form = known
    for word in re.sub(r"\[[^\]]*\]", "", key).split(".") if key else ():
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(form)}
        inner = _struct_in(fields.get(word))
        if inner is None:
            return []
        form = inner
    return [field.encode_name for field in msgspec.structs.fields(form)]


def _struct_in(kind: object) -> type | None:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for part in getattr(kind, "__args__", ()) if (found := _struct_in(part)) is not None), None)


def _line_of(text: str, message: str, key: str) -> int | None:
    named = re.search(r"field `([^`]+)`", message)
    last_word = named.group(1) if named else re.sub(r"\[[^\]]*\]", "", key).rpartition(".")[2] or message.partition(" ")[0]
    pattern = re.compile(rf"^\s*(\[+[\w.]*{re.escape(last_word)}\]+|{re.escape(last_word)}\s*=)")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)
