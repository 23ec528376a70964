"""`catchment contract`: check, show, compare and draft contracts."""

import json
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.contracts.diff import diff_contracts
from pipelines.contracts.infer import draft_contract
from pipelines.contracts.json_schema import arrow_schema, json_schema
from pipelines.contracts.odcs import load_odcs, to_odcs
from pipelines.contracts.quality_cli import quality
from pipelines.contracts.registry import ContractSet
from pipelines.errors import PipelineError
from schemas.contract import Column, Contract, encode_contract

contract_app = typer.Typer(help="Check, show, compare and draft data contracts.", no_args_is_help=True)


class Form(StrEnum):
    """How a contract is shown."""

    TABLE = "table"
    ODCS = "odcs"
    JSON_SCHEMA = "json-schema"
    ARROW = "arrow"
    AGENT = "agent"


_WRITERS: dict[Form, Callable[[Contract], str]] = {
    Form.ODCS: to_odcs,
    Form.JSON_SCHEMA: lambda contract: json.dumps(json_schema(contract), indent=2, ensure_ascii=False),
    Form.ARROW: lambda contract: arrow_schema(contract).to_string(show_field_metadata=True, show_schema_metadata=True),
    Form.AGENT: lambda contract: encode_contract(contract).decode(),
}
Folder = Annotated[str, typer.Option("--contracts", help="Folder of *.odcs.yaml contracts beside the built-in ones.")]


@contract_app.command()
def check(files: Annotated[list[Path], typer.Argument(help="ODCS documents (YAML).")]) -> None:
    """Read each document and compile its quality rules."""
    console = Console(highlight=False, soft_wrap=True)
    bad = 0
    for path in files:
        try:
            contract = load_odcs(path)
            console.print(f"[green]ok[/] {path}: {contract.name} {contract.version}, {len(contract.columns)} columns")
        except PipelineError as error:
            bad += 1
            console.print("[red]refused[/]", str(error).replace("[", r"\["))
    raise typer.Exit(1 if bad else 0)


@contract_app.command("ls")
def list_contracts(contracts: Folder = "") -> None:
    """List every contract."""
    console = Console(highlight=False)
    table = Table("stream", "version", "columns", "payload", "retention", "owner", box=None)
    for each in _load(console, contracts).all():
        payload = "-" if each.payload is None else ", ".join(each.payload.media_types)
        retention = "-" if each.retention_days is None else f"{each.retention_days} d"
        table.add_row(each.name, each.version, str(len(each.columns)), payload, retention, each.owner or "-")
    console.print(table)


@contract_app.command()
def show(
    name: Annotated[str, typer.Argument(help="A stream's name, or the path of an ODCS document.")],
    version: Annotated[str | None, typer.Option(help="A version; the newest without it.")] = None,
    contracts: Folder = "",
    as_: Annotated[Form, typer.Option("--as", help="As a table, as other tools read it, or as an agent does.")] = Form.TABLE,
) -> None:
    """Show a contract's columns, or write it as ODCS, JSON Schema, Arrow schema, or compiled for a device's agent."""
    console = Console(highlight=False)
    contract = _find(console, name, version, contracts)
    if as_ is Form.TABLE:
        _print(console, contract)
    else:
        typer.echo(_WRITERS[as_](contract).rstrip())


@contract_app.command()
def diff(
    old: Annotated[str, typer.Argument(help="The version that devices send now: a file, a stream, or stream@version.")],
    new: Annotated[str, typer.Argument(help="The version to come, likewise.")],
    contracts: Folder = "",
) -> None:
    """Say what changed between two versions, and whether what works today goes on working; exit 1 if not."""
    console = Console(highlight=False, soft_wrap=True)
    found = diff_contracts(*(_find(console, *_named(each), contracts) for each in (old, new)))
    for change in found.changes:
        mark, why = ("[red]breaks[/]", f": {change.why}") if change.is_breaking else ("[green]fine[/]  ", "")
        console.print(mark, f"{change.where}: {change.what}{why}".replace("[", r"\["))
    verdict = "[green]compatible[/]" if found.is_compatible else "[red]not compatible[/]"
    wanted = "" if found.is_version_right else f"; the version must be {found.version_wanted} or higher"
    console.print(f"{verdict}: {len(found.changes)} changes from {found.old.version} to {found.new.version}{wanted}")
    raise typer.Exit(0 if found.is_compatible and found.is_version_right else 1)


@contract_app.command()
def infer(
    file: Annotated[Path, typer.Argument(help="CSV, TSV, JSON lines, Parquet, Arrow IPC, or a Zeek log.")],
    name: Annotated[str | None, typer.Option(help="The stream's name; from the file's without it.")] = None,
    rows: Annotated[int, typer.Option(help="How many rows to look at.", min=1)] = 10_000,
    bounds: Annotated[bool, typer.Option("--bounds", help="Write ranges and values seen as bounds.")] = False,
) -> None:
    """Draft a contract from a file, as ODCS YAML for you to correct."""
    try:
        draft = draft_contract(file, name, max_rows=rows, bounds=bounds)
        for line in draft.hints.lines(draft.contract.name, str(file)):
            typer.echo(f"# {line}".rstrip())
        typer.echo(to_odcs(draft.contract).rstrip())
    except PipelineError as error:
        Console(highlight=False, soft_wrap=True, stderr=True).print("[red]refused[/]", str(error).replace("[", r"\["))
        raise typer.Exit(1) from error


def _named(text: str) -> tuple[str, str | None]:
    name, _, version = text.partition("@")
    return name, version or None


def _find(console: Console, name: str, version: str | None, contracts: str) -> Contract:
    try:
        contract = load_odcs(Path(name)) if name.endswith(".yaml") else _load(console, contracts).get(name, version)
    except PipelineError as error:
        console.print("[red]refused[/]", str(error).replace("[", r"\["))
        raise typer.Exit(1) from error
    if contract is None:
        console.print(f"[red]refused[/] no contract {name!r} of that version; see: catchment contract ls")
        raise typer.Exit(1)
    return contract


def _print(console: Console, contract: Contract) -> None:
    console.print(f"[bold]{contract.name} {contract.version}[/]  {contract.description}")
    table = Table("column", "in the source", "type", "unit", "required", "accepted", "pii", "description", box=None)
    for column in contract.columns:
        required = "yes" if column.required else ""
        pii = "" if column.pii == "none" else str(column.pii)
        source_name = escape(column.source_name)
        table.add_row(
            column.name, source_name, _typed(column), column.unit, required, _accepted(column), pii, escape(column.description)
        )
    console.print(table)
    for rule in contract.quality:
        console.print(f"quality [bold]{rule.name}[/]: ", rule.expression.replace("[", r"\["), sep="")
    if contract.payload is not None:
        console.print(f"payload: {', '.join(contract.payload.media_types)}, at most {contract.payload.max_bytes:,} bytes")


def _typed(column: Column) -> str:
    if column.fields:
        return "struct: " + ", ".join(f"{field.name} {_typed(field)}" for field in column.fields)
    return (
        f"{column.type}, {column.length}"
        if column.length
        else f"{column.type}, {column.zone}"
        if column.zone
        else str(column.type)
    )


def _accepted(column: Column) -> str:
    parts = []
    if column.minimum is not None or column.maximum is not None:
        low = "" if column.minimum is None else f"{column.minimum:g}"
        high = "" if column.maximum is None else f"{column.maximum:g}"
        parts.append(f"{low} .. {high}")
    if column.allowed:
        parts.append(" | ".join(column.allowed))
    if column.max_length is not None:
        parts.append(f"length <= {column.max_length}")
    return ", ".join(parts)


def _load(console: Console, folder: str) -> ContractSet:
    try:
        return ContractSet.load(folder)
    except PipelineError as error:
        console.print("[red]refused[/]", str(error).replace("[", r"\["))
        raise typer.Exit(1) from error


contract_app.command("quality")(quality)
