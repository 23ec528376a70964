"""The target of the pool's processes: settles work items. See `catchment.runtime.worker.child`.

Nothing here may import Beam: a worker must start quickly.

Stands alone because worker processes start with it, without Beam.
"""

import resource
from collections.abc import Callable

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
from pipelines.logs import log_to_stderr

log = structlog.get_logger(__name__)


def settle_or_fail(work: Work, note: Callable[[bytes], None] | None = None) -> ItemResult:
    """The item's result, or why there is none, as a value.

    Args:
        work: the item.
        note: takes the name of each message before it is opened, if the item asks for care.
    """

    def tell(segment: int, message: int) -> None:
        assert note is not None
        note(msgspec.json.encode((segment, message)))

    try:
        work = localize(work)
        return upload(work, settle_item(work, tell if work.careful and note is not None else None))
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


def open_settler(_options: bytes, note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Get ready to settle items; a request is one item, answered with its result."""
    log_to_stderr()
    _rehearse()

    def settle(request: bytes) -> bytes:
        work = msgspec.json.decode(request, type=Work)
        _limit_memory(work.limits.worker_memory_bytes)
        return msgspec.json.encode(settle_or_fail(work, note))

    return settle


def _rehearse() -> None:
    """What libraries put off until their first use, done before anybody waits: Arrow imports pandas at its first array."""
    column = pa.array(np.zeros(1))
    pq.write_table(pa.table({"": column}), pa.BufferOutputStream())
    pl.DataFrame({"": [0.0]}).select(pl.col("").is_finite()).get_columns()


def _limit_memory(max_bytes: int) -> None:
    """Memory of its own, not files mapped: a body that asks for more ends its worker, not the machine."""
    if max_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, resource.RLIM_INFINITY))
