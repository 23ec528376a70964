"""The expression language's own tree: small, typed, frozen. Engines are generated from it; rule text is never passed on."""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from schemas.contract import ColumnType


class ValueKind(StrEnum):
    """Kinds of values of an expression. All numbers are doubles, on every engine."""

    NUMBER = "number"
    TEXT = "text"
    BOOL = "bool"
    TIME = "time"
    BYTES = "bytes"  # and whatever else can only be asked IS NULL
    TEXTS = "list of text"
    NUMBERS = "list of numbers"
    ITEMS = "list of objects"
    NULL = "null"  # a NULL whose kind the place it stands in decides


KINDS: dict[ColumnType, ValueKind] = {
    ColumnType.STRING: ValueKind.TEXT,
    ColumnType.BOOL: ValueKind.BOOL,
    ColumnType.INT32: ValueKind.NUMBER,
    ColumnType.INT64: ValueKind.NUMBER,
    ColumnType.FLOAT32: ValueKind.NUMBER,
    ColumnType.FLOAT64: ValueKind.NUMBER,
    ColumnType.TIMESTAMP: ValueKind.TIME,
    ColumnType.BINARY: ValueKind.BYTES,
    ColumnType.LIST_STRING: ValueKind.TEXTS,
    ColumnType.LIST_BOOL: ValueKind.BYTES,
    ColumnType.LIST_INT32: ValueKind.NUMBERS,
    ColumnType.LIST_INT64: ValueKind.NUMBERS,
    ColumnType.LIST_FLOAT32: ValueKind.NUMBERS,
    ColumnType.LIST_FLOAT64: ValueKind.NUMBERS,
    ColumnType.VECTOR_FLOAT32: ValueKind.NUMBERS,
    ColumnType.VECTOR_FLOAT64: ValueKind.NUMBERS,
    ColumnType.STRUCT: ValueKind.BYTES,
    ColumnType.LIST_STRUCT: ValueKind.ITEMS,
}


LABEL = "label:"  # begins the name of a column that holds what people say; no contract's column has a colon


@dataclass(frozen=True, slots=True)
class Number:
    """A finite double."""

    value: float
    kind: ValueKind = ValueKind.NUMBER


@dataclass(frozen=True, slots=True)
class Text:
    """A string."""

    value: str
    kind: ValueKind = ValueKind.TEXT


@dataclass(frozen=True, slots=True)
class Truth:
    """TRUE or FALSE."""

    value: bool
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time, microseconds since 1970 in UTC."""

    micros: int
    kind: ValueKind = ValueKind.TIME


@dataclass(frozen=True, slots=True)
class Nothing:
    """NULL of a kind."""

    kind: ValueKind = ValueKind.NULL


@dataclass(frozen=True, slots=True)
class Ref:
    """The value of a column."""

    name: str
    type: ColumnType

    @property
    def kind(self) -> ValueKind:
        """The kind of the column's type."""
        return KINDS[self.type]

    @property
    def column(self) -> str:
        """The table's column: `pose` for the field `pose.x` of a struct."""
        return self.name.partition(".")[0]

    @property
    def field(self) -> str:
        """The field of a struct, or nothing."""
        return self.name.partition(".")[2]


def label_ref(task: str, rule: str) -> Ref:
    """The column with the class that a rule makes of a task's labels: `label:defect:latest`."""
    return Ref(f"{LABEL}{task}:{rule}", ColumnType.STRING)


@dataclass(frozen=True, slots=True)
class Has:
    """Whether the row carries this tag."""

    tag: str
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`left op right` in doubles, op one of + - * /. A zero divisor and a NaN give NULL."""

    op: str
    left: "Node"
    right: "Node"
    kind: ValueKind = ValueKind.NUMBER


@dataclass(frozen=True, slots=True)
class Negate:
    """The number with its sign turned."""

    operand: "Node"
    kind: ValueKind = ValueKind.NUMBER


@dataclass(frozen=True, slots=True)
class Compare:
    """`left op right`, op one of = <> < <= > >=. NULL if a side is NULL; text by its UTF-8 bytes."""

    op: str
    left: "Node"
    right: "Node"
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class And:
    """Three-valued conjunction."""

    parts: tuple["Node", ...]
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Or:
    """Three-valued disjunction."""

    parts: tuple["Node", ...]
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Not:
    """Three-valued negation."""

    operand: "Node"
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Member:
    """Whether the operand equals one of the literals; NULL if it is NULL."""

    operand: "Node"
    values: tuple[Number | Text | Moment | Truth, ...]
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Like:
    """Case-sensitive SQL pattern: % for any run of characters, _ for one. There is no escape character."""

    operand: "Node"
    pattern: str
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Matches:
    """Whether a regular expression of the RE2 class is found in the text. No device knows it."""

    operand: "Node"
    pattern: str
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class IsNull:
    """Whether the operand is NULL; never NULL itself."""

    operand: "Node"
    kind: ValueKind = ValueKind.BOOL


@dataclass(frozen=True, slots=True)
class Case:
    """The value of the first branch whose condition is true, else the default."""

    branches: tuple[tuple["Node", "Node"], ...]
    default: "Node"
    kind: ValueKind


@dataclass(frozen=True, slots=True)
class Call:
    """A function of the language; `name` is a key of `pipelines.expressions.functions.FUNCTIONS`."""

    name: str
    args: tuple["Node", ...]
    kind: ValueKind


@dataclass(frozen=True, slots=True)
class CountItems:
    """For how many objects of a list a condition is true; NULL for a list that is NULL. `condition` reads fields of an object."""

    operand: Ref
    condition: "Node"
    kind: ValueKind = ValueKind.NUMBER


Literal: TypeAlias = Number | Text | Moment | Truth
Node: TypeAlias = (
    Number | Text | Truth | Moment | Nothing | Ref | Has | Arithmetic | Negate
    | Compare | And | Or | Not | Member | Like | Matches | IsNull | Case | Call
    | CountItems
)  # fmt: skip


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below."""
    match node:
        case Arithmetic() | Compare():
            return (node.left, node.right)
        case Negate() | Not() | IsNull() | Like() | Matches() | Member() | CountItems():
            return (node.operand,)  # a condition over objects reads their fields, not the row's
        case And() | Or():
            return node.parts
        case Case():
            return (*(part for branch in node.branches for part in branch), node.default)
        case Call():
            return node.args
        case _:
            return ()


def refs(node: Node) -> frozenset[Ref]:
    """Every column the expression reads."""
    found: set[Ref] = set()
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, Ref):
            found.add(current)
        waiting.extend(children(current))
    return frozenset(found)


def cost(node: Node) -> int:
    """Count the operations that an engine is given for this expression, without walking them.

    BETWEEN and `CASE x WHEN` read their operand more than once, so a nest of them grows with a power of its depth;
    nodes are shared in our tree, not in the engine's.
    """
    known: dict[int, int] = {}
    waiting: list[tuple[Node, bool]] = [(node, False)]
    while waiting:
        current, is_ready = waiting.pop()
        if id(current) in known:
            continue
        below = children(current)
        if is_ready:
            known[id(current)] = _own_cost(current) + _repeats(current) * sum(known[id(child)] for child in below)
        else:
            waiting.append((current, True))
            waiting.extend((child, False) for child in below)
    return known[id(node)]


def _repeats(node: Node) -> int:
    """Count how often an engine's text names the operands."""
    return 2 if isinstance(node, Call) and node.name in ("least", "greatest") else 1


def _own_cost(node: Node) -> int:
    """In the price of an addition."""
    if isinstance(node, CountItems):
        return 10 * cost(node.condition)
    if isinstance(node, Call) and node.name == "geo_distance_m":
        return 50
    if isinstance(node, Call) and node.name == "geo_inside":
        polygon = node.args[2]
        return 1 + 8 * polygon.value.count(",") if isinstance(polygon, Text) else 1
    return 1
