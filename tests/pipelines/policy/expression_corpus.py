"""Random expressions and hard rows: what both engines must agree on."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from schemas.contract import ColumnType

COLUMNS = {
    "a": ColumnType.FLOAT64,
    "b": ColumnType.FLOAT32,
    "i": ColumnType.INT64,
    "j": ColumnType.INT32,
    "s": ColumnType.STRING,
    "t": ColumnType.STRING,
    "f": ColumnType.BOOL,
    "at": ColumnType.TIMESTAMP,
    "u": ColumnType.LIST_STRING,
    "v": ColumnType.LIST_FLOAT64,
    "w": ColumnType.LIST_FLOAT32,
    "k": ColumnType.LIST_INT64,
}
_INF, _NAN = float("inf"), float("nan")
FLOATS = [None, _NAN, _INF, -_INF, 0.0, -0.0, 1.0, -1.0, 0.1, 0.3, 2.5, 5e-324, 1e308, -1e308, 2.0**53 + 2, 1 / 3, 150.0, -50.0]
HALVES = [None, _NAN, _INF, 0.0, -0.0, 1.5, -2.25, 3.0e38, 100.0, 0.5]
WHOLES = [None, 0, 1, -1, 2**53 + 1, 2**63 - 1, -(2**63), 7, 100, 12345678901]
SMALLS = [None, 0, 1, -1, 2**31 - 1, -(2**31), 10, 255]
TEXTS = [
    None,
    "",
    "a",
    "A",
    "abc",
    "ABC",
    "aXc",
    "a%c",
    "a_c",
    "ß",
    "İ",
    "ΟΔΥΣΣΕΥΣ",
    "😀x",
    "a\0b",
    "\n",
    "a\nb",
    "abcabc",
    "e\u0301",
    " a\t",
    "\x1ca\u2003",
    "-12.50",
    "1e999",
    "٣",
    "7",
]
ZONES = [
    "",
    "",
    ", 'Europe/Berlin'",
    ", 'America/New_York'",
    ", 'Australia/Lord_Howe'",
    ", 'Asia/Kathmandu'",
    ", '-11:30'",
    ", 'UTC'",
]
POLYGONS = [
    "'POLYGON((-10 -10, 10 -10, 10 10, -10 10))'",
    "'POLYGON((0 0, 150 0.5, 0.3 60, 7 7))'",
    "'POLYGON((1 1, 2 2, 2.5 -45.25))'",
]
TRUTHS = [None, True, False]
TIMES = [
    None,
    0,
    -1,
    1767225600000000,
    1785542399999999,
    # The change to summer time and back in Berlin, a leap day, a year of 53 weeks, the ends of the calendar and of the type.
    1774746000000000,
    1774746000000000 - 1,
    1793494800000000,
    1793494799999999,
    1709164800000000,
    1609459200000000,
    631152000000000 - 1,
    -62135510400000000,
    -62135510400000001,
    253370764799999999,
    253370764800000000,
    2**63 - 1,
    -(2**63),
    -(2**63) + 1,
]
TEXT_LISTS = [None, [], [None], ["a"], ["abc", None, "a"], ["", "A", "a"], ["ß", "😀x"]]
FLOAT_LISTS = [None, [], [None], [_NAN], [0.0, -0.0], [_INF, 1.0], [0.1, 0.3, 7.0, None], [1e308, -1e308]]
WHOLE_LISTS = [None, [], [None, 0], [1, 7, 100], [2**53 + 1], [2**63 - 1, -(2**63)]]
ROWS = 64
CALENDAR = ["year", "quarter", "month", "week", "day", "day_of_year", "day_of_week", "hour", "minute", "second", "minute_of_day"]
PARTS = ["'a'", "'b'", "'bc'", "' '", "'ß'", "'.'", "'aa'"]
MOMENTS = ["at", "'2026-01-01T00:00:00Z'", "'1969-12-31T23:00:00+00:00'"]


def hard_rows(seed: int = 7) -> pa.Table:
    pick = random.Random(seed)
    kinds: list[tuple[list[Any], pa.DataType]] = [
        (FLOATS, pa.float64()), (HALVES, pa.float32()), (WHOLES, pa.int64()), (SMALLS, pa.int32()),
        (TEXTS, pa.string()), (TEXTS, pa.string()), (TRUTHS, pa.bool_()), (TIMES, pa.timestamp("us", "UTC")),
        (TEXT_LISTS, pa.list_(pa.string())), (FLOAT_LISTS, pa.list_(pa.float64())),
        (FLOAT_LISTS, pa.list_(pa.float32())), (WHOLE_LISTS, pa.list_(pa.int64())),
    ]  # fmt: skip
    columns = {}
    for name, (values, type_) in zip(COLUMNS, kinds, strict=True):
        columns[name] = pa.array(
            [values[n] if n < len(values) else pick.choice(values) for n in range(ROWS)], type_, from_pandas=False
        )
    shuffled = {name: column.take(pa.array(pick.sample(range(ROWS), ROWS))) for name, column in columns.items()}
    return pa.table(shuffled)


class Writer:
    """Writes random expressions of the language, of bounded depth."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)

    def drawn(self, forms: Sequence[Callable[[], str]]) -> str:
        """The text of one of these forms."""
        return self.pick.choice(forms)()

    def truths(self) -> Iterator[str]:
        while True:
            yield self.truth(self.pick.randint(1, 4))

    def truth(self, depth: int) -> str:
        p = self.pick
        if depth <= 0:
            return p.choice(["f", "TRUE", "FALSE", "a > 0.1", "s = 'abc'", "i IS NULL", "at > '2026-01-01T00:00:00Z'"])
        n, t, b = self.number, self.text, self.truth
        forms: list[Callable[[], str]] = [
            lambda: f"{n(depth - 1)} {p.choice(['=', '<>', '<', '<=', '>', '>=', '!='])} {n(depth - 1)}",
            lambda: f"{t(depth - 1)} {p.choice(['=', '<>', '<', '<=', '>', '>='])} {t(depth - 1)}",
            lambda: f"({b(depth - 1)} AND {b(depth - 1)})",
            lambda: f"({b(depth - 1)} OR {b(depth - 1)} OR {b(depth - 2)})",
            lambda: f"NOT ({b(depth - 1)})",
            lambda: f"{n(depth - 1)} {p.choice(['', 'NOT '])}IN ({', '.join(self.literal() for _ in range(p.randint(1, 6)))})",
            lambda: f"{t(depth - 1)} IN ({', '.join(self.quoted() for _ in range(p.randint(1, 6)))})",
            lambda: f"{n(depth - 1)} {p.choice(['', 'NOT '])}BETWEEN {n(depth - 1)} AND {n(depth - 1)}",
            lambda: f"{t(depth - 1)} {p.choice(['', 'NOT '])}LIKE {self.pattern()}",
            lambda: f"({p.choice([n, t, b])(depth - 1)}) IS {p.choice(['', 'NOT '])}NULL",
            lambda: f"({b(depth - 1)}) IS {p.choice(['', 'NOT '])}{p.choice(['TRUE', 'FALSE'])}",
            lambda: f"{p.choice(['starts_with', 'ends_with', 'contains'])}({t(depth - 1)}, {t(depth - 1)})",
            lambda: f"coalesce({b(depth - 1)}, {b(depth - 1)})",
            lambda: f"is_blank({t(depth - 1)})",
            lambda: f"is_weekend(at{p.choice(ZONES)})",
            lambda: f"time_between(at, '{p.choice(['22:00', '00:00'])}', '{p.choice(['06:30', '23:59'])}'{p.choice(ZONES)})",
            lambda: f"geo_in_box({', '.join(n(depth - 1) for _ in range(6))})",
            lambda: f"geo_in_polygon({n(depth - 1)}, {n(depth - 1)}, {p.choice(POLYGONS)})",
            lambda: f"list_contains({p.choice('vwk')}, {self.literal()})",
            lambda: f"list_contains(u, {self.quoted()})",
            lambda: f"list_any(u, {self.quoted()}, {self.quoted()})",
            lambda: f"list_any({p.choice('vwk')}, {self.literal()}, {self.literal()})",
            lambda: f"nullif({b(depth - 1)}, {b(depth - 2)})",
            lambda: f"{p.choice('uvwk')} IS NULL",
            lambda: f"at {p.choice(['<', '>=', '='])} {p.choice(MOMENTS)}",
            lambda: f"({b(depth - 1)}) {p.choice(['=', '<>'])} ({b(depth - 1)})",
            lambda: f"CASE WHEN {b(depth - 1)} THEN {b(depth - 1)} ELSE {b(depth - 1)} END",
        ]
        return self.drawn(forms)

    def number(self, depth: int) -> str:
        p = self.pick
        if depth <= 0:
            return p.choice(["a", "b", "i", "j", self.literal()])
        n, t, b = self.number, self.text, self.truth
        forms: list[Callable[[], str]] = [
            lambda: f"({n(depth - 1)} {p.choice('+-*/')} {n(depth - 1)})",
            lambda: f"({n(depth - 1)} {p.choice('+-*/')} {n(depth - 1)})",
            lambda: f"(- {n(depth - 1)})",
            lambda: f"{p.choice(['abs', 'floor', 'ceil', 'sqrt'])}({n(depth - 1)})",
            lambda: f"{p.choice(['least', 'greatest', 'coalesce'])}({n(depth - 1)}, {n(depth - 1)}, {n(depth - 2)})",
            lambda: f"length({t(depth - 1)})",
            lambda: f"{p.choice(CALENDAR)}(at{p.choice(ZONES)})",
            lambda: f"{p.choice(CALENDAR)}(at{p.choice(ZONES)})",
            lambda: f"{p.choice(['round', 'trunc', 'sign'])}({n(depth - 1)})",
            lambda: f"{p.choice(['mod', 'norm', 'nullif'])}({n(depth - 1)}, {n(depth - 1)})",
            lambda: f"clamp({n(depth - 1)}, {n(depth - 2)}, {n(depth - 2)})",
            lambda: f"norm({n(depth - 1)}, {n(depth - 2)}, {n(depth - 2)})",
            lambda: f"to_number({t(depth - 1)})",
            lambda: f"occurrences({t(depth - 1)}, {p.choice(PARTS)})",
            lambda: "epoch_s(at)",
            lambda: f"seconds_between({p.choice(MOMENTS)}, {p.choice(MOMENTS)})",
            lambda: f"geo_distance_m({', '.join(n(depth - 1) for _ in range(4))})",
            lambda: f"geo_distance_m({n(depth - 2)}, {n(depth - 2)}, 48.137, 11.575)",
            lambda: f"list_length({p.choice('uvwk')})",
            lambda: f"list_get({p.choice('vwk')}, {p.randint(1, 3)})",
            lambda: f"CASE WHEN {b(depth - 1)} THEN {n(depth - 1)} {p.choice(['', 'ELSE ' + n(depth - 2)])} END",
            lambda: f"CASE {n(depth - 1)} WHEN {n(depth - 2)} THEN {n(depth - 2)} ELSE NULL END",
        ]
        return self.drawn(forms)

    def text(self, depth: int) -> str:
        p = self.pick
        if depth <= 0:
            return p.choice(["s", "t", self.quoted()])
        return self.drawn([
            lambda: f"{p.choice(['lower', 'upper'])}({self.text(depth - 1)})",
            lambda: f"coalesce({self.text(depth - 1)}, {self.text(depth - 1)})",
            lambda: f"{p.choice(['trim', 'ltrim', 'rtrim'])}({self.text(depth - 1)})",
            lambda: f"{p.choice(['left', 'right'])}({self.text(depth - 1)}, {p.randint(0, 3)})",
            lambda: f"substr({self.text(depth - 1)}, {p.randint(1, 3)}, {p.randint(0, 2)})",
            lambda: f"replace({self.text(depth - 1)}, {p.choice(PARTS)}, {p.choice([chr(39) * 2, repr('b'), repr('$')])})",
            lambda: f"split_part({self.text(depth - 1)}, {p.choice(PARTS)}, {p.randint(1, 3)})",
            lambda: f"concat({self.text(depth - 1)}, {self.text(depth - 1)})",
            lambda: f"concat({self.text(depth - 2)}, {self.text(depth - 1)}, {self.text(depth - 2)})",
            lambda: f"nullif({self.text(depth - 1)}, {self.text(depth - 2)})",
            lambda: f"date_text(at{p.choice(ZONES)})",
            lambda: f"list_get(u, {p.randint(1, 3)})",
            lambda: f"CASE WHEN {self.truth(depth - 1)} THEN {self.text(depth - 1)} ELSE {self.text(depth - 1)} END",
            lambda: self.text(0),
        ])  # fmt: skip

    def literal(self) -> str:
        return self.pick.choice(
            ["0", "1", "-1", "0.1", "0.3", "3", "1e308", "2.5", "9007199254740993", "5e-324", "100", "-0.0", "7", "1e-300"]
        )

    def quoted(self) -> str:
        return self.pick.choice(
            ["''", "'a'", "'abc'", "'A'", "'ß'", "'SS'", "'a%c'", "'😀x'", "'it''s'", "'i̇'", "' a '", "'12.5'", "'2026-03-29'"]
        )

    def pattern(self) -> str:
        return self.pick.choice(
            [
                "'%'",
                "'a%'",
                "'%c'",
                "'%b%'",
                "'a_c'",
                "'_'",
                "''",
                "'%a%b%'",
                "'a%c'",
                "'ABC'",
                "'%\u0301'",
                "'_%_'",
                "'.%'",
                "'[a]%'",
                "'%a_c%'",
            ]
        )
