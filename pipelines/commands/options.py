"""The options that commands of the core share, and how they print rows: a table for people, one JSON document for programs."""

import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

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


def with_options(*forms: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a dataclass, in place of its argument of that class.

    Commands that share options name the dataclass; each field is annotated as an option is, and its default is the option's.

    Args:
        forms: dataclasses; the command has exactly one argument of each.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters.values()
        slots = {parameter.name: parameter.annotation for parameter in own if parameter.annotation in forms}
        shared = [option for form in slots.values() for option in _options_of(form)]
        kept = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own if one.name not in slots]

        @wraps(command)
        def call(**given: Any) -> None:
            for slot, form in slots.items():
                given[slot] = form(**{field.name: given.pop(field.name) for field in fields(form)})
            command(**given)

        call.__signature__ = inspect.Signature([*kept, *shared])  # type: ignore[attr-defined]  # typer reads it
        return call

    return decorate


def _options_of(form: type[Any]) -> list[inspect.Parameter]:
    hints = get_type_hints(form, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(form)
    ]


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
