"""Settle work items in a process of the pool, or on a remote machine. See `catchment.runtime.worker.child`.

Nothing here may import Beam: a worker must start quickly.

A remote machine shares nothing with the run loop but the bucket: `CATCHMENT_WORK_FOLDER` names its own folder, and the files
are brought to the bucket. Without it the worker uses the loop's folder, as it must where the lake is a folder that all
machines see.
"""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from pipelines.config import RemoteConfig
from pipelines.ingest.settle import settle_around_faults, settle_item
from pipelines.ingest.work import FAULT, ItemResult, Work, failure_of
from pipelines.lake.files import payload_paths, upload_files, upload_payloads
from pipelines.lake.lake import Lake, lake_at
from pipelines.lake.remote import bind, remote_of
from pipelines.logs import log_to_stderr

FOLDER_VARIABLE = "CATCHMENT_WORK_FOLDER"

log = structlog.get_logger(__name__)


def localize(work: Work) -> Work:
    """The same work item, with the folder that this machine works in.

    Raises:
        ConfigError: the folder belongs to another lake.
    """
    return msgspec.structs.replace(work, root=str(local_folder(work.root, work.remote)))


def local_folder(root: str, remote: RemoteConfig | None) -> Path:
    """The folder that this machine works in, for a lake whose loop works in `root`.

    Raises:
        ConfigError: the folder belongs to another lake.
    """
    if remote is None:
        return Path(root)
    folder = Path(os.environ.get(FOLDER_VARIABLE) or root)
    folder.mkdir(parents=True, exist_ok=True)
    if remote_of(folder) is None:
        bind(folder, remote)
    return folder


def upload(lake: Lake, work: Work, result: ItemResult) -> ItemResult:
    """The same result, once its files are in the remote lake; those here are deleted.

    Raises:
        RetryLaterError: the storage is away.
        CorruptLakeError: a file is gone, or of another size.
    """
    if work.remote is not None and result.failure is None:
        upload_payloads(lake, result.files)
        upload_files(lake, result.files)
        lake.evict([*payload_paths(lake, result.files), *(lake.root / file.path for file in result.files)])
    return result


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
        lake = lake_at(Path(work.root))
        return upload(lake, work, settle_item(lake, work, tell if work.careful and note is not None else None))
    except Exception as error:  # noqa: BLE001  # the family is told in the result, whatever it is
        failure = failure_of(error)
        is_of_the_item = failure.kind == FAULT or (isinstance(error, MemoryError) and work.limits.worker_memory_bytes > 0)
    if not is_of_the_item:
        return ItemResult(work.item, (), (), failure)
    log.error("fault_met", run=work.run, item=work.item, trace=failure.trace)
    try:
        return upload(lake, work, settle_around_faults(lake, work))
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
    """Do what libraries put off until their first use, before anybody waits: Arrow imports pandas at its first array."""
    column = pa.array(np.zeros(1))
    pq.write_table(pa.table({"": column}), pa.BufferOutputStream())
    pl.DataFrame({"": [0.0]}).select(pl.col("").is_finite()).get_columns()


def _limit_memory(max_bytes: int) -> None:
    """Memory of its own, not files mapped: a body that asks for more ends its worker, not the machine."""
    if max_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, resource.RLIM_INFINITY))
