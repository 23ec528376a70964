"""Parse an expression, and refuse it by size, nesting, and every node or argument that is not on the list."""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import sqlglot
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.parser import Parser
from sqlglot.tokens import Token, TokenType

from pipelines.errors import ExpressionError
from schemas.policy import MAX_EXPRESSION_CHARS

MAX_NODES = 300
MAX_NESTING = 40
MAX_LITERAL_CHARS = 256
MAX_POLYGON_CHARS = 2_500
MAX_LIKE_PERCENTS = 3
PREFIX = "SELECT "
_PREFIX_TOKENS = frozenset({TokenType.NOT, TokenType.DASH, TokenType.PLUS, TokenType.TILDE})
_OPENING = frozenset({TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE, TokenType.CASE})
_CLOSING = frozenset({TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE, TokenType.END})

# Node class -> the arguments it may carry. sqlglot hides meaning in extra arguments (NOT LIKE is Like(negate=True)), so
# an argument that is not listed here refuses the expression, as an unlisted class does.
_BINARY = frozenset({"this", "expression"})
ALLOWED: dict[type[exp.Expression], frozenset[str]] = {
    exp.Column: frozenset({"this", "table"}),
    exp.Identifier: frozenset({"this", "quoted"}),
    exp.Literal: frozenset({"this", "is_string"}),
    exp.Boolean: frozenset({"this"}),
    exp.Null: frozenset(),
    exp.Paren: frozenset({"this"}),
    exp.Not: frozenset({"this"}),
    exp.Neg: frozenset({"this"}),
    exp.Between: frozenset({"this", "low", "high"}),
    exp.In: frozenset({"this", "expressions"}),
    exp.Like: frozenset({"this", "expression", "negate"}),
    exp.Case: frozenset({"this", "ifs", "default"}),
    exp.If: frozenset({"this", "true"}),
    exp.Anonymous: frozenset({"this", "expressions"}),
    **dict.fromkeys((exp.And, exp.Or, exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.Is), _BINARY),
    **dict.fromkeys((exp.Add, exp.Sub, exp.Mul), _BINARY),
    exp.Div: frozenset({"this", "expression", "typed", "safe"}),
}


class _Grammar(Parser):
    """The grammar, without functions that have a syntax of their own (CASE aside): the language lists its functions itself."""

    FUNCTIONS: ClassVar = {}
    FUNCTION_PARSERS: ClassVar = {}
    NO_PAREN_FUNCTIONS: ClassVar = {}
    NO_PAREN_FUNCTION_PARSERS: ClassVar = {"CASE": Parser.NO_PAREN_FUNCTION_PARSERS["CASE"]}


class _Language(Dialect):
    Parser = _Grammar


def parse_bounded(text: str) -> exp.Expression:
    """The syntax tree of one expression, of listed nodes only, within all bounds.

    Raises:
        ExpressionError: not one expression of the language; the message shows where.
    """
    if not 0 < len(text) <= MAX_EXPRESSION_CHARS:
        raise ExpressionError(f"an expression must have 1..{MAX_EXPRESSION_CHARS} characters, not {len(text)}")
    if any(ord(character) < 32 and character not in "\t\r\n" for character in text):
        raise ExpressionError("an expression must not hold control characters")
    source = PREFIX + text
    try:
        _check_nesting(sqlglot.tokenize(source))
        statements = sqlglot.parse(source, dialect=_Language)
    except SqlglotError as error:
        raise ExpressionError(_syntax_message(error)) from error
    except (RecursionError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        # The parser is not ours; whatever it stumbles over is not an expression.
        raise ExpressionError(f"not an expression: the parser gave up ({type(error).__name__})") from error
    tree = _only_expression(statements)
    _check_nodes(tree)
    return tree


def position(node: exp.Expression) -> str:
    """Return the place of the node in the text, as ' at line l, column c', counted from 1."""
    found = [meta for below in node.walk() if (meta := below.meta).get("start") is not None and meta.get("line")]
    if not found:
        return ""
    first = min(found, key=lambda meta: int(meta["start"]))
    line = int(first["line"])
    return _place(line, int(first["col"]) - (int(first["end"]) - int(first["start"])))


def _place(line: int, column: int) -> str:
    """Words for a place: sqlglot counts the columns of the first line with our prefix."""
    return f" at line {line}, column {max(column - (len(PREFIX) if line == 1 else 0), 1)}"


def _check_nesting(tokens: list[Token]) -> None:
    depth = run = 0
    for token in tokens:
        depth += (token.token_type in _OPENING) - (token.token_type in _CLOSING)
        run = run + 1 if token.token_type in _PREFIX_TOKENS else 0
        if depth + run > MAX_NESTING:
            raise ExpressionError(f"nested deeper than {MAX_NESTING} levels{_place(token.line, token.col)}")


def _only_expression(statements: Sequence[exp.Expr | None]) -> exp.Expression:
    if len(statements) != 1 or not isinstance(statements[0], exp.Select):
        raise ExpressionError("write one expression, not a statement; there is no ';' in the language")
    select = statements[0]
    extra = [name for name, value in select.args.items() if value and name not in ("expressions", "kind")]
    if extra or select.args.get("kind") or len(select.expressions) != 1:
        raise ExpressionError(f"write one expression; a query's clauses ({', '.join(extra) or 'a list'}) are not in the language")
    tree: exp.Expression = select.expressions[0]
    return tree


def _levels(tree: exp.Expression) -> Iterator[tuple[exp.Expression, int]]:
    """Every node with its depth; a chain of AND or of OR counts as one level, as it is flattened later."""
    waiting = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        yield node, depth
        for below in node.iter_expressions():
            flat = isinstance(node, exp.Paren) or (type(below) is type(node) and isinstance(node, exp.And | exp.Or))
            waiting.append((below, depth + (not flat)))


def _check_nodes(tree: exp.Expression) -> None:
    for count, (node, depth) in enumerate(_levels(tree), start=1):
        if count > MAX_NODES:
            raise ExpressionError(f"more than {MAX_NODES} parts; split the rule in two")
        if depth > MAX_NESTING:
            raise ExpressionError(f"nested deeper than {MAX_NESTING} levels{position(node)}")
        _check_node(node)


def _check_node(node: exp.Expression) -> None:
    allowed = ALLOWED.get(type(node))
    if allowed is None:
        raise ExpressionError(f"{_name(node)} is not in the language{position(node)}; see docs/expressions.md")
    for name, value in node.args.items():
        if value not in (None, False, []) and name not in allowed:
            raise ExpressionError(f"{_name(node)} with {name!r} is not in the language{position(node)}; see docs/expressions.md")
    if isinstance(node, exp.Literal):
        most = MAX_POLYGON_CHARS if str(node.this).startswith("POLYGON") else MAX_LITERAL_CHARS
        if len(str(node.this)) > most:
            raise ExpressionError(f"a literal longer than {most} characters{position(node)}")


def _name(node: exp.Expression) -> str:
    return f"{type(node).__name__.upper()}"


def _syntax_message(error: SqlglotError) -> str:
    details = getattr(error, "errors", None)
    if not details:
        return f"not an expression: {str(error).splitlines()[0][:200]}"
    first = details[0]
    near = str(first.get("highlight") or "")[:40]
    line, column = int(first.get("line") or 1), int(first.get("col") or 0)
    where = f" near {near!r}" if near else ""
    what = str(first.get("description") or "").rstrip(".")
    return f"not an expression: {what}{where}{_place(line, column - max(len(near) - 1, 0))}"
