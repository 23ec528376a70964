"""Evaluates edge rules over columns of samples, in an sqlite3 database in memory that can do nothing else.

Four guards stand between a rule and the device: the rule's text is checked word by word (`SqlExpression`), the authorizer
lets it read one table and call the language's functions, SQLite's own limits are lowered, and a count of the engine's
steps ends what runs too long. A rule that breaks a guard is suspended with a reason and the others go on.
"""

import json
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TypeAlias

from catchment.rules.functions import COUNT_ITEMS, FUNCTION_NAMES, register_functions
from catchment.rules.rule import SqlExpression, decode_edge_rule
from schemas.contract import ColumnType
from schemas.errors import EdgeRuleError

Item: TypeAlias = dict[str, "str | int | float | bool | bytes | None"]
Value: TypeAlias = str | int | float | bool | bytes | list[str | None] | list[int | float | None] | list[Item | None] | None
RuleResults: TypeAlias = list[bool | None]

_TABLE = "samples"  # its key is `_row`: no contract's column begins with a line
_STEP = 1_000  # engine instructions between two looks at the budget
_NAN = float("nan")
_NOTHING: frozenset[type] = frozenset()
_INTEGERS: frozenset[type] = frozenset({int, type(None)})
_NUMBERS: frozenset[type] = frozenset({int, float, type(None)})
_TEXTS: frozenset[type] = frozenset({str, type(None)})
_ITEMS: dict[ColumnType, frozenset[type]] = {
    ColumnType.LIST_STRING: _TEXTS,
    ColumnType.LIST_INT32: _INTEGERS,
    ColumnType.LIST_INT64: _INTEGERS,
    ColumnType.LIST_FLOAT32: _NUMBERS,
    ColumnType.LIST_FLOAT64: _NUMBERS,
    ColumnType.VECTOR_FLOAT32: _NUMBERS,
    ColumnType.VECTOR_FLOAT64: _NUMBERS,
    ColumnType.LIST_STRUCT: frozenset({dict, type(None)}),
}
_ACCEPTED: dict[ColumnType, frozenset[type]] = {
    ColumnType.STRING: _TEXTS,
    ColumnType.BOOL: frozenset({bool, type(None)}),
    ColumnType.INT32: _INTEGERS,
    ColumnType.INT64: _INTEGERS,
    ColumnType.FLOAT32: _NUMBERS,
    ColumnType.FLOAT64: _NUMBERS,
    ColumnType.TIMESTAMP: _INTEGERS,
    ColumnType.BINARY: frozenset({bytes, type(None)}),
    **dict.fromkeys(_ITEMS, frozenset({list, type(None)})),
}


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Limits of a rule: engine instructions per row, bytes of one value, objects of one list, and rules in one evaluator."""

    max_steps_per_row: int = 20_000
    max_items: int = 10_000
    max_value_bytes: int = 1024 * 1024
    max_rules: int = 1_000


def evaluate(columns: Mapping[str, Sequence[Value]], rules: Sequence[SqlExpression], rows: int) -> list[RuleResults]:
    """The verdicts of each rule for `rows` rows. Build an `EdgeEvaluator` instead where the same rules come again.

    Raises:
        EdgeRuleError: rules read one column as two types, or a column's values are not of its type.
    """
    return EdgeEvaluator(rules).evaluate(columns, rows)


class EdgeEvaluator:
    """Compiled rules, ready for batch after batch. Not for use from two threads at once.

    Args:
        rules: what to evaluate.
        limits: what they may cost.

    Raises:
        EdgeRuleError: there are too many rules, or they read one column as two types.
    """

    def __init__(self, rules: Sequence[SqlExpression], limits: EdgeLimits | None = None) -> None:
        self.limits = limits or EdgeLimits()
        if len(rules) > self.limits.max_rules:
            raise EdgeRuleError(f"{len(rules)} rules are above the limit of {self.limits.max_rules}")
        self.rules = tuple(rules)
        self.suspended: dict[int, str] = {}
        self.columns = _joined_columns(rules)
        self._steps_left = 0
        self._connection = _guarded(self.columns, self.limits.max_value_bytes)
        self._connection.set_progress_handler(self._is_over_budget, _STEP)
        self._of_items: dict[str, EdgeEvaluator] = {}
        self._connection.create_function(COUNT_ITEMS, 2, self._count_items, deterministic=True)
        for index, rule in enumerate(self.rules):
            self._check(index, rule)

    def evaluate(self, columns: Mapping[str, Sequence[Value]], rows: int) -> list[RuleResults]:
        """For each rule a verdict per row: True, False, or None for unknown. A suspended rule's are all None.

        Args:
            columns: values per column; times as microseconds since 1970 in UTC. A column that is absent is null.
            rows: how many values each column has.

        Raises:
            EdgeRuleError: a column has another length, or a value that is not of its type.
        """
        if rows and self.rules:
            self._load(columns, rows)
        active = [index for index in range(len(self.rules)) if index not in self.suspended]
        results: list[RuleResults] = [[None] * rows for _ in self.rules]
        if not rows or not active:
            return results
        try:
            for index, found in zip(active, self._select(active, rows), strict=True):
                results[index] = found
        except _EvaluationError:
            for index in active:  # one by one, to learn whose fault it is
                try:
                    (results[index],) = self._select([index], rows)
                except _EvaluationError as error:
                    self.suspended[index] = str(error)
        return results

    def _load(self, columns: Mapping[str, Sequence[Value]], rows: int) -> None:
        values = [_bound(name, type_, columns.get(name), rows) for name, type_ in self.columns.items()]
        marks = ", ".join("?" * (len(values) + 1))
        self._steps_left = rows * self.limits.max_steps_per_row
        try:
            self._connection.execute(f"DELETE FROM {_TABLE}")  # noqa: S608 - a constant
            self._connection.execute("BEGIN")
            self._connection.executemany(f"INSERT INTO {_TABLE} VALUES ({marks})", zip(range(rows), *values, strict=False))  # noqa: S608
            self._connection.execute("COMMIT")
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise EdgeRuleError(f"the samples cannot be evaluated: {error}") from error

    def _select(self, indexes: Sequence[int], rows: int) -> list[RuleResults]:
        rules = [self.rules[index] for index in indexes]
        parameters = [value for rule in rules for value in rule.parameters]
        self._steps_left = rows * len(rules) * self.limits.max_steps_per_row
        try:
            found = self._connection.execute(_query(rules), parameters).fetchall()
        except (sqlite3.Error, MemoryError) as error:
            reason = "took more than its budget" if self._steps_left <= 0 else str(error)
            raise _EvaluationError(f"the rule {reason}") from error
        if len(found) != rows:
            raise _EvaluationError(f"the rule gave {len(found)} verdicts for {rows} rows")
        return [[None if value is None else value != 0 for value in column] for column in zip(*found, strict=True)]

    def _count_items(self, items: str | None, text: str) -> float | None:
        """For how many objects of a list the rule in `text` is true: it is checked as every rule, and runs next to this one."""
        if items is None:
            return None
        if text not in self._of_items:
            inner = EdgeEvaluator([decode_edge_rule(text.encode())], self.limits)
            if inner.suspended:
                raise EdgeRuleError(inner.suspended[0])
            self._of_items[text] = inner
        inner = self._of_items[text]
        objects = [item or {} for item in json.loads(items)]
        if len(objects) > self.limits.max_items:
            raise EdgeRuleError(f"a list of {len(objects):,} objects is above the limit of {self.limits.max_items:,}")
        self._steps_left -= _STEP * (1 + len(objects) // 10)
        columns = {name: [item.get(name) for item in objects] for name in inner.columns}
        (met,) = inner.evaluate(columns, len(objects))
        if inner.suspended:
            raise EdgeRuleError(inner.suspended[0])
        return float(met.count(True))

    def _check(self, index: int, rule: SqlExpression) -> None:
        try:
            self._connection.execute(f"EXPLAIN {_query([rule])}", rule.parameters)
        except sqlite3.Error as error:
            self.suspended[index] = f"the rule is not of this engine: {error}"

    def _is_over_budget(self) -> int:
        self._steps_left -= _STEP
        return int(self._steps_left <= 0)


class _EvaluationError(Exception):
    """A statement failed; which of its rules is to blame is not known yet."""


def _query(rules: Iterable[SqlExpression]) -> str:
    return f"SELECT {', '.join(f'({rule.sql})' for rule in rules)} FROM {_TABLE} ORDER BY _row"  # noqa: S608 - SqlExpression's text is checked


def _joined_columns(rules: Iterable[SqlExpression]) -> dict[str, ColumnType]:
    found: dict[str, ColumnType] = {}
    for rule in rules:
        for name, type_ in rule.columns.items():
            if found.setdefault(name, type_) is not type_:
                raise EdgeRuleError(f"rules read column {name} as {found[name]} and as {type_}")
    return found


def _bound(name: str, type_: ColumnType, values: Sequence[Value] | None, rows: int) -> Iterable[Value]:
    """The values as the engine takes them; a float32 is what the wire will make of it."""
    if values is None:
        return repeat(None, rows)
    if len(values) != rows or not set(map(type, values)) <= _ACCEPTED.get(type_, _NOTHING):
        raise EdgeRuleError(f"column {name} needs {rows} values of type {type_}")
    if type_ in _ITEMS:
        return [_list_text(name, type_, value) for value in values]
    if type_ is ColumnType.FLOAT32:
        return array("f", [value if isinstance(value, int | float) else _NAN for value in values])
    return values


def _list_text(name: str, type_: ColumnType, value: Value) -> str | None:
    """A list as the JSON text that the language's functions of lists read; a NaN in it is null."""
    if not isinstance(value, list):
        return None
    items: Iterable[object] = value
    if not set(map(type, value)) <= _ITEMS[type_]:
        raise EdgeRuleError(f"column {name} needs items of type {type_}")
    if type_ is ColumnType.LIST_STRUCT:
        return json.dumps([_plain_item(item) for item in value])
    if type_ in (ColumnType.LIST_FLOAT32, ColumnType.VECTOR_FLOAT32):
        items = array("f", [item if isinstance(item, int | float) else _NAN for item in value])
    if type_ is not ColumnType.LIST_STRING:
        items = [float(item) if isinstance(item, int | float) and item == item else None for item in items]  # noqa: PLR0124 - NaN
    return json.dumps(list(items))


def _plain_item(item: object) -> dict[str, object] | None:
    """An object without its bytes and lists, which no condition reads."""
    return {key: cell for key, cell in item.items() if not isinstance(cell, bytes | list)} if isinstance(item, dict) else None


def _guarded(columns: Iterable[str], max_value_bytes: int) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    register_functions(connection)
    named = "".join(f', "{name}"' for name in columns)
    connection.execute(f"CREATE TABLE {_TABLE} (_row INTEGER PRIMARY KEY{named})")
    for limit, value in (
        (sqlite3.SQLITE_LIMIT_LENGTH, max_value_bytes),
        (sqlite3.SQLITE_LIMIT_ATTACHED, 0),
        (sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 1),
        (sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0),
    ):
        connection.setlimit(limit, value)
    connection.set_authorizer(_authorizer())
    return connection


def _authorizer() -> Callable[[int, str | None, str | None, str | None, str | None], int]:
    """Selecting from, filling and emptying the one table, and the language's functions; nothing else."""
    tables = frozenset({sqlite3.SQLITE_READ, sqlite3.SQLITE_INSERT, sqlite3.SQLITE_DELETE})

    def decide(action: int, first: str | None, second: str | None, _database: str | None, _source: str | None) -> int:
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_TRANSACTION) or (action in tables and first == _TABLE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and second in FUNCTION_NAMES:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    return decide
