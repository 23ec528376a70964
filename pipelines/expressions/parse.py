"""From the text of an expression to our own tree: bounded, checked by name and kind, every message about the rule's own text."""

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import sqlglot
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.parser import Parser
from sqlglot.tokens import Token, TokenType

from pipelines.errors import ExpressionError
from pipelines.expressions import ir
from pipelines.expressions.functions import FUNCTIONS, ArgumentError, Function
from pipelines.expressions.ir import Node, ValueKind
from schemas.contract import ColumnType
from schemas.envelope import parse_time
from schemas.errors import EnvelopeError
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
_COMPARISONS: dict[type[exp.Expression], str] = {
    exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
}  # fmt: skip
_ARITHMETIC: dict[type[exp.Expression], str] = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/"}
LABEL_RULES = ("latest", "majority", "unanimous")  # how several labels of a row become one; the first is what counts unsaid
_ITEM = "item."  # how a condition over the objects of a list names their fields
_OVER_ITEMS = {name: f"{name}(boxes, item.score > 0.5)" for name in ("any_item", "all_items", "count_items")}
_TASK = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_COMPARABLE = frozenset({ValueKind.NUMBER, ValueKind.TEXT, ValueKind.BOOL, ValueKind.TIME})


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


@dataclass(frozen=True, slots=True)
class Lowering:
    """Lowers trees that `parse_bounded` has passed, against a set of columns."""

    columns: Mapping[str, ColumnType]
    allow_tags: bool
    allow_labels: bool = False

    def lower(self, tree: exp.Expression) -> Node:
        """Our node for this tree.

        Raises:
            ExpressionError: an unknown column or function, or kinds that do not fit.
        """
        kind = type(tree)
        if kind in _COMPARISONS:
            return _comparison(_COMPARISONS[kind], self.lower(tree.this), self.lower(tree.expression), tree)
        if kind in _ARITHMETIC:
            return ir.Arithmetic(
                _ARITHMETIC[kind], self._of(tree.this, ValueKind.NUMBER), self._of(tree.expression, ValueKind.NUMBER)
            )
        handler = self._HANDLERS.get(kind)
        if handler is None:
            raise ExpressionError(f"{kind.__name__} cannot stand here{position(tree)}")
        return handler(self, tree)

    def _of(self, tree: exp.Expression, wanted: ValueKind | tuple[ValueKind, ...]) -> Node:
        node = self.lower(tree)
        kinds = (wanted,) if isinstance(wanted, ValueKind) else wanted
        if ValueKind.TIME in kinds and isinstance(node, ir.Text):
            return _moment(node, tree)
        if node.kind not in kinds:
            hint = "; compare with IS NULL, or give it a value with coalesce()" if node.kind is ValueKind.NULL else ""
            raise ExpressionError(f"{_show(tree)} is {node.kind}, but {' or '.join(kinds)} is needed{position(tree)}{hint}")
        return node

    def _column(self, tree: exp.Expression) -> Node:
        name = f"{tree.args['table'].name}.{tree.name}" if tree.args.get("table") else tree.name
        if name in self.columns:
            return ir.Ref(name, self.columns[name])
        close = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(self.columns))}"[:400]
        raise ExpressionError(f"unknown column {name[:80]!r}{position(tree)}; {hint}")

    def _literal(self, tree: exp.Expression) -> Node:
        if tree.is_string:
            return ir.Text(str(tree.this))
        try:
            value = float(tree.this)
        except ValueError as error:
            raise ExpressionError(f"{_show(tree)} is not a number{position(tree)}") from error
        if not math.isfinite(value):
            raise ExpressionError(f"{_show(tree)} is too large for a double{position(tree)}")
        return ir.Number(value)

    def _negate(self, tree: exp.Expression) -> Node:
        operand = self._of(tree.this, ValueKind.NUMBER)
        return ir.Number(-operand.value) if isinstance(operand, ir.Number) else ir.Negate(operand)

    def _chain(self, tree: exp.Expression) -> Node:
        """AND or OR: a chain becomes one node, so that its length is not depth."""
        kind = type(tree)
        parts: list[Node] = []
        waiting = [tree]
        while waiting:
            current = waiting.pop()
            if type(current) is kind:
                waiting += [current.expression, current.this]
            else:
                parts.append(self._of(current, ValueKind.BOOL))
        return ir.And(tuple(parts)) if kind is exp.And else ir.Or(tuple(parts))

    def _between(self, tree: exp.Expression) -> Node:
        operand, low, high = (self.lower(tree.args[name]) for name in ("this", "low", "high"))
        return ir.And((_comparison(">=", operand, low, tree), _comparison("<=", operand, high, tree)))

    def _in(self, tree: exp.Expression) -> Node:
        operand = self.lower(tree.this)
        if not tree.expressions:
            raise ExpressionError(f"IN needs a list of literals{position(tree)}")
        values: list[ir.Literal] = []
        for item in tree.expressions:
            operand_, value = _align(operand, self.lower(item), item)
            if not isinstance(value, ir.Number | ir.Text | ir.Moment | ir.Truth):
                raise ExpressionError(f"IN takes literals only, not {_show(item)}{position(item)}")
            if value.kind is not operand_.kind:
                raise ExpressionError(f"cannot compare {operand.kind} with {value.kind}{position(item)}: {_show(item)}")
            values.append(value)
        return ir.Member(operand, tuple(values))

    def _like(self, tree: exp.Expression) -> Node:
        operand = self._of(tree.this, ValueKind.TEXT)
        pattern = tree.expression
        if not (isinstance(pattern, exp.Literal) and pattern.is_string):
            raise ExpressionError(f"LIKE needs a text literal as its pattern{position(tree)}")
        if str(pattern.this).count("%") > MAX_LIKE_PERCENTS:
            raise ExpressionError(f"LIKE takes at most {MAX_LIKE_PERCENTS} '%'{position(pattern)}")
        node = ir.Like(operand, str(pattern.this))
        return ir.Not(node) if tree.args.get("negate") else node

    def _is(self, tree: exp.Expression) -> Node:
        if isinstance(tree.expression, exp.Null):
            return ir.IsNull(self.lower(tree.this))
        if not isinstance(tree.expression, exp.Boolean):
            raise ExpressionError(f"IS is followed by [NOT] NULL, TRUE or FALSE{position(tree)}")
        operand = self._of(tree.this, ValueKind.BOOL)
        return ir.Call("coalesce", (operand if tree.expression.this else ir.Not(operand), ir.Truth(value=False)), ValueKind.BOOL)

    def _case(self, tree: exp.Expression) -> Node:
        subject = None if tree.this is None else self.lower(tree.this)
        conditions: list[Node] = []
        values: list[Node] = []
        for branch in tree.args["ifs"]:
            condition = branch.this
            conditions.append(
                self._of(condition, ValueKind.BOOL)
                if subject is None
                else _comparison("=", subject, self.lower(condition), branch)
            )
            values.append(self.lower(branch.args["true"]))
        default = tree.args.get("default")
        values.append(ir.Nothing() if default is None else self.lower(default))
        unified = _unify(values, tree, "the values of CASE")
        branches = tuple(zip(conditions, unified[:-1], strict=True))
        return ir.Case(branches, unified[-1], unified[-1].kind)

    def _call(self, function: Function, trees: list[exp.Expression], at: exp.Expression) -> Node:
        most = len(function.takes)
        if len(trees) < most - function.optional or (len(trees) > most and not function.variadic):
            wanted = (
                f"{most} or more" if function.variadic else f"{most - function.optional} to {most}" if function.optional else most
            )
            raise ExpressionError(f"{function.name}() takes {wanted} arguments{position(at)}, as in {function.example}")
        args = self._arguments(function, trees, at)
        for index, (arg, tree) in enumerate(zip(args, trees, strict=True)):
            if index in function.literals and not isinstance(arg, ir.Number | ir.Text):
                raise ExpressionError(f"{function.name}() takes a literal here{position(tree)}, as in {function.example}")
        kind = args[0].kind if function.gives is ValueKind.NULL else function.gives
        try:
            return function.build(args) if function.build else ir.Call(function.name, tuple(args), kind)
        except ArgumentError as error:
            raise ExpressionError(f"{function.name}(){position(at)}: {error}; an example is {function.example}") from error

    def _arguments(self, function: Function, trees: list[exp.Expression], at: exp.Expression) -> list[Node]:
        if function.takes[0] is ValueKind.NULL:
            return _unify([self.lower(tree) for tree in trees], at, f"the arguments of {function.name}()")
        wanted = [*function.takes, *[function.takes[-1]] * (len(trees) - len(function.takes))]
        return [self._of(tree, kind) for tree, kind in zip(trees, wanted, strict=False)]

    def _anonymous(self, tree: exp.Expression) -> Node:
        name = str(tree.this)
        function = FUNCTIONS.get(name.lower())
        if function is not None:
            return self._call(function, list(tree.expressions), tree)
        if name.lower() == "has" and self.allow_tags:
            match tree.expressions:
                case [exp.Literal(is_string=True) as tag]:
                    return ir.Has(str(tag.this))
            raise ExpressionError(f"has() takes one text literal{position(tree)}, as in has('night')")
        if name.lower() in _OVER_ITEMS:
            return self._over_items(name.lower(), tree)
        if name.lower() == "label":
            return self._label(tree)
        if name.lower() == "has":
            raise ExpressionError(f"has() asks for a row's tags, which only a training set's selection sees{position(tree)}")
        known = [*FUNCTIONS, *_OVER_ITEMS, *(["has"] if self.allow_tags else [])]
        close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}()?" if close else "see docs/expressions.md"
        raise ExpressionError(f"unknown function {name[:80]!r}{position(tree)}; {hint}")

    def _over_items(self, name: str, tree: exp.Expression) -> Node:
        """any_item, all_items or count_items over the objects of a list; the condition reads `item.field`."""
        if len(tree.expressions) != 2:
            raise ExpressionError(f"{name}() takes a list of objects and a condition{position(tree)}, as in {_OVER_ITEMS[name]}")
        items = self._of(tree.expressions[0], ValueKind.ITEMS)
        if not isinstance(items, ir.Ref):
            raise ExpressionError(f"{name}() takes a column{position(tree)}, as in {_OVER_ITEMS[name]}")
        start = f"{items.name}[]."
        fields = {f"{_ITEM}{key.removeprefix(start)}": type_ for key, type_ in self.columns.items() if key.startswith(start)}
        condition = Lowering(fields, allow_tags=False).lower(tree.expressions[1])
        if condition.kind is not ValueKind.BOOL:
            raise ExpressionError(f"{name}() takes a condition, not {condition.kind}{position(tree)}, as in {_OVER_ITEMS[name]}")
        count = ir.CountItems(items, condition)
        if name == "count_items":
            return count
        if name == "any_item":
            return ir.Compare(">", count, ir.Number(0.0))
        return ir.Compare("=", count, ir.Call("list_length", (items,), ValueKind.NUMBER))

    def _label(self, tree: exp.Expression) -> Node:
        """What people say about the row, as the text of a class."""
        if not self.allow_labels:
            raise ExpressionError(f"label() asks for what people said later, which only a policy's tags read{position(tree)}")
        words = [str(each.this) for each in tree.expressions if isinstance(each, exp.Literal) and each.is_string]
        if len(words) != len(tree.expressions) or not 1 <= len(words) <= 2 or not _TASK.fullmatch(words[0]):
            raise ExpressionError(f"label() takes a task and a rule as texts{position(tree)}: label('defect', 'majority')")
        rule = words[1] if len(words) == 2 else LABEL_RULES[0]
        if rule not in LABEL_RULES:
            raise ExpressionError(f"label(){position(tree)}: no rule {rule[:40]!r}; there are {', '.join(LABEL_RULES)}")
        return ir.label_ref(words[0], rule)

    _HANDLERS: ClassVar[dict[type[exp.Expression], Callable[["Lowering", exp.Expression], Node]]] = {
        exp.Column: _column,
        exp.Literal: _literal,
        exp.Boolean: lambda _, tree: ir.Truth(bool(tree.this)),
        exp.Null: lambda _self, _tree: ir.Nothing(),
        exp.Paren: lambda self, tree: self.lower(tree.this),
        exp.Not: lambda self, tree: ir.Not(self._of(tree.this, ValueKind.BOOL)),
        exp.Neg: _negate,
        exp.And: _chain,
        exp.Or: _chain,
        exp.Between: _between,
        exp.In: _in,
        exp.Like: _like,
        exp.Is: _is,
        exp.Case: _case,
        exp.Anonymous: _anonymous,
    }


def _comparison(op: str, left: Node, right: Node, at: exp.Expression) -> Node:
    left, right = _align(left, right, at)
    if ValueKind.NULL in (left.kind, right.kind):
        raise ExpressionError(f"a comparison with NULL is never true{position(at)}; write IS NULL or IS NOT NULL")
    if left.kind is not right.kind or left.kind not in _COMPARABLE:
        raise ExpressionError(f"cannot compare {left.kind} with {right.kind}{position(at)}: {_show(at)}")
    if left.kind is ValueKind.BOOL and op not in ("=", "<>"):
        raise ExpressionError(f"bool knows only = and <>{position(at)}")
    return ir.Compare(op, left, right)


def _align(left: Node, right: Node, at: exp.Expression) -> tuple[Node, Node]:
    """A text literal next to a time is read as a time."""
    if left.kind is ValueKind.TIME and isinstance(right, ir.Text):
        return left, _moment(right, at)
    if right.kind is ValueKind.TIME and isinstance(left, ir.Text):
        return _moment(left, at), right
    return left, right


def _moment(text: ir.Text, at: exp.Expression) -> ir.Moment:
    try:
        return ir.Moment(parse_time(text.value))
    except EnvelopeError as error:
        raise ExpressionError(f"{error}{position(at)}; write it as '2026-01-31T12:00:00Z'") from error


def _unify(nodes: list[Node], at: exp.Expression, what: str) -> list[Node]:
    """All of one kind; each NULL takes the kind of the others."""
    kinds = sorted({node.kind for node in nodes} - {ValueKind.NULL})
    if len(kinds) != 1:
        raise ExpressionError(f"{what} must be of one kind, not {' and '.join(kinds) or 'all NULL'}{position(at)}")
    return [ir.Nothing(kinds[0]) if isinstance(node, ir.Nothing) else node for node in nodes]


def _show(tree: exp.Expression) -> str:
    return repr(tree.sql(comments=False)[:60])
