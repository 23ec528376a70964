"""Messages, documents and JSON on standard output and standard error, with text from outside shown and never obeyed.

The commands of agent and core print through here, or through `terminal` where they want tables; a test sees to it.
"""

import typer

from catchment.runtime.plain import plain_json, plain_lines, plain_message


def say(message: object, *, err: bool = False) -> None:
    """Print a message; lines after its first are indented."""
    typer.echo(plain_message(message), err=err)


def say_document(text: str, *, err: bool = False) -> None:
    """Print a document that is laid out in lines, such as YAML, whole."""
    typer.echo(plain_lines(text), err=err)


def say_json(document: str | bytes) -> None:
    """Print a JSON document on standard output."""
    typer.echo(plain_json(document))
