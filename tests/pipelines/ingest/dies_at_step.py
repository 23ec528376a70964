"""A run loop that ends as by SIGKILL at its k-th durable step: every fsync, rename, link and Delta call counts as one.

python dies_at_step.py <lake> <k>      k = 0: never; prints how many steps there were
"""

import os
import sys
from collections.abc import Mapping

from pipelines.clock import SystemClock
from pipelines.config import CoreConfig
from pipelines.ingest.loop import RunLoop
from pipelines.ingest.run import Engine
from tests.fakes import durable_steps


class Nobody:
    def publish(self, messages: Mapping[str, bytes]) -> None:
        durable_steps.step()


durable_steps.count("fsync", "replace", "rename", "link")
loop = RunLoop(
    CoreConfig(lake=sys.argv[1], contracts=os.environ.get("CORE_CONTRACTS", "")), Nobody(), SystemClock(), Engine("FnApiRunner")
)
while loop.step():
    pass
durable_steps.end()
