"""One compiled expression, as the core hands it to a device: generated SQL, its literals, and the columns it reads.

The text comes over a wire, so it is checked word by word before an engine sees it: only what the core's generator
writes is let through. There is no name of a table in it, no literal, no comment and no word that starts a query.
"""

import re
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from catchment.rules.functions import FUNCTION_NAMES
from schemas.contract import ColumnType
from schemas.errors import EdgeRuleError

Parameter: TypeAlias = float | int | str | None
MAX_SQL_CHARS = 65_536
MAX_PARAMETERS = 2_000
MAX_PARAMETER_CHARS = 16_384
MAX_COLUMNS = 200
_TOKEN = re.compile(
    r"""\s+
    | "(?P<column>[a-z][a-z0-9_]{0,62})"
    | (?P<function>[a-z][a-z0-9_]*)(?=\()
    | (?P<mark>\?)
    | (?:AND|OR|NOT|IN|IS|NULL|CASE|WHEN|THEN|ELSE|END|CAST|AS|REAL)\b
    | <=|>=|<>|[=<>+*/-]
    | (?P<bracket>[(),])""",
    re.VERBOSE,
)


class SqlExpression(msgspec.Struct, frozen=True):
    """An expression for a device's engine. `sql` gives 1, 0 or NULL; each `?` in it stands for one of `parameters`, in order.

    Raises:
        EdgeRuleError: the text holds anything that the generator does not write, or the parts do not fit together.
    """

    sql: str
    parameters: tuple[Parameter, ...]
    columns: dict[str, ColumnType]

    def __post_init__(self) -> None:
        if not 0 < len(self.sql) <= MAX_SQL_CHARS or "--" in self.sql or "/*" in self.sql:
            raise EdgeRuleError(f"an edge rule needs 1..{MAX_SQL_CHARS} characters of generated SQL without a comment")
        if len(self.parameters) > MAX_PARAMETERS or len(self.columns) > MAX_COLUMNS:
            raise EdgeRuleError(f"an edge rule has at most {MAX_PARAMETERS} parameters and {MAX_COLUMNS} columns")
        if any(isinstance(value, str) and len(value) > MAX_PARAMETER_CHARS for value in self.parameters):
            raise EdgeRuleError(f"a parameter of an edge rule is longer than {MAX_PARAMETER_CHARS} characters")
        read, marks = _read(self.sql)
        if read != set(self.columns):
            raise EdgeRuleError(f"the SQL reads {sorted(read)}, the rule names {sorted(self.columns)}")
        if marks != len(self.parameters):
            raise EdgeRuleError(f"the SQL has {marks} places for {len(self.parameters)} parameters")


def columns_read(sql: str) -> frozenset[str]:
    """The columns that a rule's text reads.

    Raises:
        EdgeRuleError: it holds what the generator does not write.
    """
    return frozenset(_read(sql)[0])


def decode_edge_rule(body: bytes) -> SqlExpression:
    """Read a rule from its JSON.

    Raises:
        EdgeRuleError: not an edge rule.
    """
    try:
        return msgspec.json.decode(body, type=SqlExpression)
    except msgspec.MsgspecError as error:
        raise EdgeRuleError(f"not an edge rule: {error}") from error


def _read(sql: str) -> tuple[set[str], int]:
    """The columns that the text reads and how many parameters it asks for."""
    columns: set[str] = set()
    marks = depth = 0
    for token in _tokens(sql):
        if token["column"]:
            columns.add(token["column"])
        elif token["function"] and token["function"] not in FUNCTION_NAMES:
            raise EdgeRuleError(f"{token['function'][:60]}() is not a function of the language")
        marks += token["mark"] is not None
        depth += {"(": 1, ")": -1}.get(token["bracket"] or "", 0)
        if depth < 0 or (token["bracket"] == "," and depth == 0):
            raise EdgeRuleError("an edge rule is one expression; its brackets do not pair")
    if depth:
        raise EdgeRuleError("an edge rule is one expression; its brackets do not pair")
    return columns, marks


def _tokens(sql: str) -> Iterator[re.Match[str]]:
    position = 0
    while position < len(sql):
        token = _TOKEN.match(sql, position)
        if token is None:
            raise EdgeRuleError(f"{sql[position : position + 20]!r} is not of the generated SQL, at character {position + 1}")
        yield token
        position = token.end()
