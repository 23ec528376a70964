"""Inspectors over a table, next to the same library called in a bare loop, in turns, the best of some rounds each.

python bench/inspect_rows.py            # 60 pictures of 1920 x 1080 px, 200,000 log lines
python bench/inspect_rows.py --smoke    # seconds
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyvips

from pipelines.inspect.image import decoded, image_facts
from pipelines.inspect.run import compiled_patterns, inspect_rows
from pipelines.lake.lake import lake_at
from schemas.contract import ColumnType
from schemas.inspectors import SIDE_PX
from schemas.policy import InspectStep

CODE = "def look(payload):\n    return {'n': len(payload)}\n"


def pictures(count: int, width: int, height: int) -> list[bytes]:
    found = []
    for seed in range(count):
        pick = np.random.default_rng(seed)
        coarse = pick.integers(0, 255, (height // 40, width // 40, 3)).repeat(40, 0).repeat(40, 1)
        pixels = (coarse + pick.integers(-12, 12, coarse.shape)).clip(0, 255).astype(np.uint8)
        found.append(pyvips.Image.new_from_array(pixels).jpegsave_buffer(Q=85))
    return found


def table(bodies: list[bytes], **more: pa.Array) -> pa.Table:
    count = len(bodies)
    digests = [hashlib.sha256(body).hexdigest() for body in bodies]
    key = {"device": pa.array(["cam"] * count), "epoch": pa.array([1] * count), "seq": pa.array(range(count))}
    return pa.table({**key, "payload_sha256": pa.array(digests), **more})


def in_turns(rounds: int, *works: Callable[[], object]) -> list[float]:
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for place, work in enumerate(works):
            start = time.perf_counter()
            work()
            best[place] = min(best[place], time.perf_counter() - start)
    return best


def tell(name: str, count: int, bare: float, ours: float, what: str) -> None:
    print(f"  {name:<28} {count / ours:12,.0f}/s   {bare / ours:6.1%} of {what} ({count / bare:,.0f}/s)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small and quick")
    arguments = parser.parse_args()
    count, size, lines, rounds = (6, (320, 240), 2_000, 1) if arguments.smoke else (60, (1920, 1080), 200_000, 5)
    bodies = pictures(count, *size)
    rows, step = table(bodies), InspectStep("image")
    print(f"{count} pictures of {size[0]} x {size[1]} px, {lines:,} log lines")
    inspect_rows(None, rows.slice(0, 2), [step], lambda place: bodies[place])
    decode, bare, ours = in_turns(
        rounds,
        lambda: [decoded(body, SIDE_PX, SIDE_PX) for body in bodies],
        lambda: [image_facts(body) for body in bodies],
        lambda: inspect_rows(None, rows, [step], lambda place: bodies[place]),
    )
    tell("image", count, bare, ours, "the bare function")
    tell("image", count, decode, ours, "libvips decoding to 512 px alone")
    with tempfile.TemporaryDirectory() as folder:
        inspect_rows(lake_at(Path(folder)), rows, [step], lambda place: bodies[place])
        (cached,) = in_turns(rounds, lambda: inspect_rows(lake_at(Path(folder)), rows, [step], lambda place: bodies[place]))
        tell("image, seen before", count, bare, cached, "the bare function")
        text(lines, rounds)
        own(Path(folder), bodies, rounds)


def text(lines: int, rounds: int) -> None:
    messages = [f"user=anna{n} from 10.0.{n % 250}.7 mail a{n % 9}@example.org took {n} ms" for n in range(lines)]
    step = InspectStep("text", options={"column": "message"})
    rows = pa.table({"device": ["sw"] * lines, "epoch": [1] * lines, "seq": range(lines), "message": messages})
    frame, patterns = pl.from_arrow(rows), compiled_patterns(step.options)
    assert isinstance(frame, pl.DataFrame)
    bare, ours = in_turns(
        rounds,
        lambda: frame.select(**{name: pl.col("message").str.count_matches(pattern) for name, pattern in patterns.items()}),
        lambda: inspect_rows(None, rows, [step], lambda _place: None),
    )
    tell(f"text, {len(patterns)} patterns", lines, bare, ours, "bare Polars")


def own(folder: Path, bodies: list[bytes], rounds: int) -> None:
    digest = hashlib.sha256(CODE.encode()).hexdigest()
    (folder / "policies" / "code").mkdir(parents=True)
    (folder / "policies" / "code" / digest).write_text(CODE)
    step = InspectStep("own", file="own.py", function="look", code=digest, columns={"n": ColumnType.INT64})
    rows = table(bodies).drop_columns(["payload_sha256"])  # without a hash nothing is remembered
    inspect_rows(lake_at(folder), rows, [step], lambda place: bodies[place])
    (ours,) = in_turns(rounds, lambda: inspect_rows(lake_at(folder), rows, [step], lambda place: bodies[place]))
    per_mb = sum(map(len, bodies)) / 1e6 / ours
    print(f"  {'own function in a worker':<28} {len(bodies) / ours:12,.0f}/s   {per_mb:,.0f} MB/s through the pipe")


if __name__ == "__main__":
    main()
