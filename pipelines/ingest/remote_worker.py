"""A work item on a machine that shares nothing with the run loop but the bucket: its own folder, and files that go home.

`CATCHMENT_WORK_FOLDER` names the folder on such a machine; without it the worker uses the loop's folder, as it must where
the lake is a folder that all machines see.
"""

import os
from pathlib import Path

import msgspec

from pipelines.config import RemoteConfig
from pipelines.ingest.work import ItemResult, Work
from pipelines.lake.lake import lake_at
from pipelines.lake.remote import bind, remote_of
from pipelines.lake.upload import payload_paths, upload_files, upload_payloads

FOLDER_VARIABLE = "CATCHMENT_WORK_FOLDER"


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


def upload(work: Work, result: ItemResult) -> ItemResult:
    """The same result, once its files are in the remote lake; those here are deleted.

    Raises:
        RetryLaterError: the storage is away.
        CorruptLakeError: a file is gone, or of another size.
    """
    lake = lake_at(Path(work.root))
    if work.remote is not None and result.failure is None:
        upload_payloads(lake, result.files)
        upload_files(lake, result.files)
        lake.evict([*payload_paths(lake, result.files), *(lake.root / file.path for file in result.files)])
    return result
