"""A worker process of the pool: reads work items from its standard input and answers on its standard output, until that ends.

Whatever else is printed goes to standard error. Nothing here may import Beam: a worker must start quickly.
"""

import ctypes
import os
import resource
import signal
import sys

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from pipelines.ingest.isolate import settle_around_faults
from pipelines.ingest.outcome import FAULT, failure_of
from pipelines.ingest.remote_worker import localize, upload
from pipelines.ingest.settle import settle_item
from pipelines.ingest.work import ItemResult, Work
from pipelines.ingest.workers import HEAD, PLACE, READY, RESULT
from pipelines.logs import log_to_stderr

_PR_SET_PDEATHSIG = 1

log = structlog.get_logger(__name__)


def settle_or_fail(work: Work, answer: int | None = None) -> ItemResult:
    """The item's result, or why there is none, as a value.

    Args:
        work: the item.
        answer: where each message is named before it is opened, if the item asks for care.
    """

    def tell(segment: int, message: int) -> None:
        _send(answer, PLACE, msgspec.json.encode((segment, message)))

    try:
        work = localize(work)
        return upload(work, settle_item(work, tell if work.careful and answer is not None else None))
    except Exception as error:  # noqa: BLE001  # the family is told in the result, whatever it is
        failure = failure_of(error)
        is_of_the_item = failure.kind == FAULT or (isinstance(error, MemoryError) and work.limits.worker_memory_bytes > 0)
    if not is_of_the_item:
        return ItemResult(work.item, (), (), failure)
    log.error("fault_met", run=work.run, item=work.item, trace=failure.trace)
    try:
        return upload(work, settle_around_faults(work))
    except Exception as error:  # noqa: BLE001  # likewise
        return ItemResult(work.item, (), (), failure_of(error))


def main() -> None:
    """Serve until standard input ends."""
    # Ctrl-C and an init system's SIGTERM reach the whole group: the loop decides when a worker ends, by closing its input.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answer = os.dup(1)
    os.dup2(2, 1)
    log_to_stderr()
    _rehearse()
    _send(answer, READY, b"")
    source = sys.stdin.buffer
    while head := source.read(HEAD.size):
        _kind, size = HEAD.unpack(head)
        work = msgspec.json.decode(source.read(size), type=Work)
        _limit_memory(work.limits.worker_memory_bytes)
        _send(answer, RESULT, msgspec.json.encode(settle_or_fail(work, answer)))


def _rehearse() -> None:
    """What libraries put off until their first use, done before anybody waits: Arrow imports pandas at its first array."""
    column = pa.array(np.zeros(1))
    pq.write_table(pa.table({"": column}), pa.BufferOutputStream())
    pl.DataFrame({"": [0.0]}).select(pl.col("").is_finite()).get_columns()


def _limit_memory(max_bytes: int) -> None:
    """Memory of its own, not files mapped: a body that asks for more ends its worker, not the machine."""
    if max_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, resource.RLIM_INFINITY))


def _send(descriptor: int | None, kind: bytes, body: bytes) -> None:
    assert descriptor is not None
    frame = memoryview(HEAD.pack(kind, len(body)) + body)
    while frame:
        frame = frame[os.write(descriptor, frame) :]


if __name__ == "__main__":
    main()
