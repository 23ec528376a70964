"""Upkeep that ends as by SIGKILL at its k-th durable step.

python dies_at_upkeep.py <lake> <k>      k = 0: never; prints how many steps there were
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake

from pipelines.upkeep.maintain import maintain
from pipelines.upkeep.vacuum import Keep

taken = 0


def step() -> None:
    global taken  # noqa: PLW0603  # one counter for the whole process is the point
    taken += 1
    if taken == int(sys.argv[2]):
        os._exit(137)


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        step()
        result = function(*arguments, **named)
        step()
        return result

    return call


for name in ("fsync", "replace", "rename", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
deltalake.DeltaTable.create_write_transaction = counted(deltalake.DeltaTable.create_write_transaction)  # type: ignore[method-assign]

maintain(Path(sys.argv[1]), Keep(0, 0, 0, 0))
sys.stdout.write(f"{taken}\n")
sys.stdout.flush()
os._exit(0)
