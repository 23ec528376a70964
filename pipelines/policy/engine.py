"""Tag rows: every rule of every policy over a whole table in one Polars select, then lists without a row loop.

`Judge` is the interface to judge whole tables: by the tagger itself, or with risky policies in a process that can be killed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipelines.errors import ExpressionError, RefusedError
from pipelines.expressions import ir
from pipelines.expressions.expression import Expression, compile_expression, rule_columns
from pipelines.expressions.ir import Node, Ref, refs
from pipelines.expressions.to_polars import as_column, normalised, to_polars
from schemas.contract import ColumnType, Contract
from schemas.policy import Policy

_BLOCK_ROWS = 65_536  # cursors and codes of one block stay in the processor's cache
_BYTE_COUNTS = 255
_Bools: TypeAlias = npt.NDArray[np.bool_]
_Counts: TypeAlias = npt.NDArray[np.int32]
TagLists: TypeAlias = tuple[pa.ListArray, pa.ListArray]


class RuleError(ExpressionError):
    """A rule of a policy does not compile; `index` is its place among the policy's rules."""

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One tag of one policy. Rules of a policy that give the same tag are one: the tag tells the policy, not the rule."""

    tag: str
    policy: str
    expressions: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Tagger:
    """The compiled rules for the rows of one contract."""

    contract: Contract
    rules: tuple[CompiledRule, ...]
    used: tuple[Ref, ...]
    generated: tuple[pl.Expr, ...]

    @classmethod
    def compile(cls, policies: Iterable[Policy], contract: Contract) -> Self:
        """Compile the rules of those policies that are for this contract's stream.

        Raises:
            RuleError: a rule is not in the language or does not fit the contract; the message names policy and rule.
        """
        columns = rule_columns(contract)
        grouped: dict[tuple[str, str], list[Expression]] = {}
        for policy in policies:
            if contract.name not in policy.streams:
                continue
            for index, rule in enumerate(policy.rules):
                try:
                    expression = compile_expression(rule.when, columns, allow_labels=True)
                except ExpressionError as error:
                    raise RuleError(f"policy {policy.id}, rule {rule.tag}, stream {contract.name}: {error}", index) from error
                grouped.setdefault((rule.tag, f"{policy.id}@{policy.version}"), []).append(expression)
        rules = tuple(CompiledRule(tag, source, tuple(found)) for (tag, source), found in grouped.items())
        trees = [[expression.folded for expression in rule.expressions] for rule in rules]
        used = {ref for nodes in trees for node in nodes for ref in refs(node)}
        return cls(
            contract,
            rules,
            used=tuple(sorted(used, key=lambda ref: ref.name)),
            generated=tuple(_generated(nodes).alias(str(index)) for index, nodes in enumerate(trees)),
        )

    @property
    def columns(self) -> frozenset[str]:
        """The columns the rules read: all that `tag` needs of a table."""
        return frozenset(ref.column for ref in self.used)

    def tag(self, table: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """The tags of each row and, aligned with them, what gave each: `<policy>@<version>`.

        Both are list<string> of the table's length, never null; tags stand in the order of the policies and their rules.

        Raises:
            RefusedError: the table lacks a column that a rule reads.
        """
        return in_words(self.coded(table))

    def coded(self, table: pa.Table) -> TagLists:
        """As `tag`, as codes into the few words there are: no string is copied for each row.

        Raises:
            RefusedError: the table lacks a column that a rule reads.
        """
        rows = table.num_rows
        return lists_of(self.rules, self.verdicts(table) if self.rules and rows else [], rows)

    def verdicts(self, table: pa.Table) -> list[_Bools]:
        """For each rule, whether it is true for each row (NULL is not true)."""
        return [_unpacked(column) for column in self.judge(table).get_columns()]

    def judge(self, table: pa.Table) -> pl.DataFrame:
        """For each rule a column of verdicts, named by its place in `rules`; NULL is unknown."""
        self._refuse_missing(table)
        return _frame(table, self.used).select(self.generated)

    def count_errors(self, table: pa.Table) -> dict[str, int]:
        """For each tag whose rules can fail, for how many rows one of them did: where NULL came of values that were there.

        Raises:
            RefusedError: the table lacks a column that a rule reads.
        """
        found: dict[str, list[pl.Expr]] = {}
        for rule in self.rules:
            for failed in (expression.errors() for expression in rule.expressions):
                if failed is not None:
                    found.setdefault(rule.tag, []).append(_generated([failed.folded]))
        if not found or not table.num_rows:
            return dict.fromkeys(found, 0)
        self._refuse_missing(table)
        any_of = {tag: reduce(or_, (each.fill_null(value=False) for each in every)) for tag, every in found.items()}
        counts = _frame(table, self.used).select(every.sum().alias(tag) for tag, every in any_of.items())
        return dict(zip(counts.columns, map(int, counts.row(0)), strict=True))

    def _refuse_missing(self, table: pa.Table) -> None:
        missing = sorted(self.columns - set(table.column_names))
        if missing:
            raise RefusedError(f"the rules read columns that the table does not have: {', '.join(missing)}")


def _unpacked(column: pl.Series) -> _Bools:
    """One byte per row from Polars' one bit per row, several times as fast as its own to_numpy. NULL is not true."""
    bits = column.rechunk().to_arrow()
    validity, values = bits.buffers()
    raw = np.frombuffer(values, np.uint8)
    if validity is not None and bits.null_count:
        raw = raw & np.frombuffer(validity, np.uint8)[: len(raw)]
    return np.unpackbits(raw, bitorder="little", count=bits.offset + len(bits))[bits.offset :].view(np.bool_)


def _generated(nodes: Sequence[Node]) -> pl.Expr:
    """Whether one of them is true, for a frame whose columns are normalised already; NULL may stand for not."""
    verdict = reduce(or_, (to_polars(node, _read_as_is) for node in nodes))
    return as_column(verdict) if any(map(_may_be_short, nodes)) else verdict


def _may_be_short(node: Node) -> bool:
    """Whether Polars may give one row for all: of a literal, and of a choice between literals."""
    if isinstance(node, ir.Case | ir.Truth | ir.Nothing):
        return True
    return any(map(_may_be_short, ir.children(node)))


def _read_as_is(ref: Ref) -> pl.Expr:
    return pl.col(ref.name)


def _frame(table: pa.Table, used: Sequence[Ref]) -> pl.DataFrame:
    """The columns the rules read, each normalised once for all of them.

    A column of doubles without a NaN, as every column is that met its contract, is taken as it is.
    """
    if not used:
        return pl.DataFrame({"": pl.repeat(0, table.num_rows, eager=True)})
    raw: Any = pl.from_arrow(table.select(sorted({ref.column for ref in used})))
    doubles = [
        ref.name for ref in used if ref.type is ColumnType.FLOAT64 and not ref.field and raw.schema[ref.name] == pl.Float64
    ]
    found = raw.select(pl.col(doubles).is_nan().any()).row(0) if doubles else ()
    plain = {name for name, has_nan in zip(doubles, found, strict=True) if not has_nan}
    frame: pl.DataFrame = raw.select(pl.col(ref.name) if ref.name in plain else normalised(ref).alias(ref.name) for ref in used)
    return frame


def lists_of(rules: Sequence[CompiledRule], hits: Sequence[_Bools], rows: int) -> TagLists:
    """The tags of each row and what gave each, coded, from one bool column per rule."""
    offsets, codes = assemble(hits, rows)
    return coded_list(offsets, codes, [rule.tag for rule in rules]), coded_list(offsets, codes, [rule.policy for rule in rules])


def coded_list(offsets: _Counts, codes: _Counts, words: Sequence[str]) -> pa.ListArray:
    """Lists of dictionary-coded text: `codes` are places in `words`, which may repeat."""
    unique = {word: place for place, word in enumerate(dict.fromkeys(words))}
    if len(unique) < len(words):
        codes = np.array([unique[word] for word in words], np.int32)[codes]
    values = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(list(unique), pa.string()))
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def in_words(coded: TagLists) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Coded lists as lists of text."""
    tags, sources = (
        pa.chunked_array([pa.ListArray.from_arrays(each.offsets, each.values.dictionary_decode())]) for each in coded
    )
    return tags, sources


def assemble(hits: Sequence[_Bools], rows: int) -> tuple[_Counts, _Counts]:
    """From one bool column per rule to list offsets and, row by row, the indexes of the rules that hit.

    Work is one pass over the bools to count and one over the hits to place: no sort, no row loop.
    """
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(_hits_per_row(hits, rows), out=offsets[1:])
    if offsets[-1] > np.iinfo(np.int32).max:
        raise RefusedError(f"{offsets[-1]:,} tags in one table; tag it in smaller pieces")
    codes = np.empty(int(offsets[-1]), np.int32)
    for start in range(0, rows, _BLOCK_ROWS):
        end = min(start + _BLOCK_ROWS, rows)
        cursors = offsets[start:end].copy()
        for index, hit in enumerate(hits):
            found = np.flatnonzero(hit[start:end])
            codes[cursors[found]] = index
            cursors[found] += 1
    return offsets.astype(np.int32), codes


def _hits_per_row(hits: Sequence[_Bools], rows: int) -> _Counts:
    """Added up in bytes, as far as a byte counts: several times as fast as in words."""
    counts = np.zeros(rows, np.int32)
    for start in range(0, len(hits), _BYTE_COUNTS):
        some = np.zeros(rows, np.uint8)
        for hit in hits[start : start + _BYTE_COUNTS]:
            some += hit.view(np.uint8)
        counts += some
    return counts


class Judge(Protocol):
    """Rules for the rows of one contract."""

    @property
    def contract(self) -> Contract:
        """Of the rows."""
        ...

    @property
    def rules(self) -> tuple[CompiledRule, ...]:
        """The rules, in the order of the verdicts."""
        ...

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the rules read."""
        ...

    def verdicts(self, table: pa.Table) -> Sequence[npt.NDArray[np.bool_]]:
        """For each rule, whether it is true for each row."""
        ...
