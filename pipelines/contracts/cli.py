"""`catchment contract`: check and show contracts."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipelines.contracts.odcs import load_odcs
from pipelines.contracts.registry import ContractSet
from pipelines.errors import PipelineError
from schemas.contract import Column, Contract

contract_app = typer.Typer(help="Check and show data contracts.", no_args_is_help=True)

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
) -> None:
    """Show a contract's columns."""
    console = Console(highlight=False)
    try:
        contract = load_odcs(Path(name)) if name.endswith(".yaml") else _load(console, contracts).get(name, version)
    except PipelineError as error:
        console.print("[red]refused[/]", str(error).replace("[", r"\["))
        raise typer.Exit(1) from error
    if contract is None:
        console.print(f"[red]refused[/] no contract {name!r} of that version; see: catchment contract ls")
        raise typer.Exit(1)
    _print(console, contract)


def _print(console: Console, contract: Contract) -> None:
    console.print(f"[bold]{contract.name} {contract.version}[/]  {contract.description}")
    table = Table("column", "type", "unit", "required", "accepted", "pii", "description", box=None)
    for column in contract.columns:
        required = "yes" if column.required else ""
        pii = "" if column.pii == "none" else str(column.pii)
        table.add_row(column.name, str(column.type), column.unit, required, _accepted(column), pii, column.description)
    console.print(table)
    for rule in contract.quality:
        console.print(f"quality [bold]{rule.name}[/]: ", rule.expression.replace("[", r"\["), sep="")
    if contract.payload is not None:
        console.print(f"payload: {', '.join(contract.payload.media_types)}, at most {contract.payload.max_bytes:,} bytes")


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
