"""A run loop that ends as by SIGKILL at its k-th durable step: every fsync, rename, link and Delta call counts as one.

python dies_at_step.py <lake> <k>      k = 0: never; prints how many steps there were
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import deltalake

from pipelines.clock import SystemClock
from pipelines.config import CoreConfig
from pipelines.ingest.loop import RunLoop
from pipelines.ingest.run import Engine

taken = 0


class Nobody:
    def publish(self, messages: Mapping[str, bytes]) -> None:
        step()


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


for name in ("fsync", "replace", "rename", "link"):
    setattr(os, name, counted(getattr(os, name)))
deltalake.DeltaTable.create_write_transaction = counted(deltalake.DeltaTable.create_write_transaction)  # type: ignore[method-assign]

loop = RunLoop(
    CoreConfig(lake=sys.argv[1], contracts=os.environ.get("CORE_CONTRACTS", "")), Nobody(), SystemClock(), Engine("FnApiRunner")
)
while loop.step():
    pass
sys.stdout.write(f"{taken}\n")
sys.stdout.flush()
os._exit(0)
