"""Loaded into one Dask worker: it ends as by SIGKILL when it has written the files of its second work item."""

import os
import signal

from pipelines.ingest import graph
from pipelines.ingest.work import ItemResult, Work

settle = graph.settle_or_fail
taken = 0


def die_at_second(work: Work) -> ItemResult:
    global taken  # noqa: PLW0603  # one counter for the whole process is the point
    result = settle(work)
    taken += 1
    if taken == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


graph.settle_or_fail = die_at_second
