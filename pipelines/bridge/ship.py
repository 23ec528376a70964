"""Bringing segments and objects to a remote lake, before anyone is told that they are durable.

The disk thread tries again on OSError and keeps the messages meanwhile; a storage that is away is the same to it.
"""

from pathlib import Path
from typing import Protocol

import structlog

from catchment.runtime.atomic_files import sync_folder
from pipelines.bridge.resume_number import number_not_run
from pipelines.bridge.segment import segment_number
from pipelines.errors import ConflictError, PipelineError, RetryLaterError
from pipelines.lake.copy import name_of
from pipelines.lake.layout import LANDING, OBJECTS
from pipelines.lake.remote import Remote

_MAX_ABSENT = 10_000

_log = structlog.get_logger(__name__)


class Away(Protocol):
    """Where sealed segments go on to."""

    def next_number(self) -> int:
        """The first number that is free there.

        Raises:
            OSError: not to be had for now.
        """
        ...

    def ship(self, sealed: Path) -> None:
        """Bring a sealed segment there; the file here goes with it.

        Raises:
            OSError: not for now.
        """
        ...


class ObjectStore(Protocol):
    """Where whole objects lie."""

    def size(self, digest: str) -> int | None:
        """The bytes of an object; None if it is not there.

        Raises:
            OSError: not to be had for now.
        """
        ...

    def settle(self, path: Path, whole: Path) -> None:
        """Put a finished file in its place, durable.

        Raises:
            OSError: not for now.
        """
        ...


class FolderOfObjects:
    """The lake's folder on this disk."""

    def __init__(self, objects: Path) -> None:
        self._objects = objects

    def size(self, digest: str) -> int | None:
        """The bytes of an object; None if it is not there."""
        whole = self._objects / digest
        return whole.stat().st_size if whole.exists() else None

    def settle(self, path: Path, whole: Path) -> None:
        """By rename."""
        path.rename(whole)
        sync_folder(self._objects)


class RemoteObjects:
    """The objects of a remote lake; nothing whole is kept here."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._absent: set[str] = set()

    def size(self, digest: str) -> int | None:
        """The bytes of an object; None if it is not there.

        Raises:
            OSError: the storage is away.
        """
        if digest in self._absent:
            return None  # the usual case: the next part of what was not there a moment ago
        try:
            found = self._remote.size(f"{OBJECTS}/{digest}")
        except RetryLaterError as error:
            raise OSError(str(error)) from error
        if found is None:
            if len(self._absent) >= _MAX_ABSENT:
                self._absent.clear()
            self._absent.add(digest)
        return found

    def settle(self, path: Path, whole: Path) -> None:
        """By put; the file here goes with it.

        Raises:
            OSError: the storage is away.
        """
        try:
            self._remote.put(f"{OBJECTS}/{whole.name}", path)
        except RetryLaterError as error:
            raise OSError(str(error)) from error
        self._absent.discard(whole.name)
        path.unlink()


class RemoteLanding:
    """One bridge's segments in a remote lake."""

    def __init__(self, remote: Remote, lake: Path, bridge: str) -> None:
        self._remote = remote
        self._lake = lake
        self._folder = f"{LANDING}/{bridge}"

    def next_number(self) -> int:
        """The first number that is free there: an empty disk must not start at 1 again.

        Nor may it where the landed segments were deleted: what lies below the runs' cursor would never be read.

        Raises:
            OSError: the storage is away.
        """
        try:
            last = self._remote.last_name(self._folder)
            cursor = number_not_run(self._lake, self._folder.rsplit("/", 1)[-1])
        except PipelineError as error:
            raise OSError(str(error)) from error
        return max(cursor, 1 if last is None else (segment_number(Path(last)) or 0) + 1)

    def ship(self, sealed: Path) -> None:
        """Bring a sealed segment away.

        Raises:
            OSError: the storage is away, or has another segment of this number.
        """
        name = name_of(self._lake, sealed)
        try:
            self._remote.create(name, sealed)
        except ConflictError as error:
            # Two disks have been this bridge. Its messages are not acknowledged: nothing is lost, but somebody must decide.
            _log.exception("segment_number_taken", name=name, hint="give this bridge a new bridge.id and an empty `lake` folder")
            raise OSError(str(error)) from error
        except RetryLaterError as error:
            raise OSError(str(error)) from error
        sealed.unlink()
