"""Upkeep that ends as by SIGKILL at its k-th durable step.

python dies_at_upkeep.py <lake> <k>      k = 0: never; prints how many steps there were
"""

import sys
from pathlib import Path

from pipelines.upkeep.maintain import maintain
from pipelines.upkeep.vacuum import Keep
from tests.fakes import durable_steps

durable_steps.count("fsync", "replace", "rename", "unlink")
maintain(Path(sys.argv[1]), Keep(0, 0, 0, 0))
durable_steps.end()
