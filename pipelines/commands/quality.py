"""`catchment contract quality`: what the rows of the last runs look like, and how far they have drifted."""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated

import polars as pl
import typer

from catchment.runtime.exits import DONE, STOP
from catchment.runtime.output import say_json
from catchment.runtime.terminal import PlainConsole, PlainTable, styled
from pipelines.commands.options import AsJson, Config
from pipelines.config import load_core_config
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError, NotFoundError
from pipelines.lake.lake import lake_of
from pipelines.quality.profile import NULLS, Drift, bounds_of, drift
from pipelines.quality.store import keep_quality, read_quality
from schemas.contract import NUMERIC_TYPES, Contract, PiiClass

_WINDOW = re.compile(r"(\d{1,12})\.\.(\d{1,12})")


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
        _print(console, f"{stream}: runs {_span(shown)} against {_span(before)}", lines)
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


def _print(console: PlainConsole, title: str, lines: list[Line]) -> None:
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
