"""The functions of the expression language: their arguments, what they give, and how sqlglot names them."""

from dataclasses import dataclass

from sqlglot import exp

from pipelines.policy.ir import Kind


@dataclass(frozen=True, slots=True)
class Function:
    """A function: kinds of its arguments (the last repeats when `variadic`), and what it gives.

    Kind.NULL in `takes` and `gives` stands for: any kind, the same for all arguments and the result.
    """

    name: str
    takes: tuple[Kind, ...]
    gives: Kind
    variadic: bool = False
    example: str = ""


_N, _T, _B, _TIME, _ANY = Kind.NUMBER, Kind.TEXT, Kind.BOOL, Kind.TIME, Kind.NULL

FUNCTIONS: dict[str, Function] = {
    function.name: function
    for function in (
        Function("abs", (_N,), _N, example="abs(steering_deg)"),
        Function("floor", (_N,), _N, example="floor(speed_mps)"),
        Function("ceil", (_N,), _N, example="ceil(speed_mps)"),
        Function("sqrt", (_N,), _N, example="sqrt(x)"),
        Function("least", (_N, _N), _N, variadic=True, example="least(a, b)"),
        Function("greatest", (_N, _N), _N, variadic=True, example="greatest(a, b)"),
        Function("lower", (_T,), _T, example="lower(label)"),
        Function("upper", (_T,), _T, example="upper(label)"),
        Function("length", (_T,), _N, example="length(label)"),
        Function("starts_with", (_T, _T), _B, example="starts_with(label, 'car')"),
        Function("ends_with", (_T, _T), _B, example="ends_with(file_name, '.png')"),
        Function("contains", (_T, _T), _B, example="contains(label, 'car')"),
        Function("coalesce", (_ANY, _ANY), _ANY, variadic=True, example="coalesce(label, 'none')"),
        Function("hour", (_TIME,), _N, example="hour(event_time)"),
        Function("day_of_week", (_TIME,), _N, example="day_of_week(event_time)"),
    )
}

# How sqlglot reads each name; `has` and anything unknown arrive as exp.Anonymous.
NODE_NAMES: dict[type[exp.Expression], str] = {
    exp.Abs: "abs",
    exp.Floor: "floor",
    exp.Ceil: "ceil",
    exp.Sqrt: "sqrt",
    exp.Least: "least",
    exp.Greatest: "greatest",
    exp.Lower: "lower",
    exp.Upper: "upper",
    exp.Length: "length",
    exp.StartsWith: "starts_with",
    exp.EndsWith: "ends_with",
    exp.Contains: "contains",
    exp.Coalesce: "coalesce",
    exp.Hour: "hour",
    exp.DayOfWeek: "day_of_week",
}
