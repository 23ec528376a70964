"""Rows on a terminal: one table for people, one JSON document for programs."""

import json
from typing import Any

from catchment.runtime.output import say_json


def show(title: str, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows, all of the same columns."""
    if as_json:
        say_json(json.dumps(rows, default=str))
        return
    from catchment.runtime.terminal import PlainConsole, PlainTable  # noqa: PLC0415  # heavy only here

    terminal = PlainConsole()
    console = terminal if terminal.is_terminal else PlainConsole(width=160)
    if not rows:
        console.print(f"{title}: nothing yet")
        return
    table = PlainTable(title=title)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) and value is not True else str(value) for value in row.values()))
    console.print(table)
