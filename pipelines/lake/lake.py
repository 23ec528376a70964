"""A lake as the core works with it: its store, and paths in the folder of this machine where files are written and read.

It is built once where a command or a process starts (`lake_of`, `lake_at`) and passed around. Every path that a method takes
lies below `root`.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.config import CoreConfig
from pipelines.errors import ConflictError
from pipelines.lake.bucket_store import BucketStore
from pipelines.lake.layout import OBJECTS
from pipelines.lake.remote import LENDER as BUCKET_LENDER
from pipelines.lake.remote import bind, lender_of, remote_of
from pipelines.lake.store import NEW, LocalStore, Store, Stored

if TYPE_CHECKING:
    from pipelines.lake.view import View

LENDER = "objects.lake"
T = TypeVar("T")

# For the life of the process, by lake root and what is listed: how often it was looked at since the listing, and what was found.
_kept: dict[tuple[Path, str], tuple[int, list[Any]]] = {}


@dataclass(frozen=True, slots=True)
class Lake:
    """A lake.

    Args:
        store: its files.
    """

    store: Store

    @property
    def root(self) -> Path:
        """Folder of this machine in which files are written and read: the lake itself, or the working copy of one in a bucket."""
        return self.store.folder

    def view(self) -> "View":
        """The rows and payloads of the lake, for a reader: the one place where rules of access can stand."""
        from pipelines.lake.view import View  # noqa: PLC0415  # the table library, for readers only

        return View(self)

    def name_of(self, path: Path) -> str:
        """A path as a name in the lake."""
        return str(path.relative_to(self.root))

    def local(self, path: Path) -> Path:
        """The same path, once the file that never changes is there, if the lake has it.

        Raises:
            RetryLaterError: the storage is unavailable.
        """
        return path if path.exists() else self.store.local(self.name_of(path))

    def read(self, path: Path) -> bytes:
        """Read a file as the lake, not the working copy, has it.

        Raises:
            FileNotFoundError: there is none.
            RetryLaterError: the storage is unavailable.
        """
        return self.store.read(self.name_of(path))

    def put(self, path: Path, body: bytes) -> None:
        """Write a file, durable.

        Raises:
            RetryLaterError: the storage is unavailable.
            OSError: the disk refused.
        """
        self.store.put(self.name_of(path), body)

    def create(self, path: Path, body: bytes) -> None:
        """Write a file under a name that nobody has taken, durable.

        Raises:
            ConflictError: there is one, with other bytes.
            RetryLaterError: the storage is unavailable.
            OSError: the disk refused.
        """
        self.store.create(self.name_of(path), body)

    def exchange(self, path: Path, old: bytes | None, new: bytes) -> None:
        """Write a file, durable, in place of the bytes that were read from it; None: there was none.

        Raises:
            ConflictError: somebody else has written it meanwhile.
            RetryLaterError: the storage is unavailable.
            OSError: the disk refused.
        """
        name = self.name_of(path)
        found = self.store.read_tagged(name)
        if (None if found is None else found[0]) != old:
            raise ConflictError(f"{self.store.table_uri(name)}: somebody else has written it meanwhile; try again")
        self.store.replace(name, new, NEW if found is None else found[1])

    def delete(self, *paths: Path) -> None:
        """Delete files that are there; of a folder in this order, in a bucket several at once.

        Raises:
            RetryLaterError: the storage is unavailable.
        """
        self.store.delete([self.name_of(path) for path in paths])

    def size(self, path: Path) -> int | None:
        """The bytes of a file; None if there is none.

        Raises:
            RetryLaterError: the storage is unavailable.
        """
        return self.store.size(self.name_of(path))

    def copy(self, path: Path, new_path: Path) -> None:
        """Give a file that never changes a second name, unless something has it.

        Raises:
            RetryLaterError: the storage is unavailable.
            OSError: the disk refused.
        """
        self.store.copy(self.name_of(path), self.name_of(new_path))

    def folders(self, name: str) -> list[str]:
        """The names of the folders in a folder. In a bucket a listing: not for frequent use.

        Raises:
            RetryLaterError: the storage is unavailable.
        """
        return self.store.folders(name)

    def files(self, name: str, after: str = "") -> list[Stored]:
        """Every file below a folder by name, of them those after a name. In a bucket a listing, likewise.

        Raises:
            BadReferenceError: the folder is, or holds, a link.
            RetryLaterError: the storage is unavailable.
        """
        return self.store.files(name, after)

    def upload(self, paths: Iterable[Path]) -> None:
        """Bring files that were written here to the store.

        Raises:
            RetryLaterError: the storage is unavailable.
        """
        self.store.upload(self.name_of(path) for path in paths)

    def evict(self, paths: Iterable[Path]) -> None:
        """Delete local copies of files that the store has."""
        self.store.evict(self.name_of(path) for path in paths)


def lake_of(core: CoreConfig) -> Lake:
    """The lake of a core; its folder is made the working copy of the bucket if there is one.

    Raises:
        ConfigError: the folder is the working copy of another bucket, or a lake of its own.
    """
    bind(core.lake_root, core.remote)
    return lake_at(core.lake_root)


def read_objects_through(lake: Lake, small: Path) -> None:
    """Let the small lake in a folder read objects of this lake, each when it is needed.

    Raises:
        OSError: the disk refused.
    """
    if lake.store.remote_config is not None:
        write_atomic(small / BUCKET_LENDER, msgspec.json.encode(lake.store.remote_config), mode=0o644)
        return
    if (small / OBJECTS).is_symlink():
        (small / OBJECTS).unlink()  # as an earlier version did it; nothing is read through a link
    write_atomic(small / LENDER, os.fsencode(lake.root.resolve()), mode=0o644)


def lake_at(root: Path) -> Lake:
    """The lake whose folder, or working copy, this is, as the folder's own marker files say."""
    bucket = remote_of(root)
    return Lake(BucketStore(root, bucket) if bucket is not None else LocalStore(root, _objects_of(root)))


def _objects_of(root: Path) -> Store | None:
    """The lake whose objects a backfill's small lake reads through its own; None for most."""
    bucket = lender_of(root)
    if bucket is not None:
        return BucketStore(root, bucket)
    try:
        return LocalStore(Path(os.fsdecode((root / LENDER).read_bytes())))
    except FileNotFoundError:
        return None


def polled(lake: Lake, what: str, listing: Callable[[], list[T]]) -> list[T]:
    """What a listing finds, or found a while ago where listings cost requests.

    Raises:
        RetryLaterError: the storage is unavailable.
    """
    looks, found = _kept.get((lake.root, what), (0, []))
    if looks % lake.store.looks_per_listing == 0:
        found = listing()
    _kept[lake.root, what] = (looks + 1, found)
    return found


def poll_again(lake: Lake, what: str) -> None:
    """Let the next look be a listing, however short ago the last one was."""
    _kept.pop((lake.root, what), None)
