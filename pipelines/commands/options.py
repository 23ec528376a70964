"""The options that commands of the core share, and how they print rows: a table for people, one JSON document for programs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from catchment.runtime.output import say_json
from pipelines.config import found_config, load_core_config
from pipelines.errors import NotFoundError

Config = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        help="The core's TOML file; default: $CATCHMENT_CONFIG, ./core.toml, /etc/catchment/core.toml.",
        show_default=False,
    ),
]
Lake = Annotated[
    Path | None, typer.Option("--lake", help="The lake root itself, with the built-in contracts; no TOML file needed.")
]
Contracts = Annotated[
    str,
    typer.Option("--contracts", help="Folder of *.odcs.yaml contracts in addition to the built-in ones; default: as configured."),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]


def contract_folder(config: Path | None, given: str) -> str:
    """The folder of contracts that a command uses in addition to the built-in ones; "" for none.

    Args:
        config: what `-c` names; without it the configuration that is found, if there is one.
        given: what `--contracts` names; it comes first.

    Raises:
        ConfigError: the configuration is wrong.
    """
    path = config or (None if given else found_config())
    configured = "" if path is None else load_core_config(path).contracts
    return given or configured


def require_files(paths: Iterable[Path]) -> None:
    """Refuse files that are not there.

    Raises:
        NotFoundError: one is not.
    """
    for path in paths:
        if not path.exists():
            raise NotFoundError(f"{path}: no such file; give an existing one")


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
