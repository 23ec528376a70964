"""Loaded into one Dask worker: it ends as by SIGKILL when it has written the files of its second work item."""

import os
import signal

from pipelines.ingest import graph
from pipelines.ingest.work import ItemResult, Work
from pipelines.ingest.worker_main import settle_or_fail

NAME = "settle_of_one_who_lives"
taken = 0


def die_at_second(work: Work) -> ItemResult:
    global taken  # noqa: PLW0603  # one counter for the whole process is the point
    result: ItemResult = getattr(graph, NAME)(work)
    taken += 1
    if taken == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


if not hasattr(graph, NAME):  # a preloaded module is loaded twice
    setattr(graph, NAME, settle_or_fail)
    vars(graph)["settle_or_fail"] = die_at_second
