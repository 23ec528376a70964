"""When a process of these tests may fork: before Delta Lake, Arrow or Polars have started the threads of their pools.

A child has none of its parent's threads, and a pool whose threads are gone waits for them permanently. So a process that forks
imports these libraries and calls none of them. For tests only: nothing of the core itself ever forks.
"""

import os
from pathlib import Path

from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.utils.interactive_utils import is_in_ipython

# What the first graph would import; a child that lives for a second is not to spend half of it on that.
FIRST_GRAPH_NEEDS = (fn_runner, is_in_ipython())

# Allocators' housekeepers, made for forks, and the thread by which Polars deletes what it had to put on disk.
HARMLESS = {"jemalloc_bg_thd", "polars-ooc-clea"}
# OpenBLAS starts its threads when it is imported, unless it is told to have none.
NO_POOLS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def fork() -> int:
    """Fork as `os.fork` does.

    Raises:
        RuntimeError: there are threads that a fork would leave behind.
    """
    tasks = [found for found in Path("/proc/self/task").iterdir() if found.name != str(os.getpid())]
    strange = {(found / "comm").read_text().strip() for found in tasks} - HARMLESS
    if strange:
        raise RuntimeError(f"threads before a fork: {sorted(strange)}; what started them belongs into the child")
    return os.fork()
