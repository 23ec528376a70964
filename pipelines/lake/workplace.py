"""Where maintenance works: in the lake itself if that is a folder, else in a small temporary working copy.

Of a remote lake the files that are rewritten are fetched there and the new ones brought to the bucket before their commit. A
folder of its own, so that a run loop that shares the working copy never finds a file gone that it was about to read.
"""

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from pipelines.lake.lease import MAINTENANCE_NAME, Lease
from pipelines.lake.remote import bind, remote_of

FOLDER = ".work"


@contextmanager
def workplace(root: Path, name: str) -> Iterator[Path]:
    """A lake root to work in; whoever asks sees to it that nobody else asks by this name.

    Raises:
        OSError: the disk refused.
    """
    remote = remote_of(root)
    if remote is None:
        yield root
        return
    folder = root / FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)  # what a crash left
    try:
        bind(folder, remote.config)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def only_maintainer(root: Path, what: str) -> Iterator[None]:
    """Be the only one, on any machine, that rewrites or deletes files of a remote lake; of a folder, a file lock says so.

    Raises:
        RefusedError: another one is at work.
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is None:
        yield
        return
    owner = f"{socket.gethostname()}:{root.resolve()}:{what}"
    with Lease(remote, owner, remote.config.claim_s, Event(), MAINTENANCE_NAME, "maintenance or retag"):
        yield
