"""Runs a policy's examples: does each row get exactly the tags it names, and which rules did no example reach?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.contracts.arrow import ARROW_TYPES, arrow_type
from pipelines.contracts.json_rows import JsonCellError, cell_reader, column_reader
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError, NotFoundError, RefusedError
from pipelines.expressions.expression import ROW_COLUMNS, Expression
from pipelines.expressions.ir import LABEL
from pipelines.expressions.render import branches, render
from pipelines.inspect.columns import inspected
from pipelines.inspect.run import check_step
from pipelines.policy.engine import Tagger
from schemas.contract import ColumnType, Contract
from schemas.policy import Example, Policy


@dataclass(frozen=True, slots=True)
class TrialFailure:
    """An example whose row got other tags."""

    example: int
    stream: str
    wanted: tuple[str, ...]
    found: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyTrial:
    """The result of a policy's examples.

    `unfired` are the tags that no example ever got; `untrue` the alternatives (sides of an OR, conditions of a CASE) that
    no example made true, as `tag: text`. Both are rules, or parts of rules, without a test.
    """

    policy: Policy
    failures: tuple[TrialFailure, ...]
    unfired: tuple[str, ...]
    untrue: tuple[str, ...] = ()

    @property
    def is_passed(self) -> bool:
        """Whether every example got its tags."""
        return not self.failures


def compile_policy(policy: Policy, contracts: ContractSet) -> tuple[Tagger, ...]:
    """The policy's rules for each of its streams.

    Raises:
        NotFoundError: there is no contract for one of the streams.
        ExpressionError: a rule does not compile.
    """
    return tuple(Tagger.compile([policy], _contract(policy, stream, contracts)) for stream in policy.streams)


def try_policy(policy: Policy, contracts: ContractSet) -> PolicyTrial:
    """Run the examples against the newest contract of each stream that has the columns they name.

    Raises:
        NotFoundError: there is no contract for one of the streams.
        ExpressionError: a rule does not compile.
        ConfigError: an example names a column that no stream has, or gives it a value of another type.
    """
    failures: list[TrialFailure] = []
    fired: set[str] = set()
    alternatives: dict[str, bool] = {}
    for tagger in compile_policy(policy, contracts):
        columns = _readers(tagger)
        fitting = [(index, each) for index, each in enumerate(policy.examples) if each.row.keys() <= columns.keys()]
        if not fitting:
            continue
        table = _table(policy, [each for _, each in fitting], columns)
        for text, is_true in _alternatives(tagger, table).items():
            alternatives[text] = alternatives.get(text, False) or is_true
        for (index, each), found in zip(fitting, tagger.tag(table)[0].to_pylist(), strict=True):
            fired.update(found)
            if sorted(set(found)) != sorted(set(each.tags)):
                failures.append(TrialFailure(index, tagger.contract.name, each.tags, tuple(found)))
    _refuse_strangers(policy, contracts)
    unfired = tuple(tag for tag in dict.fromkeys(rule.tag for rule in policy.rules) if tag not in fired)
    untrue = tuple(text for text, is_true in alternatives.items() if not is_true)
    return PolicyTrial(policy, tuple(failures), unfired, untrue)


def _alternatives(tagger: Tagger, table: pa.Table) -> dict[str, bool]:
    """Every alternative of every rule, and whether a row made it true."""
    raw: Any = pl.from_arrow(table)
    found: dict[str, bool] = {}
    for rule in tagger.rules:
        for expression in rule.expressions:
            for branch in branches(expression.node):
                hits = raw.select(Expression("", branch).to_polars().alias("hit")).get_column("hit")
                found[f"{rule.tag}: {render(branch)}"] = bool(hits.any())
    return found


def require_sound(policy: Policy, contracts: ContractSet, folder: Path) -> None:
    """Compile a policy, start its inspectors and run its examples: what it must pass before it is put in force.

    Args:
        policy: the policy.
        contracts: the contracts.
        folder: where the files lie that its steps name.

    Raises:
        NotFoundError: there is no contract for one of the streams.
        ExpressionError: a rule does not compile.
        RefusedError: an example gets other tags than it names, or an inspector does not start.
    """
    for step in policy.inspect:
        check_step(step, folder / step.file if step.file else None)
    trial = try_policy(policy, contracts)
    if trial.failures:
        first = trial.failures[0]
        raise RefusedError(
            f"policy {policy.id}: example {first.example + 1} on {first.stream} wants {', '.join(first.wanted) or 'no tags'} and "
            f"gets {', '.join(first.found) or 'no tags'}; correct the rule or the example"
        )


def _contract(policy: Policy, stream: str, contracts: ContractSet) -> Contract:
    contract = contracts.get(stream, None)
    if contract is None:
        names = ", ".join(sorted({each.name for each in (*contracts.all(), *contracts.derived())}))
        raise NotFoundError(f"policy {policy.id}: there is no contract for stream {stream!r}; there are {names}")
    return inspected(contract, [policy])


def _refuse_strangers(policy: Policy, contracts: ContractSet) -> None:
    known = [_readers(tagger).keys() for tagger in compile_policy(policy, contracts)]
    for index, example in enumerate(policy.examples):
        if not any(example.row.keys() <= columns for columns in known):
            raise ConfigError(f"policy {policy.id}, example {index + 1}: no stream of it has all of {', '.join(example.row)}")


def _readers(tagger: Tagger) -> dict[str, tuple[Callable[[Any], Any], pa.DataType]]:
    """For each column that an example may name how its value is read, and its type; `label:defect:latest` is one too."""
    own = {column.name: (column_reader(column), arrow_type(column)) for column in tagger.contract.columns}
    rows = {name: (cell_reader(type_), ARROW_TYPES[type_]) for name, type_ in ROW_COLUMNS.items()}
    labels = {name: (cell_reader(ColumnType.STRING), pa.string()) for name in tagger.columns if name.startswith(LABEL)}
    return own | rows | labels


def _table(policy: Policy, examples: list[Example], columns: dict[str, tuple[Callable[[Any], Any], pa.DataType]]) -> pa.Table:
    """One row per example; columns an example does not name are null."""
    arrays: dict[str, Any] = {}
    for name, (read, type_) in columns.items():
        try:
            values = [None if (value := each.row.get(name)) is None else read(value) for each in examples]
        except JsonCellError as error:
            raise ConfigError(f"policy {policy.id}, an example's {name}: {error}") from error
        arrays[name] = pa.array(values, type_)
    return pa.table(arrays)
