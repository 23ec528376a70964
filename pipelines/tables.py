"""Rows on a terminal: one table for people, one JSON document for programs."""

import json
from typing import Any

import typer


def show(title: str, rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows, all of the same columns."""
    if as_json:
        typer.echo(json.dumps(rows, default=str))
        return
    from rich.console import Console  # noqa: PLC0415  # heavy only here
    from rich.table import Table  # noqa: PLC0415  # heavy only here

    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=160)
    if not rows:
        console.print(f"{title}: nothing yet")
        return
    table = Table(title=title)
    for name, value in rows[0].items():
        table.add_column(name, justify="right" if isinstance(value, int) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) and value is not True else str(value) for value in row.values()))
    console.print(table)
