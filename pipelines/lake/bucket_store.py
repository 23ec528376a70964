"""A lake in a bucket, with a folder of this machine as its working copy."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from catchment.runtime.atomic_files import write_atomic
from pipelines.config import RemoteConfig
from pipelines.errors import PipelineError, RetryLaterError
from pipelines.lake.claims import Lease
from pipelines.lake.remote import Remote, bind
from pipelines.lake.store import NEW, Store, Stored

REQUESTS_AT_ONCE = 8
LOOKS_PER_LISTING = 100


@dataclass(frozen=True, slots=True)
class BucketStore:
    """A lake in a bucket.

    Args:
        folder: the working copy.
        bucket: the bucket and prefix.
    """

    folder: Path
    bucket: Remote

    @property
    def renames_folders(self) -> bool:
        """False: a bucket has files only."""
        return False

    @property
    def looks_per_listing(self) -> int:
        """A hundred: a listing costs requests."""
        return LOOKS_PER_LISTING

    @property
    def remote_config(self) -> RemoteConfig | None:
        """The bucket's configuration."""
        return self.bucket.config

    def has_local(self, name: str) -> bool:
        """Whether there is a copy."""
        return os.path.lexists(self.folder / name)

    def local(self, name: str) -> Path:
        """Path of a file that never changes, fetched unless it is here."""
        path = self.folder / name
        if not path.exists():
            self.bucket.fetch(name, path)
        return path

    def fetch(self, name: str, path: Path) -> bool:
        """Write an object to a file, a piece at a time."""
        return self.bucket.fetch(name, path)

    def check_plain(self, name: str, paths: Iterable[str]) -> None:
        """Do nothing: a bucket holds no links."""

    def read(self, name: str) -> bytes:
        """Read an object, whatever lies here."""
        found = self.bucket.get(name)
        if found is None:
            raise FileNotFoundError(self.bucket.where(name))
        return found[0]

    def read_part(self, name: str, start: int, length: int) -> bytes:
        """Read some bytes of an object by one request."""
        return self.bucket.part(name, start, length)

    def read_tagged(self, name: str) -> tuple[bytes, str] | None:
        """Read an object and its tag."""
        return self.bucket.get(name)

    def put(self, name: str, body: bytes) -> None:
        """Write the copy here, then the object."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, body, mode=0o644)
        self.bucket.put(name, body)

    def move_in(self, path: Path, name: str) -> None:
        """Store an object; the file is deleted once it is stored."""
        self.bucket.put(name, path)
        path.unlink()

    def create(self, name: str, body: bytes | Path) -> None:
        """Store an object by a put that the service refuses if the name is taken. The same bytes again are no conflict."""
        self.bucket.create(name, body)

    def replace(self, name: str, body: bytes, tag: str) -> str:
        """Store an object by a put that the service refuses if the tag has changed."""
        if tag == NEW:
            self.bucket.create(name, body)
            found = self.bucket.get(name)
            return found[1] if found is not None and found[0] == body else NEW
        return self.bucket.replace(name, body, tag)

    def delete(self, names: Sequence[str]) -> None:
        """Delete objects, several at once, in any order, each before its copy here."""
        self._at_once(self._delete, names)

    def files(self, name: str, after: str = "") -> list[Stored]:
        """Every object below a folder."""
        return self.bucket.listed(name, after)

    def folders(self, name: str) -> list[str]:
        """The names one level below a folder."""
        return self.bucket.folders(name)

    def size(self, name: str) -> int | None:
        """The bytes of an object."""
        return self.bucket.size(name)

    def copy(self, name: str, new_name: str) -> None:
        """Copy an object within the service."""
        if self.bucket.size(new_name) is None:
            self.bucket.copy(name, new_name)

    def upload(self, names: Iterable[str]) -> None:
        """Store files of the working copy, several at once."""
        self._at_once(lambda name: self.bucket.put(name, self.folder / name), [*names])

    def evict(self, names: Iterable[str]) -> None:
        """Delete copies here."""
        for name in [*names]:  # they may be found by looking at the folders they are deleted from
            (self.folder / name).unlink(missing_ok=True)

    def copies(self, name: str, pattern: str) -> list[str]:
        """Files of the working copy."""
        found = (path for path in sorted((self.folder / name).glob(pattern)) if path.is_file())
        return [str(path.relative_to(self.folder)) for path in found]

    def publish(self, name: str, body: bytes) -> None:
        """Put the file."""
        self.put(name, body)

    def published(self, name: str) -> list[Stored]:
        """Every object below the folder."""
        return self.files(name)

    @contextmanager
    def claimed(self, name: str, what: str, *, owner: str = "", stop: Event | None = None) -> Iterator[Callable[[], None]]:
        """Hold an object that says who holds it, and replace it again and again."""
        holder = ":".join(filter(None, (socket.gethostname(), str(self.folder.resolve()), owner)))
        with Lease(self, holder, self.bucket.config.claim_s, stop or Event(), name, what) as lease:
            yield lease.check

    def working_in(self, folder: Path) -> Store:
        """A second working copy, which says what it is."""
        bind(folder, self.bucket.config)
        return BucketStore(folder, self.bucket)

    def table_uri(self, name: str) -> str:
        """The table's address in the bucket."""
        return self.bucket.where(name)

    def table_options(self) -> dict[str, str] | None:
        """How the table library reaches the bucket; it takes keys from the environment."""
        return self.bucket.table_options()

    def prepare_table(self, name: str) -> None:
        """Do nothing: a bucket has no folders."""

    def table_stamp(self, name: str) -> tuple[int, int] | None:  # noqa: ARG002  # of no table
        """None: a listing of the log costs as much as opening the table."""
        return None

    def may_have_table(self, name: str) -> bool:  # noqa: ARG002  # answering would cost a request, as opening does
        """Always."""
        return True

    def table_error(self, name: str, error: Exception) -> PipelineError:
        """RetryLaterError: the storage may be unavailable for a while."""
        return RetryLaterError(f"{self.bucket.where(name)}: cannot be read ({error}); is the storage there?")

    def sync_table(self, name: str, version: int | None, *, is_new: bool = False) -> None:
        """Do nothing: what a bucket has stored is durable."""

    def _delete(self, name: str) -> None:
        self.bucket.delete(name)
        (self.folder / name).unlink(missing_ok=True)

    def _at_once(self, act: Callable[[str], None], names: Sequence[str]) -> None:
        if len(names) == 1:
            act(names[0])
            return
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            for _ in pool.map(act, names):
                pass
