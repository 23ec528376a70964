"""The functions of the expression language: their arguments, what they give, and what they mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipelines.expressions import expand
from pipelines.expressions.ir import Node, ValueKind


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the language.

    Attributes:
        takes: kinds of its arguments; the last repeats when `variadic`. `ValueKind.NULL` stands for any kind, the same for all of
            them and the result. A tuple of kinds says that each of them will do.
        gives: the kind of its result.
        build: makes its node; without it the node is a call of the same name, which every engine knows.
        literals: places (from 0) of arguments that must be literals.
        optional: how many of the last arguments may be left out.
    """

    name: str
    takes: tuple[ValueKind | tuple[ValueKind, ...], ...]
    gives: ValueKind
    example: str
    build: Callable[[Sequence[Node]], Node] | None = None
    literals: frozenset[int] = field(default_factory=frozenset)
    optional: int = 0
    variadic: bool = False


_N, _T, _B, _TIME, _ANY = ValueKind.NUMBER, ValueKind.TEXT, ValueKind.BOOL, ValueKind.TIME, ValueKind.NULL
_LIST, _ITEM = (ValueKind.TEXTS, ValueKind.NUMBERS), (ValueKind.TEXT, ValueKind.NUMBER)
_REST = frozenset(range(1, 64))


def _zoned(name: str, gives: ValueKind = _N) -> Function:
    example = f"{name}(event_time, 'Europe/Berlin')"
    return Function(name, (_TIME, _T), gives, example, expand.zoned(name, gives), frozenset({1}), optional=1)


FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        Function("abs", (_N,), _N, "abs(steering_deg)"),
        Function("floor", (_N,), _N, "floor(speed_mps)"),
        Function("ceil", (_N,), _N, "ceil(speed_mps)"),
        Function("round", (_N,), _N, "round(speed_mps)"),
        Function("trunc", (_N,), _N, "trunc(speed_mps)", expand.trunc),
        Function("sign", (_N,), _N, "sign(steering_deg)"),
        Function("sqrt", (_N,), _N, "sqrt(x)"),
        Function("norm", (_N, _N), _N, "norm(x, y, z)", expand.norm, variadic=True),
        Function("mod", (_N, _N), _N, "mod(seq, 10)", expand.mod),
        Function("clamp", (_N, _N, _N), _N, "clamp(x, 0, 1)", expand.clamp),
        Function("least", (_N, _N), _N, "least(a, b)", variadic=True),
        Function("greatest", (_N, _N), _N, "greatest(a, b)", variadic=True),
        Function("to_number", (_T,), _N, "to_number(text)"),
        Function("lower", (_T,), _T, "lower(label)"),
        Function("upper", (_T,), _T, "upper(label)"),
        Function("trim", (_T,), _T, "trim(label)"),
        Function("ltrim", (_T,), _T, "ltrim(label)"),
        Function("rtrim", (_T,), _T, "rtrim(label)"),
        Function("left", (_T, _N), _T, "left(label, 3)", expand.left, frozenset({1})),
        Function("right", (_T, _N), _T, "right(label, 3)", expand.right, frozenset({1})),
        Function("substr", (_T, _N, _N), _T, "substr(label, 1, 3)", expand.substr, frozenset({1, 2})),
        Function("replace", (_T, _T, _T), _T, "replace(label, '_', ' ')", expand.replace, frozenset({1, 2})),
        Function("split_part", (_T, _T, _N), _T, "split_part(file_name, '/', 1)", expand.split_part, frozenset({1, 2})),
        Function("concat", (_T, _T), _T, "concat(make, ' ', model)", variadic=True),
        Function("length", (_T,), _N, "length(label)"),
        Function("occurrences", (_T, _T), _N, "occurrences(message, 'error')", expand.occurrences, frozenset({1})),
        Function("is_blank", (_T,), _B, "is_blank(label)", expand.is_blank),
        Function("starts_with", (_T, _T), _B, "starts_with(label, 'car')"),
        Function("ends_with", (_T, _T), _B, "ends_with(file_name, '.png')"),
        Function("contains", (_T, _T), _B, "contains(label, 'car')"),
        Function("matches", (_T, _T), _B, "matches(message, '^E[0-9]+')", expand.matches, frozenset({1})),
        Function("coalesce", (_ANY, _ANY), _ANY, "coalesce(label, 'none')", variadic=True),
        Function("nullif", (_ANY, _ANY), _ANY, "nullif(label, '')", expand.nullif),
        _zoned("year"),
        Function("quarter", (_TIME, _T), _N, "quarter(event_time)", expand.quarter, frozenset({1}), optional=1),
        *map(_zoned, ("month", "week", "day", "day_of_year", "day_of_week", "hour", "minute", "second")),
        Function("minute_of_day", (_TIME, _T), _N, "minute_of_day(event_time)", expand.minute_of_day, frozenset({1}), optional=1),
        Function("is_weekend", (_TIME, _T), _B, "is_weekend(event_time)", expand.is_weekend, frozenset({1}), optional=1),
        Function(
            "time_between", (_TIME, _T, _T, _T), _B, "time_between(event_time, '22:00', '06:00', 'Europe/Berlin')",
            expand.time_between, frozenset({1, 2, 3}), optional=1,
        ),
        _zoned("date_text", _T),
        Function("epoch_s", (_TIME,), _N, "epoch_s(event_time)", expand.epoch_s),
        Function("seconds_between", (_TIME, _TIME), _N, "seconds_between(event_time, received_at)", expand.seconds_between),
        Function("geo_distance_m", (_N, _N, _N, _N), _N, "geo_distance_m(latitude_deg, longitude_deg, 48.137, 11.575)"),
        Function("geo_in_box", (_N,) * 6, _B, "geo_in_box(latitude_deg, longitude_deg, 47, 5, 55, 15)", expand.geo_in_box),
        Function(
            "geo_in_polygon", (_N, _N, _T), _B, "geo_in_polygon(latitude_deg, longitude_deg, 'POLYGON((11 48, 12 48, 12 49))')",
            expand.geo_in_polygon, frozenset({2}),
        ),
        Function("list_contains", (_LIST, _ITEM), _B, "list_contains(labels, 'car')", expand.list_contains, frozenset({1})),
        Function(
            "list_any", (_LIST, _ITEM), _B, "list_any(labels, 'car', 'van')", expand.list_any, _REST, variadic=True
        ),
        Function("list_length", ((*_LIST, ValueKind.ITEMS),), _N, "list_length(labels)"),
        Function("list_get", (_LIST, _N), _ANY, "list_get(labels, 1)", expand.list_get, frozenset({1})),
    )
}  # fmt: skip
