"""What the source that fills a drafted contract is configured with: its column of times, and how things are written."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from pipelines.contracts.draft_types import PLAIN, TypedColumn, time_formats
from pipelines.contracts.head_rows import HeadRows
from schemas.source_names import TIME_NAMES, column_name_of, is_time_name
from schemas.written_values import NumberForm

_TIME_WORDS = ("time", "date", "timestamp", "zeit", "datum", "utc", "epoch")
# 1990 and 2100, the years between which the core accepts event times, in seconds.
_EARLIEST_S, _LATEST_S = 631_152_000, 4_102_444_800


@dataclass(frozen=True, slots=True)
class SourceHints:
    """Options of a source that fills the draft, as TOML text by name, and remarks.

    Attributes:
        kind: of file: csv, jsonl, zeek; "": one that no source of the agent reads.
        options: name -> value as TOML.
        remarks: what a person must decide or know.
    """

    kind: str = ""
    options: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def lines(self, stream: str, path: str) -> list[str]:
        """A source for agent.toml, and the remarks."""
        if not self.kind:
            return ["No source of the agent reads this kind of file: the draft is for bodies that another program sends."]
        shown = path.replace("\\", "\\\\").replace('"', '\\"')
        return [
            "A source that fills it (agent.toml); try it with: edge-agent try -c agent.toml",
            "",
            "  [[source]]",
            '  kind = "replay"',
            f'  stream = "{stream}"',
            f'  contract = "{stream}.json"   # catchment contract show {stream}.odcs.yaml --as agent > {stream}.json',
            "  [source.options]",
            f'  path = "{shown}"',
            *(f"  {name} = {value}" for name, value in self.options.items()),
            *(("", *self.remarks) if self.remarks else ()),
        ]


def json_hints(rows: HeadRows, typed: Sequence[TypedColumn]) -> SourceHints:
    """Hints for a file of JSON."""
    if not rows.is_lines:
        return SourceHints("jsonl", {}, ("The agent reads JSON lines: write one object a line (jq -c '.[]' does it).",))
    return _hints("jsonl", rows, typed, {}, [])


def csv_hints(rows: HeadRows, typed: Sequence[TypedColumn], form: NumberForm, doubt: str) -> SourceHints:
    """Hints for a file of separated values."""
    options: dict[str, str] = {}
    if form != PLAIN:
        options["decimal"] = f'"{form.decimal}"'
        if form.thousands:
            options["thousands"] = f'"{form.thousands}"'
    return _hints("csv", rows, typed, options, [doubt] if doubt else [])


def _hints(kind: str, rows: HeadRows, typed: Sequence[TypedColumn], options: dict[str, str], remarks: list[str]) -> SourceHints:
    by_name = {column.series.name: column for column in typed}
    name = _time_column(by_name)
    if name is None:
        remarks.append("No column of times was found: the time of reading will be the event time; else set time_column.")
        return SourceHints(kind, options, (*remarks, *_zone_remark(typed, options)))
    if not _is_found_alone(name, by_name):
        options["time_column"] = _quoted(name)
    column = by_name[name]
    texts = [cell for cell in rows.columns[name] if isinstance(cell, str)]
    if column.series.dtype == pl.String and texts:
        _add_format(texts, options, remarks)
    elif column.series.dtype.is_numeric() and not _is_since_1970(column.series):
        remarks.append(f"{name!r} does not count from 1970: set time_start, or another time_column.")
    return SourceHints(kind, options, (*remarks, *_zone_remark(typed, options)))


def _add_format(texts: Sequence[str], options: dict[str, str], remarks: list[str]) -> None:
    formats = time_formats(texts)
    if formats:
        options["time_format"] = f"'{formats[0]}'"
        if "%z" not in formats[0]:
            options["time_zone"] = '"UTC"   # or the zone they are in, such as "Europe/Berlin"'
    if len(formats) > 1:
        remarks.append(f"The times fit more than one form: {', '.join(formats)}; take the right one.")
    if not formats:
        remarks.append("The form of the times was not recognised: set time_format, as strptime has it.")


def _zone_remark(typed: Sequence[TypedColumn], options: dict[str, str]) -> tuple[str, ...]:
    lacking = [column.series.name for column in typed if column.lacks_zone]
    if not lacking or "time_zone" in options:
        return ()
    options["time_zone"] = '"UTC"   # or the zone they are in, such as "Europe/Berlin"'
    return (f"Times without a zone: {', '.join(lacking)}. Set time_zone to the zone they are in.",)


def _time_column(columns: dict[str, TypedColumn]) -> str | None:
    named = [name for wanted in TIME_NAMES for name in columns if column_name_of(name) == wanted]
    times = [name for name, column in columns.items() if column.series.dtype == pl.Datetime]
    alike = [name for name, column in columns.items() if _looks_like_time(name, column.series)]
    return next(iter((*named, *times, *alike)), None)


def _looks_like_time(name: str, series: pl.Series) -> bool:
    is_named_so = series.dtype == pl.String and any(word in name.lower() for word in _TIME_WORDS)
    return is_named_so and bool(series.drop_nulls().str.contains(r"\d").any())


def _is_found_alone(name: str, columns: dict[str, TypedColumn]) -> bool:
    """Whether the agent takes this column for the times without being told."""
    return is_time_name(name) and name in columns


def _is_since_1970(series: pl.Series) -> bool:
    first = series.drop_nulls().head(1).cast(pl.Float64).to_list()
    if not first:
        return True
    size = abs(first[0])
    scale = 1.0 if size < 1e11 else 1e3 if size < 1e14 else 1e6 if size < 1e17 else 1e9
    return bool(_EARLIEST_S <= size / scale < _LATEST_S)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
