"""Rule evaluations per second: our tagger beside the same rules written by hand for Polars, and as SQL for DuckDB.

python bench/policy_rules.py            # 10, 50, 500 rules x 20 k and 1 M rows
python bench/policy_rules.py --smoke    # seconds; asserts that all three agree on counts
"""

import argparse
import time
from collections.abc import Callable

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa

from pipelines.policy.engine import Tagger
from schemas.builtin import builtin_contract
from schemas.policy import Policy, Rule

CONTRACT = builtin_contract("vehicle_telemetry")
NAMES = [column.name for column in CONTRACT.columns if column.type == "float64"]


def table(rows: int) -> pa.Table:
    pick = np.random.default_rng(1)
    columns = {name: pa.array(pick.normal(0, 30, rows)) for name in NAMES}
    columns["frame"] = pa.array(np.arange(rows))
    return pa.table(columns)


def rule(index: int) -> tuple[str, pl.Expr]:
    """The rule as text, and as one would write it by hand."""
    a, b, c = (NAMES[(index + shift) % len(NAMES)] for shift in (0, 1, 3))
    level = index % 7
    match index % 4:
        case 0:
            return f"{a} > {60 - level}", pl.col(a) > 60 - level
        case 1:
            return f"abs({a}) < 2 AND {c} > {30 + level}", (pl.col(a).abs() < 2) & (pl.col(c) > 30 + level)
        case 2:
            return f"{a} BETWEEN 40 AND {45 + level}", pl.col(a).is_between(40, 45 + level)
        case _:
            return f"{a} * 2 + {b} > {130 + level}", pl.col(a) * 2 + pl.col(b) > 130 + level


def best(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(rules: int, rows: int, repeats: int) -> None:
    texts, by_hand = zip(*(rule(index) for index in range(rules)), strict=True)
    data = table(rows)
    frame = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    tagger = Tagger.compile([Policy("p", (CONTRACT.name,), tuple(Rule(f"t{n}", text) for n, text in enumerate(texts)))], CONTRACT)
    connection = duckdb.connect()
    connection.register("data", data)
    query = "SELECT " + ", ".join(f"({text}) AS t{n}" for n, text in enumerate(texts)) + " FROM data"
    named = [expression.alias(str(n)) for n, expression in enumerate(by_hand)]

    ours = [int(hit.sum()) for hit in tagger.verdicts(data)]
    assert ours == [int(value) for value in frame.select(named).sum().row(0)], "Polars by hand disagrees"
    counted = connection.execute(f"SELECT {', '.join(f'sum(t{n}::int)' for n in range(rules))} FROM ({query})").fetchall()[0]
    assert ours == [int(value or 0) for value in counted], "DuckDB disagrees"
    assert len(tagger.tag(data)[0].combine_chunks().values) == sum(ours)

    evaluations = rules * rows
    lines = {
        "tags with provenance (lists)": best(lambda: tagger.tag(data), repeats),
        "verdicts alone": best(lambda: tagger.verdicts(data), repeats),
        "Polars by hand, verdicts": best(lambda: frame.select(named), repeats),
        "DuckDB, verdicts to Arrow": best(lambda: connection.sql(query).to_arrow_table(), repeats),
    }
    print(f"\n{rules} rules x {rows:,} rows, {sum(ours) / rows:.2f} tags a row")
    bare = lines["Polars by hand, verdicts"]
    for name, seconds in lines.items():
        print(f"  {name:32s} {evaluations / seconds / 1e6:9.1f} M/s  {seconds * 1e3:9.1f} ms  {bare / seconds:6.2f} x by hand")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small and quick")
    smoke = parser.parse_args().smoke
    for rules in (10, 50) if smoke else (10, 50, 500):
        for rows in (2_000,) if smoke else (1_000, 20_000, 1_000_000):
            measure(rules, rows, repeats=1 if smoke else 3)


if __name__ == "__main__":
    main()
