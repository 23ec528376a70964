"""When does an expression fail? Where values that were there give NULL: a zero divisor, a text that is no number, a NaN.

The answer is itself an expression of the language, so every engine can count it.
"""

from pipelines.expressions import ir
from pipelines.expressions.ir import Kind, Node

# NULL out of values, and each of them only by an error.
_CALLS = frozenset({"sqrt", "to_number", "local", "geo_distance_m", "geo_inside"})
# NULL out of values, and rightly so; or not NULL out of a NULL.
_LENIENT = frozenset({"coalesce", "split_part", "list_get"})


def faults(node: Node) -> Node | None:
    """True for the rows in which a part of the expression failed; None if no part of it can."""
    found = _faults(node)
    if not found:
        return None
    return found[0] if len(found) == 1 else ir.Or(tuple(found))


def _faults(node: Node) -> list[Node]:
    if isinstance(node, ir.Case):
        return _of_case(node)
    if not _is_strict(node):
        return [fault for child in ir.children(node) for fault in _faults(child)]
    inputs, can_fail = _inputs(node)
    found = [fault for each in inputs for fault in _faults(each)]
    if can_fail:
        given: list[Node] = [ir.Not(ir.IsNull(each)) for each in inputs]
        found.append(ir.And((ir.IsNull(node), *given)))
    return found


def _of_case(node: ir.Case) -> list[Node]:
    """A branch that is not taken does not fail."""
    found = [fault for condition, _ in node.branches for fault in _faults(condition)]
    below = [faults(value) for value in (*(value for _, value in node.branches), node.default)]
    if any(below):
        values = [each or ir.Truth(value=False) for each in below]
        branches = tuple((condition, value) for (condition, _), value in zip(node.branches, values, strict=False))
        found.append(ir.Case(branches, values[-1], Kind.BOOL))
    return found


def _is_strict(node: Node) -> bool:
    """Whether a NULL below makes it NULL."""
    if isinstance(node, ir.Call):
        return node.name not in _LENIENT
    return isinstance(node, ir.Arithmetic | ir.Negate | ir.Compare | ir.Not | ir.Member | ir.Like | ir.Matches)


def _inputs(node: Node) -> tuple[list[Node], bool]:
    """What a strict part of the tree is fed with, literals aside, and whether an operation in it can fail."""
    found: dict[int, Node] = {}
    can_fail, waiting = False, [node]
    while waiting:
        current = waiting.pop()
        if not _is_strict(current):
            if not isinstance(current, ir.Number | ir.Text | ir.Truth | ir.Moment):
                found[id(current)] = current
            continue
        can_fail |= isinstance(current, ir.Arithmetic) or (isinstance(current, ir.Call) and current.name in _CALLS)
        waiting.extend(ir.children(current))
    return list(found.values()), can_fail
