"""Use a policy in a notebook: load, check, apply to a frame, look, change, and put it in force when it is right.

Tables of pyarrow, Polars and pandas are taken as Arrow, and given back as they came.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import polars as pl
import pyarrow as pa

from catchment.runtime.plain import html_text, plain_lines
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError, NotFoundError, PipelineError, RefusedError
from pipelines.inspect.code import bind_code
from pipelines.inspect.columns import inspected, steps_of
from pipelines.inspect.run import inspect_rows
from pipelines.inspect.stored import fresh_payloads
from pipelines.policy.documents import load_policy, parse_policy, to_yaml
from pipelines.policy.engine import Tagger
from pipelines.policy.explain import Explained, explain
from pipelines.policy.preview import Preview
from pipelines.policy.retag import readable
from pipelines.policy.trial import PolicyTrial, try_policy
from schemas.contract import RESERVED_COLUMNS, Column, ColumnType, Contract
from schemas.policy import Policy as Document
from schemas.policy import Rule


@dataclass(frozen=True, slots=True)
class Found:
    """What a policy does to a frame: shows itself as a table."""

    preview: Preview

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html_text(each.tag)}</td><td>{each.rows:,}</td><td>{each.rows / max(1, self.preview.rows):.2%}</td></tr>"
            for each in self.preview.counts.values()
        )
        clashes = "".join(
            f"<p><b>conflict</b> {html_text(each.first)} and {html_text(each.second)} on {each.rows:,} rows</p>"
            for each in self.preview.conflicts.values()
        )
        head = f"{self.preview.tagged:,} of {self.preview.rows:,} rows get a tag"
        return f"<p>{head}</p><table><tr><th>tag</th><th>rows</th><th>share</th></tr>{rows}</table>{clashes}"

    def __repr__(self) -> str:
        lines = [f"{self.preview.tagged:,} of {self.preview.rows:,} rows get a tag"]
        lines += [f"  {each.tag:<24} {each.rows:>12,} {each.rows / max(1, self.preview.rows):8.2%}" for each in self.counts]
        lines += [f"  conflict: {each.first} and {each.second} on {each.rows:,} rows" for each in self.preview.conflicts.values()]
        return plain_lines("\n".join(lines))

    @property
    def counts(self) -> list[Any]:
        """Rows for each tag."""
        return list(self.preview.counts.values())


class Policy:
    """A policy and the contracts that its rules are checked against.

    Args:
        document: what it says.
        contracts: a folder of `*.odcs.yaml` in addition to the built-in contracts.
    """

    def __init__(self, document: Document, contracts: str | Path = "") -> None:
        self.document = document
        self._contracts = ContractSet.load(str(contracts))

    @classmethod
    def load(cls, path: str | Path, contracts: str | Path = "") -> Self:
        """Read a YAML file.

        Raises:
            ConfigError: not a policy; the message names file and line.
        """
        return cls(load_policy(Path(path)), contracts)

    @classmethod
    def parse(cls, text: str, contracts: str | Path = "", folder: str | Path = ".") -> Self:
        """Read YAML text; `folder` is where the files of its inspect steps lie.

        Raises:
            ConfigError: not a policy; the message names the line.
        """
        return cls(bind_code(parse_policy(text), Path(folder)), contracts)

    @property
    def id(self) -> str:
        """Its id."""
        return self.document.id

    @property
    def version(self) -> str:
        """A hash of all that it says."""
        return self.document.version

    @property
    def yaml(self) -> str:
        """Its text, to be put into a file and reviewed."""
        return to_yaml(self.document)

    def with_rule(self, tag: str, when: str, description: str = "") -> "Policy":
        """This policy with one more rule, or with another expression for a tag that it gives already."""
        rules = [rule for rule in self.document.rules if rule.tag != tag]
        changed = msgspec.structs.replace(self.document, rules=(*rules, Rule(tag, when, description)))
        return self._like(changed)

    def without(self, tag: str) -> "Policy":
        """This policy without the rules for a tag."""
        rules = tuple(rule for rule in self.document.rules if rule.tag != tag)
        return self._like(msgspec.structs.replace(self.document, rules=rules))

    def check(self) -> list[str]:
        """What is wrong with it; an empty list if it compiles and its examples get their tags."""
        try:
            trial = self.test()
        except PipelineError as error:
            return [str(error)]
        return [
            f"example {each.example + 1} on {each.stream} wants {', '.join(each.wanted) or 'no tags'} and gets "
            f"{', '.join(each.found) or 'no tags'}"
            for each in trial.failures
        ]

    def test(self) -> PolicyTrial:
        """Run its examples.

        Raises:
            PipelineError: it does not compile.
        """
        return try_policy(self.document, self._contracts)

    def apply(self, frame: Any, stream: str = "") -> Any:
        """The frame with the columns `tags` and `tag_rules`, in the library it came from.

        Args:
            frame: a pyarrow Table, a Polars or pandas DataFrame, a dict of columns or a list of rows.
            stream: which of the policy's streams the rows are of; default: its first.

        Raises:
            ExpressionError: a rule does not compile.
            RefusedError: not a frame, or a column of another type than the contract's.
        """
        tagger, rows = self._prepared(frame, stream)
        tags, sources = tagger.tag(rows)
        return with_columns(frame, {"tags": tags, "tag_rules": sources})

    def look(self, frame: Any, stream: str = "") -> Found:
        """Matches per tag, overlaps and conflicts on this frame.

        Raises:
            ExpressionError: a rule does not compile.
            RefusedError: not a frame, or a column of another type than the contract's.
        """
        tagger, rows = self._prepared(frame, stream)
        preview = Preview(self.document, tagger)
        preview.take(rows)
        return Found(preview)

    def explain(self, frame: Any, row: int = 0, stream: str = "") -> tuple[Explained, ...]:
        """Why a row gets its tags: each rule's verdict with the values of its parts.

        Raises:
            ExpressionError: a rule does not compile.
            RefusedError: not a frame, or a column of another type than the contract's.
        """
        tagger, rows = self._prepared(to_arrow(frame).slice(row, 1), stream)
        return explain(tagger, rows)

    def _prepared(self, frame: Any, stream: str) -> tuple[Tagger, pa.Table]:
        name = stream or self.document.streams[0]
        table = to_arrow(frame)
        own = self._contract(name, table)
        contract = inspected(own, [self.document])
        rows = fitted(table, contract)
        steps = steps_of([self.document], name)
        if any(step.code for step in steps):
            raise ConfigError("call your own inspector yourself and give its columns; `catchment policy preview` runs it")
        if steps:
            rows = inspect_rows(None, rows, steps, fresh_payloads(None, rows))
        return Tagger.compile([self.document], contract), rows

    def _contract(self, stream: str, table: pa.Table) -> Contract:
        if stream not in self.document.streams:
            raise NotFoundError(f"policy {self.id} is for {', '.join(self.document.streams)}, not for {stream!r}")
        return self._contracts.get(stream, None) or drafted_contract(stream, table)

    def _like(self, document: Document) -> "Policy":
        made = Policy.__new__(Policy)
        made.document, made._contracts = document, self._contracts  # noqa: SLF001  # of its own kind
        return made

    def __repr__(self) -> str:
        rules = "\n".join(f"  {rule.tag}: {rule.when}" for rule in self.document.rules)
        return plain_lines(f"Policy {self.document.label} for {', '.join(self.document.streams)}\n{rules}")

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td><b>{html_text(rule.tag)}</b></td><td><code>{html_text(rule.when)}</code></td>"
            f"<td>{html_text(rule.description)}</td></tr>"
            for rule in self.document.rules
        )
        problems = "".join(f"<p style='color:#b00'>{html_text(each)}</p>" for each in self.check())
        head = f"<b>{html_text(self.document.label)}</b> for {html_text(', '.join(self.document.streams))}"
        return f"<p>{head}</p>{problems}<table><tr><th>tag</th><th>when</th><th></th></tr>{rows}</table>"


def to_arrow(frame: Any) -> pa.Table:
    """The frame as an Arrow table.

    Raises:
        RefusedError: not a table of a library that is known here.
    """
    if isinstance(frame, pa.Table):
        return frame
    if isinstance(frame, pa.RecordBatch):
        return pa.Table.from_batches([frame])
    if isinstance(frame, pl.DataFrame):
        return frame.to_arrow()
    if isinstance(frame, dict | list):
        return pa.table(frame) if isinstance(frame, dict) else pa.Table.from_pylist(frame)
    if type(frame).__module__.partition(".")[0] == "pandas":
        return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    raise RefusedError(
        f"a pyarrow Table, a Polars or pandas DataFrame, a dict of columns or a list of rows, not {type(frame).__name__}"
    )


def with_columns(frame: Any, columns: dict[str, pa.Array]) -> Any:
    """The frame, of its own library, with more columns; the frame that was given is left as it is."""
    if isinstance(frame, pl.DataFrame):
        return frame.with_columns(pl.Series(name, pl.from_arrow(column)) for name, column in columns.items())
    if type(frame).__module__.partition(".")[0] == "pandas":
        return frame.assign(**{name: column.to_pylist() for name, column in columns.items()})
    table = to_arrow(frame)
    for name, column in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    return table


def fitted(table: pa.Table, contract: Contract) -> pa.Table:
    """The columns that rules may read, cast to the contract's types; one that is missing is null.

    Raises:
        RefusedError: a column cannot be cast.
    """
    columns: dict[str, Any] = {}
    for name, wanted in readable(contract).items():
        if name not in table.column_names:
            columns[name] = pa.nulls(table.num_rows, wanted)
            continue
        column = table.column(name)
        try:
            columns[name] = column if column.type == wanted else column.cast(wanted, safe=not pa.types.is_timestamp(wanted))
        except pa.ArrowException as error:
            raise RefusedError(f"column {name} is {column.type} and contract {contract.name} wants {wanted}: {error}") from error
    extra = [name for name in table.column_names if name not in columns]
    for name in extra:
        columns[name] = table.column(name)
    return pa.table(columns)


def drafted_contract(stream: str, table: pa.Table) -> Contract:
    """A contract for a table that has none: each column of the nearest type that rules know; others are skipped."""
    columns = [
        Column(field.name, type_)
        for field in table.schema
        if field.name not in RESERVED_COLUMNS and (type_ := _nearest(field.type)) is not None
    ]
    return Contract(stream, "0.0.0", tuple(columns))


def _nearest(type_: pa.DataType) -> ColumnType | None:
    if pa.types.is_dictionary(type_):
        return _nearest(type_.value_type)
    tests = (
        (pa.types.is_boolean, ColumnType.BOOL),
        (pa.types.is_integer, ColumnType.INT64),
        (pa.types.is_floating, ColumnType.FLOAT64),
        (pa.types.is_timestamp, ColumnType.TIMESTAMP),
        (pa.types.is_string, ColumnType.STRING),
        (pa.types.is_large_string, ColumnType.STRING),
        (pa.types.is_string_view, ColumnType.STRING),
        (pa.types.is_binary, ColumnType.BINARY),
        (pa.types.is_large_binary, ColumnType.BINARY),
        (pa.types.is_null, ColumnType.STRING),
    )
    return next((found for test, found in tests if test(type_)), None)
