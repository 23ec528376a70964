"""Where maintenance works: in the lake itself if that is a folder, else in a small temporary working copy.

Of a remote lake the files that are rewritten are fetched there and the new ones brought to the bucket before their commit. A
folder of its own, so that a run loop that shares the working copy never finds a file gone that it was about to read.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.lake.lake import Lake
from pipelines.lake.lease import MAINTENANCE_NAME

FOLDER = ".work"


@contextmanager
def workplace(lake: Lake, name: str) -> Iterator[Lake]:
    """The same lake, to work in another folder if it is in a bucket; whoever asks sees to it that nobody else asks by this name.

    Raises:
        OSError: the disk refused.
    """
    folder = lake.root / FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)  # what a crash left
    try:
        yield Lake(lake.store.working_in(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def only_maintainer(lake: Lake, what: str) -> Iterator[None]:
    """Be the only one, on any machine, that rewrites or deletes files of a remote lake; of a folder, a file lock says so.

    Raises:
        RefusedError: another one is at work.
        RetryLaterError: the storage is away.
    """
    with lake.store.claimed(MAINTENANCE_NAME, "maintenance or retag", owner=what):
        yield
