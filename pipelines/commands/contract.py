"""`catchment contract`: check, show, compare and draft contracts, and the quality of the rows of the last runs."""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from catchment.runtime.exits import DONE, STOP
from catchment.runtime.output import say_document, say_json
from catchment.runtime.plain import plain
from catchment.runtime.terminal import PlainConsole, PlainTable, joined, styled
from pipelines.commands.options import AsJson, Config, Contracts, contract_folder, require_files
from pipelines.config import load_core_config
from pipelines.contracts.arrow import arrow_schema, json_schema
from pipelines.contracts.diff import Difference, diff_contracts
from pipelines.contracts.infer import draft_contract
from pipelines.contracts.odcs import load_odcs, to_odcs
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError, NotFoundError, PipelineError
from pipelines.lake.lake import lake_of
from pipelines.quality.profile import NULLS, Drift, bounds_of, drift
from pipelines.quality.store import keep_quality, read_quality
from schemas.contract import NUMERIC_TYPES, Column, Contract, PiiClass, encode_contract

_WINDOW = re.compile(r"(\d{1,12})\.\.(\d{1,12})")
contract_app = typer.Typer(help="Check, show, compare and draft data contracts.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class Line:
    """One column over the runs shown, against the reference."""

    column: str
    rows: int
    nulls: int
    refused: int
    errors: int
    repeated: int
    minimum: float | None
    maximum: float | None
    psi: float | None
    reading: str
    most: str


def quality(
    stream: Annotated[str, typer.Argument(help="The stream.")],
    config: Config = None,
    runs: Annotated[int, typer.Option(help="How many of the last runs to show as one.", min=1)] = 20,
    reference: Annotated[str, typer.Option(help="Runs to compare with, as 1..100; without it the 100 before.")] = "",
    fail_above: Annotated[float | None, typer.Option(help="Exit 1 if an index is above, for use in a pipeline.")] = None,
    as_json: AsJson = False,
) -> None:
    """Store a profile of every new run, and show counts, ranges and drift of the last ones."""
    console = PlainConsole(highlight=False, soft_wrap=True)
    core = load_core_config(config)
    window = _window(reference)
    contract = ContractSet.load(core.contracts).get(stream, None)
    if contract is None:
        raise NotFoundError(f"there is no contract for stream {stream!r}; see: catchment contract ls")
    lake = lake_of(core)
    keep_quality(lake, contract)
    lines, shown, before = compare(read_quality(lake, stream), contract, runs, window)
    if as_json:
        document = {"stream": stream, "runs": shown, "reference": before, "columns": [asdict(line) for line in lines]}
        say_json(json.dumps(document, allow_nan=False))
    else:
        _print_lines(console, f"{stream}: runs {_span(shown)} against {_span(before)}", lines)
    is_above = fail_above is not None and any(line.psi is not None and line.psi > fail_above for line in lines)
    raise typer.Exit(STOP if is_above else DONE)


def compare(
    kept: pl.DataFrame, contract: Contract, runs: int, window: tuple[int, int] | None
) -> tuple[list[Line], list[int], list[int]]:
    """The last runs as one against the reference: lines, the runs shown, and those of the reference."""
    every = kept["run"].unique().sort().to_list()
    shown = every[-runs:]
    earlier = [run for run in every if run < (shown[0] if shown else 0)]
    before = [run for run in every if window[0] <= run <= window[1]] if window else earlier[-100:]
    numeric = {column.name for column in contract.columns if column.type in NUMERIC_TYPES and column.pii is PiiClass.NONE}
    order = {name: place for place, name in enumerate(["*", *(column.name for column in contract.columns), "tags"])}
    lines = []
    for name in sorted(kept["column"].unique().to_list(), key=lambda name: (order.get(name, len(order)), name)):
        now, then = (kept.filter((pl.col("column") == name) & pl.col("run").is_in(which)) for which in (shown, before))
        lines.append(_line(name, now, then, is_numeric=name in numeric))
    return lines, shown, before


def _line(name: str, now: pl.DataFrame, then: pl.DataFrame, *, is_numeric: bool) -> Line:
    sums = now.select(pl.col("rows", "nulls", "refused", "errors", "repeated").sum()).row(0)
    low, high = now.select(pl.col("minimum").min(), pl.col("maximum").max()).row(0)
    found: Drift | None = None
    if name != "*":
        found = drift(_counts(then), _counts(now), is_numeric=is_numeric)
    most = "" if found is None else found.most
    most_text = bounds_of(most) if is_numeric and most.lstrip("-").isdigit() else most
    psi, reading = (None, "") if found is None else (round(found.psi, 4), str(found.reading))
    rows, nulls, refused, errors, repeated = map(int, sums)
    return Line(name, rows, nulls, refused, errors, repeated, low, high, psi, reading, most_text)


def _counts(lines: pl.DataFrame) -> Counter[str]:
    """The spread over all runs; a column that keeps none compares its nulls with the rest."""
    found: Counter[str] = Counter()
    for rows, nulls, bins in lines.select("rows", "nulls", "bins").iter_rows():
        pairs = [(each["bin"], each["count"]) for each in bins or ()]
        found.update(dict(pairs) or {"(any)": rows - (nulls or 0)})
        found[NULLS] += nulls or 0
    return found


def _window(text: str) -> tuple[int, int] | None:
    if not text:
        return None
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise ConfigError(f"--reference is written as 1..100, not {text!r}")
    return int(match.group(1)), int(match.group(2))


def _span(runs: list[int]) -> str:
    return f"{runs[0]}..{runs[-1]}" if runs else "none"


def _print_lines(console: PlainConsole, title: str, lines: list[Line]) -> None:
    table = PlainTable(
        "column", "rows", "nulls", "refused", "errors", "repeated", "range", "PSI", "", "most by", title=title, box=None
    )
    colours = {"stable": "green", "shifted": "yellow", "drifted": "red"}
    for line in lines:
        span = "" if line.minimum is None else f"{line.minimum:g} .. {line.maximum:g}"
        psi = "" if line.psi is None else f"{line.psi:.3f}"
        reading = styled(line.reading, colours[line.reading]) if line.reading else ""
        counts = [str(number or "") for number in (line.nulls, line.refused, line.errors, line.repeated)]
        table.add_row(line.column, str(line.rows), *counts, span, psi, reading, line.most if line.reading != "stable" else "")
    console.print(table)


class ContractForm(StrEnum):
    """How a contract is shown."""

    TABLE = "table"
    ODCS = "odcs"
    JSON_SCHEMA = "json-schema"
    ARROW = "arrow"
    AGENT = "agent"


_WRITERS: dict[ContractForm, Callable[[Contract], str]] = {
    ContractForm.ODCS: to_odcs,
    ContractForm.JSON_SCHEMA: lambda contract: json.dumps(json_schema(contract), indent=2, ensure_ascii=False),
    ContractForm.ARROW: lambda contract: arrow_schema(contract).to_string(show_field_metadata=True, show_schema_metadata=True),
    ContractForm.AGENT: lambda contract: encode_contract(contract).decode(),
}
_REFUSED = styled("refused", "red")


@contract_app.command()
def check(files: Annotated[list[Path], typer.Argument(help="ODCS documents (YAML).")], as_json: AsJson = False) -> None:
    """Read each document and compile its quality rules; exit code 1 if one is not valid."""
    require_files(files)
    console = PlainConsole(highlight=False, soft_wrap=True)
    rows: list[dict[str, object]] = []
    for path in files:
        try:
            contract = load_odcs(path)
            found = f"{contract.name} {contract.version}, {len(contract.columns)} columns"
            rows.append({"file": str(path), "is_valid": True, "contract": f"{contract.name}@{contract.version}", "fault": ""})
            if not as_json:
                console.print(joined(styled("ok", "green"), f" {path}: {found}"))
        except PipelineError as error:
            rows.append({"file": str(path), "is_valid": False, "contract": "", "fault": str(error)})
            if not as_json:
                console.print(_REFUSED, str(error))
    if as_json:
        say_json(json.dumps(rows))
    raise typer.Exit(DONE if all(row["is_valid"] for row in rows) else STOP)


@contract_app.command("ls")
def list_contracts(contracts: Contracts = "", config: Config = None, as_json: AsJson = False) -> None:
    """List every contract, those of chips too, which are derived."""
    found = _load(contracts, config)
    known = (*found.all(), *found.derived())
    if as_json:
        say_json(json.dumps([_summary(each) for each in known]))
        return
    console = PlainConsole(highlight=False)
    table = PlainTable("stream", "version", "columns", "payload", "retention", "owner", box=None)
    for each in known:
        payload = "-" if each.payload is None else ", ".join(each.payload.media_types)
        retention = "-" if each.retention_days is None else f"{each.retention_days} d"
        table.add_row(each.name, each.version, str(len(each.columns)), payload, retention, each.owner or "-")
    console.print(table)


@contract_app.command()
def show(
    name: Annotated[str, typer.Argument(help="A stream's name, or the path of an ODCS document.")],
    version: Annotated[str | None, typer.Option(help="A version; the newest without it.")] = None,
    contracts: Contracts = "",
    config: Config = None,
    as_: Annotated[
        ContractForm, typer.Option("--as", help="As a table, as other tools read it, or as an agent does.")
    ] = ContractForm.TABLE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, as an agent reads it: --as agent.")] = False,
) -> None:
    """Show a contract's columns, or write it as ODCS, JSON Schema, Arrow schema, or compiled for a device's agent."""
    contract = _find(name, version, _load(contracts, config))
    form = ContractForm.AGENT if as_json and as_ is ContractForm.TABLE else as_
    if form is ContractForm.TABLE:
        _print(PlainConsole(highlight=False), contract)
    else:
        say = say_json if form in (ContractForm.AGENT, ContractForm.JSON_SCHEMA) else say_document
        say(_WRITERS[form](contract).rstrip())


@contract_app.command()
def diff(
    old: Annotated[str, typer.Argument(help="The version that devices send now: a file, a stream, or stream@version.")],
    new: Annotated[str, typer.Argument(help="The version to come, likewise.")],
    contracts: Contracts = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show what changed between two versions, and whether they are compatible; exit 1 if not."""
    known = _load(contracts, config)
    found = diff_contracts(*(_find(*_named(each), known) for each in (old, new)))
    if as_json:
        say_json(json.dumps(_compared(found)))
    else:
        _print_changes(found)
    raise typer.Exit(DONE if found.is_compatible and found.is_version_right else STOP)


def _print_changes(found: Difference) -> None:
    console = PlainConsole(highlight=False, soft_wrap=True)
    for change in found.changes:
        mark, why = (styled("breaks", "red"), f": {change.why}") if change.is_breaking else (styled("fine  ", "green"), "")
        console.print(mark, f"{change.where}: {change.what}{why}")
    verdict = styled("compatible", "green") if found.is_compatible else styled("not compatible", "red")
    wanted = "" if found.is_version_right else f"; the version must be {found.version_wanted} or higher"
    summary = f": {len(found.changes)} changes from {found.old.version} to {found.new.version}{wanted}"
    console.print(joined(verdict, summary))


def _compared(found: Difference) -> dict[str, object]:
    return {
        "old": found.old.version,
        "new": found.new.version,
        "is_compatible": found.is_compatible,
        "is_version_right": found.is_version_right,
        "version_wanted": found.version_wanted,
        "changes": [
            {"where": each.where, "what": each.what, "is_breaking": each.is_breaking, "why": each.why} for each in found.changes
        ],
    }


@contract_app.command()
def infer(
    file: Annotated[Path, typer.Argument(help="CSV, TSV, JSON lines, Parquet, Arrow IPC, or a Zeek log.")],
    name: Annotated[str | None, typer.Option(help="The stream's name; from the file's without it.")] = None,
    rows: Annotated[int, typer.Option(help="How many rows to look at.", min=1)] = 10_000,
    bounds: Annotated[bool, typer.Option("--bounds", help="Write ranges and values seen as bounds.")] = False,
) -> None:
    """Draft a contract from a file, as ODCS YAML for you to correct."""
    require_files([file])
    draft = draft_contract(file, name, max_rows=rows, bounds=bounds)
    for line in draft.hints.lines(draft.contract.name, str(file)):
        say_document(f"# {plain(line)}".rstrip())
    say_document(to_odcs(draft.contract).rstrip())


def _named(text: str) -> tuple[str, str | None]:
    name, _, version = text.partition("@")
    return name, version or None


def _find(name: str, version: str | None, known: ContractSet) -> Contract:
    contract = load_odcs(Path(name)) if name.endswith(".yaml") else known.get(name, version)
    if contract is None:
        raise NotFoundError(f"no contract {name!r} of that version; see: catchment contract ls")
    return contract


def _summary(contract: Contract) -> dict[str, object]:
    return {
        "stream": contract.name,
        "version": contract.version,
        "columns": len(contract.columns),
        "media_types": None if contract.payload is None else list(contract.payload.media_types),
        "retention_days": contract.retention_days,
        "owner": contract.owner,
    }


def _print(console: PlainConsole, contract: Contract) -> None:
    console.print(joined(styled(f"{contract.name} {contract.version}", "bold"), f"  {contract.description}"))
    table = PlainTable("column", "in the source", "type", "unit", "required", "accepted", "pii", "description", box=None)
    for column in contract.columns:
        required = "yes" if column.required else ""
        pii = "" if column.pii == "none" else str(column.pii)
        accepted = _accepted(column)
        table.add_row(column.name, column.source_name, _typed(column), column.unit, required, accepted, pii, column.description)
    console.print(table)
    for rule in contract.quality:
        console.print(joined("quality ", styled(rule.name, "bold"), f": {rule.expression}"))
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


def _load(folder: str, config: Path | None) -> ContractSet:
    return ContractSet.load(contract_folder(config, folder))


contract_app.command("quality")(quality)
