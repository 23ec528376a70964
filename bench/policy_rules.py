"""Rule evaluations per second: our tagger next to the same rules by hand in Polars, as SQL in DuckDB, and in a Python loop.

All start from one Arrow table and take turns, so that they meet the same load; each figure is the best of its turns, and the
ratio is of processor time, which a busy machine disturbs less than the clock.

python bench/policy_rules.py            # 10, 50, 500 rules x 1 k, 20 k and 1 M rows
python bench/policy_rules.py --smoke    # seconds; asserts that all agree on counts
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from catchment.rules.evaluator import EdgeEvaluator
from pipelines.policy.engine import Tagger
from schemas.contract import builtin_contract
from schemas.policy import Policy, Rule

CONTRACT = builtin_contract("vehicle_telemetry")
NAMES = [column.name for column in CONTRACT.columns if column.type == "float64"]
LOOP_EVALUATIONS = 500_000  # a Python loop over more is only longer, not slower
EDGE_SAMPLES = 64  # in one batch of a device


def table(rows: int) -> pa.Table:
    pick = np.random.default_rng(1)
    columns = {name: pa.array(pick.normal(0, 30, rows)) for name in NAMES}
    columns["frame"] = pa.array(np.arange(rows))
    return pa.table(columns)


def rule(index: int) -> tuple[str, pl.Expr, Callable[[dict[str, float]], bool]]:
    """The rule as text, as one would write it by hand for Polars, and as a Python function."""
    a, b, c = (NAMES[(index + shift) % len(NAMES)] for shift in (0, 1, 3))
    level = index % 7
    match index % 4:
        case 0:
            return f"{a} > {60 - level}", pl.col(a) > 60 - level, lambda row: row[a] > 60 - level
        case 1:
            return (
                f"abs({a}) < 2 AND {c} > {30 + level}",
                (pl.col(a).abs() < 2) & (pl.col(c) > 30 + level),
                lambda row: abs(row[a]) < 2 and row[c] > 30 + level,
            )
        case 2:
            return (
                f"{a} BETWEEN 40 AND {45 + level}",
                pl.col(a).is_between(40, 45 + level),
                lambda row: 40 <= row[a] <= 45 + level,
            )
        case _:
            return (
                f"{a} * 2 + {b} > {130 + level}",
                pl.col(a) * 2 + pl.col(b) > 130 + level,
                lambda row: row[a] * 2 + row[b] > 130 + level,
            )


@dataclass
class Turn:
    """The best of its turns, by the clock and in processor time."""

    work: Callable[[], object]
    wall_s: float = float("inf")
    cpu_s: float = float("inf")

    def take(self) -> None:
        start, spent = time.perf_counter(), time.process_time()
        self.work()
        self.wall_s = min(self.wall_s, time.perf_counter() - start)
        self.cpu_s = min(self.cpu_s, time.process_time() - spent)


def by_hand(data: pa.Table, expressions: list[pl.Expr]) -> pl.DataFrame:
    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    return frame.select(expressions)


def measure(rules: int, rows: int, repeats: int) -> None:
    texts, hand, functions = zip(*(rule(index) for index in range(rules)), strict=True)
    data = table(rows)
    policy = Policy("p", (CONTRACT.name,), tuple(Rule(f"t{n}", text) for n, text in enumerate(texts)))
    tagger = Tagger.compile([policy], CONTRACT)
    connection = duckdb.connect()
    connection.register("data", data)
    query = "SELECT " + ", ".join(f"({text}) AS t{n}" for n, text in enumerate(texts)) + " FROM data"
    named = [expression.alias(str(n)) for n, expression in enumerate(hand)]
    some = data.slice(0, max(1, min(rows, LOOP_EVALUATIONS // rules))).to_pylist()

    ours = [int(hit.sum()) for hit in tagger.verdicts(data)]
    assert ours == [int(value) for value in by_hand(data, named).sum().row(0)], "Polars by hand disagrees"
    counted = connection.execute(f"SELECT {', '.join(f'sum(t{n}::int)' for n in range(rules))} FROM ({query})").fetchall()[0]
    assert ours == [int(value or 0) for value in counted], "DuckDB disagrees"
    assert len(tagger.tag(data)[0].combine_chunks().values) == sum(ours)
    if len(some) == rows:
        assert ours == [sum(map(function, some)) for function in functions], "the Python loop disagrees"

    turns = {
        "Polars by hand, verdicts": (Turn(lambda: by_hand(data, named)), rows),
        "ours, verdicts": (Turn(lambda: tagger.judge(data)), rows),
        "ours, tags with provenance (lists)": (Turn(lambda: tagger.tag(data)), rows),
        "DuckDB, verdicts to Arrow": (Turn(lambda: connection.sql(query).to_arrow_table()), rows),
        "Python loop over rows": (Turn(lambda: [[function(row) for function in functions] for row in some]), len(some)),
    }
    for _ in range(repeats):
        for turn, _rows in turns.values():
            turn.take()
    print(f"\n{rules} rules x {rows:,} rows, {sum(ours) / rows:.2f} tags a row")
    bare = turns["Polars by hand, verdicts"][0].cpu_s / rows
    for name, (turn, judged) in turns.items():
        speed = rules * judged / turn.wall_s / 1e6
        print(f"  {name:36s} {speed:9.1f} M/s  {turn.wall_s * 1e3:9.2f} ms  {bare / (turn.cpu_s / judged):7.3f} x by hand")


def measure_edge(rules: int, repeats: int) -> None:
    """A device's engine: batches of samples through compiled rules."""
    texts = [rule(index)[0] for index in range(rules)]
    policy = Policy("p", (CONTRACT.name,), tuple(Rule(f"t{n}", text) for n, text in enumerate(texts)))
    tagger = Tagger.compile([policy], CONTRACT)
    data = table(EDGE_SAMPLES)
    columns = {name: data[name].to_pylist() for name in NAMES}
    evaluator = EdgeEvaluator([expression.to_edge() for each in tagger.rules for expression in each.expressions])
    wanted = [hit.tolist() for hit in tagger.verdicts(data)]
    assert evaluator.evaluate(columns, EDGE_SAMPLES) == wanted, "the device disagrees"
    turn = Turn(lambda: evaluator.evaluate(columns, EDGE_SAMPLES))
    for _ in range(repeats * 5):
        turn.take()
    each_us = turn.cpu_s / EDGE_SAMPLES * 1e6
    print(
        f"  {rules:4d} rules: {each_us:8.2f} us a sample, {each_us / rules:6.3f} us a rule and sample (batches of {EDGE_SAMPLES})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small and quick")
    smoke = parser.parse_args().smoke
    for rules in (10, 50) if smoke else (10, 50, 500):
        for rows in (2_000,) if smoke else (1_000, 20_000, 1_000_000):
            measure(rules, rows, repeats=1 if smoke else 3 if rows > 100_000 else 25)
    print("\na device's engine (sqlite3), processor time")
    for rules in (1, 10) if smoke else (1, 10, 50):
        measure_edge(rules, repeats=1 if smoke else 20)


if __name__ == "__main__":
    main()
