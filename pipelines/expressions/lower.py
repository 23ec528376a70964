"""From sqlglot's tree to our own: names resolved, kinds checked, every word of the message about the rule's own text."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from sqlglot import exp

from pipelines.errors import ExpressionError
from pipelines.expressions import ir
from pipelines.expressions.expand import ArgumentError
from pipelines.expressions.functions import FUNCTIONS, Function
from pipelines.expressions.ir import Kind, Node
from pipelines.expressions.parse import MAX_LIKE_PERCENTS, position
from schemas.contract import ColumnType
from schemas.envelope import parse_time
from schemas.errors import EnvelopeError

_COMPARISONS: dict[type[exp.Expression], str] = {
    exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
}  # fmt: skip
_ARITHMETIC: dict[type[exp.Expression], str] = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/"}
LABEL_RULES = ("latest", "majority", "unanimous")  # how several labels of a row become one; the first is what counts unsaid
_ITEM = "item."  # how a condition over the objects of a list names their fields
_OVER_ITEMS = {name: f"{name}(boxes, item.score > 0.5)" for name in ("any_item", "all_items", "count_items")}
_TASK = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_COMPARABLE = frozenset({Kind.NUMBER, Kind.TEXT, Kind.BOOL, Kind.TIME})


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
            return ir.Arithmetic(_ARITHMETIC[kind], self._of(tree.this, Kind.NUMBER), self._of(tree.expression, Kind.NUMBER))
        handler = self._HANDLERS.get(kind)
        if handler is None:
            raise ExpressionError(f"{kind.__name__} cannot stand here{position(tree)}")
        return handler(self, tree)

    def _of(self, tree: exp.Expression, wanted: Kind | tuple[Kind, ...]) -> Node:
        node = self.lower(tree)
        kinds = (wanted,) if isinstance(wanted, Kind) else wanted
        if Kind.TIME in kinds and isinstance(node, ir.Text):
            return _moment(node, tree)
        if node.kind not in kinds:
            hint = "; compare with IS NULL, or give it a value with coalesce()" if node.kind is Kind.NULL else ""
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
        operand = self._of(tree.this, Kind.NUMBER)
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
                parts.append(self._of(current, Kind.BOOL))
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
        operand = self._of(tree.this, Kind.TEXT)
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
        operand = self._of(tree.this, Kind.BOOL)
        return ir.Call("coalesce", (operand if tree.expression.this else ir.Not(operand), ir.Truth(value=False)), Kind.BOOL)

    def _case(self, tree: exp.Expression) -> Node:
        subject = None if tree.this is None else self.lower(tree.this)
        conditions: list[Node] = []
        values: list[Node] = []
        for branch in tree.args["ifs"]:
            condition = branch.this
            conditions.append(
                self._of(condition, Kind.BOOL) if subject is None else _comparison("=", subject, self.lower(condition), branch)
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
        kind = args[0].kind if function.gives is Kind.NULL else function.gives
        try:
            return function.build(args) if function.build else ir.Call(function.name, tuple(args), kind)
        except ArgumentError as error:
            raise ExpressionError(f"{function.name}(){position(at)}: {error}; an example is {function.example}") from error

    def _arguments(self, function: Function, trees: list[exp.Expression], at: exp.Expression) -> list[Node]:
        if function.takes[0] is Kind.NULL:
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
        items = self._of(tree.expressions[0], Kind.ITEMS)
        if not isinstance(items, ir.Ref):
            raise ExpressionError(f"{name}() takes a column{position(tree)}, as in {_OVER_ITEMS[name]}")
        start = f"{items.name}[]."
        fields = {f"{_ITEM}{key.removeprefix(start)}": type_ for key, type_ in self.columns.items() if key.startswith(start)}
        condition = Lowering(fields, allow_tags=False).lower(tree.expressions[1])
        if condition.kind is not Kind.BOOL:
            raise ExpressionError(f"{name}() takes a condition, not {condition.kind}{position(tree)}, as in {_OVER_ITEMS[name]}")
        count = ir.CountItems(items, condition)
        if name == "count_items":
            return count
        if name == "any_item":
            return ir.Compare(">", count, ir.Number(0.0))
        return ir.Compare("=", count, ir.Call("list_length", (items,), Kind.NUMBER))

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
        exp.Not: lambda self, tree: ir.Not(self._of(tree.this, Kind.BOOL)),
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
    if Kind.NULL in (left.kind, right.kind):
        raise ExpressionError(f"a comparison with NULL is never true{position(at)}; write IS NULL or IS NOT NULL")
    if left.kind is not right.kind or left.kind not in _COMPARABLE:
        raise ExpressionError(f"cannot compare {left.kind} with {right.kind}{position(at)}: {_show(at)}")
    if left.kind is Kind.BOOL and op not in ("=", "<>"):
        raise ExpressionError(f"bool knows only = and <>{position(at)}")
    return ir.Compare(op, left, right)


def _align(left: Node, right: Node, at: exp.Expression) -> tuple[Node, Node]:
    """A text literal beside a time is read as a time."""
    if left.kind is Kind.TIME and isinstance(right, ir.Text):
        return left, _moment(right, at)
    if right.kind is Kind.TIME and isinstance(left, ir.Text):
        return _moment(left, at), right
    return left, right


def _moment(text: ir.Text, at: exp.Expression) -> ir.Moment:
    try:
        return ir.Moment(parse_time(text.value))
    except EnvelopeError as error:
        raise ExpressionError(f"{error}{position(at)}; write it as '2026-01-31T12:00:00Z'") from error


def _unify(nodes: list[Node], at: exp.Expression, what: str) -> list[Node]:
    """All of one kind; each NULL takes the kind of the others."""
    kinds = sorted({node.kind for node in nodes} - {Kind.NULL})
    if len(kinds) != 1:
        raise ExpressionError(f"{what} must be of one kind, not {' and '.join(kinds) or 'all NULL'}{position(at)}")
    return [ir.Nothing(kinds[0]) if isinstance(node, ir.Nothing) else node for node in nodes]


def _show(tree: exp.Expression) -> str:
    return repr(tree.sql(comments=False)[:60])
