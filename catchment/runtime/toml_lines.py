"""Finds the line of a TOML file on which a key stands, so that an error can name it. Pure."""

import re
from collections.abc import Iterator, Sequence

_HEADER = re.compile(r"^\s*(\[\[?)\s*([\w.\s\"-]+?)\s*\]\]?\s*(#.*)?$")
Step = str | int


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
