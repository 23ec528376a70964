"""`catchment director`: the key that signs orders, given to devices, and changed."""

from pathlib import Path
from typing import Annotated

import typer

from catchment.runtime.output import say, say_document
from pipelines.commands.options import Config
from pipelines.config import load_core_config
from pipelines.director import add_director_key, director_folder, require_director, retire_director_key
from pipelines.errors import RefusedError

director_app = typer.Typer(help="The key that signs what devices are ordered to do.", no_args_is_help=True)


@director_app.command()
def init(config: Config = None) -> None:
    """Make the first key, and print what devices are configured with."""
    folder = director_folder(load_core_config(config))
    if any(folder.glob("director-*.pem")):
        raise RefusedError(f"{folder} holds a director key already; `catchment director add` makes another one")
    path = add_director_key(folder)
    say(f"# The private key is {path}. It stays with the model server.", err=True)
    _print_keys(folder)


@director_app.command()
def add(config: Config = None) -> None:
    """Make another key: from now on all keys sign."""
    folder = director_folder(load_core_config(config))
    require_director(folder)
    path = add_director_key(folder)
    say(f"# The private key is {path}. Give devices the keys below, then retire the old one.", err=True)
    _print_keys(folder)


@director_app.command()
def retire(
    public_key: Annotated[str, typer.Argument(help="The public key, or its first digits.")],
    config: Config = None,
) -> None:
    """Delete a private key: devices that trust no other follow nothing any more."""
    folder = director_folder(load_core_config(config))
    say(f"# {retire_director_key(folder, public_key)} is deleted.", err=True)
    _print_keys(folder)


@director_app.command()
def show(
    config: Config = None,
    bare: Annotated[bool, typer.Option("--bare", help="One key a line, for `edge-agent enrol --director`.")] = False,
) -> None:
    """Print the public keys."""
    _print_keys(director_folder(load_core_config(config)), bare=bare)


def _print_keys(folder: Path, *, bare: bool = False) -> None:
    keys = require_director(folder).public_keys
    if bare:
        say_document("\n".join(keys))
        return
    listed = ", ".join(f'"{key}"' for key in keys)
    say_document(f"# agent.toml of every device\n[director]\npublic_keys = [{listed}]")
