"""Where a lake's files are stored: a folder of this machine, or a bucket with a folder as its working copy.

Every name is relative to the lake root and uses `/`. Callers never ask which kind of store they have: of a folder, bringing a
file to the store or deleting the local copy of a stored file does nothing, because both are the same file.
"""

import fcntl
import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, get_ident
from typing import Protocol

from catchment.runtime.atomic_files import sync_folder, write_atomic
from catchment.runtime.beneath import RefusedFileError, binary_beneath, folder_beneath, why_refused
from pipelines.config import RemoteConfig
from pipelines.errors import BadReferenceError, ConflictError, CorruptLakeError, PipelineError
from pipelines.lake.layout import OBJECTS, backfills_folder

NEW = ""  # the tag to replace with where there is no file yet
# The process that made a log's folder may have been killed before syncing it, so the first entries sync it again.
_YOUNG_VERSIONS = 2


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of the lake: its name below the lake root, its size, and when it was stored, in seconds since 1970."""

    name: str
    bytes: int
    modified_s: float


class Store(Protocol):
    """The files of one lake.

    Every method but `evict` raises RetryLaterError while the storage is unavailable, and OSError where this disk refuses.
    """

    @property
    def folder(self) -> Path:
        """Folder of this machine in which files are written and read; the store itself, or its working copy."""
        ...

    @property
    def renames_folders(self) -> bool:
        """Whether a folder takes its place, and leaves it, in one step, so that none is ever half there."""
        ...

    @property
    def looks_per_listing(self) -> int:
        """How many looks for something new one listing is worth."""
        ...

    @property
    def remote_config(self) -> RemoteConfig | None:
        """How another machine reaches the files; None where it must see the folder itself."""
        ...

    def has_local(self, name: str) -> bool:
        """Whether a file that never changes is opened in `folder`, without fetching it."""
        ...

    def local(self, name: str) -> Path:
        """Path of a file that never changes, fetched first if need be. Nothing is there if the store has no such file."""
        ...

    def check_plain(self, name: str, paths: Iterable[str]) -> None:
        """Refuse links among the files of a folder, for a library that would follow them.

        Raises:
            RefusedFileError: one of them, or the folder, is no plain file; its name is in the error.
        """
        ...

    def fetch(self, name: str, path: Path) -> bool:
        """Give a file that never changes a second place on this disk, durable; False if there is none."""
        ...

    def read(self, name: str) -> bytes:
        """Read a file as it is now.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def read_part(self, name: str, start: int, length: int) -> bytes:
        """Read some bytes of a file that has them.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def read_tagged(self, name: str) -> tuple[bytes, str] | None:
        """Read a file with the tag to replace it by; None if there is none."""
        ...

    def put(self, name: str, body: bytes) -> None:
        """Write a file, durable, whatever was there."""
        ...

    def move_in(self, path: Path, name: str) -> None:
        """Make a finished file of this disk a file of the store, durable, whatever was there; `path` is gone then."""
        ...

    def create(self, name: str, body: bytes | Path) -> None:
        """Write a file, durable, under a name that nobody has taken.

        Raises:
            ConflictError: somebody has.
        """
        ...

    def replace(self, name: str, body: bytes, tag: str) -> str:
        """Write a file, durable, in place of the one with this tag (`NEW`: of none); its own tag.

        Raises:
            ConflictError: it has been replaced meanwhile.
        """
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Delete the files that are there, and their local copies; of a folder in this order."""
        ...

    def files(self, name: str, after: str = "") -> list[Stored]:
        """Every file below a folder by name, of them those after a name. In a bucket a listing: not for frequent use.

        Raises:
            BadReferenceError: the folder is, or holds, a link.
        """
        ...

    def folders(self, name: str) -> list[str]:
        """The names of the folders in a folder. In a bucket a listing: not for frequent use."""
        ...

    def size(self, name: str) -> int | None:
        """The bytes of a file; None if there is none."""
        ...

    def copy(self, name: str, new_name: str) -> None:
        """Give a file that never changes a second name, unless something has it already.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def upload(self, names: Iterable[str]) -> None:
        """Bring files that were written in `folder` to the store. Nothing to do where that is the store."""
        ...

    def evict(self, names: Iterable[str]) -> None:
        """Delete the local copies of files that the store has. Nothing happens where `folder` is the store."""
        ...

    def copies(self, name: str, pattern: str) -> list[str]:
        """Names of the copies in `folder` below a folder, by a glob pattern; none where `folder` is the store."""
        ...

    def publish(self, name: str, body: bytes) -> None:
        """Show other machines a small file that is written in `folder` again and again. Nothing to do where they see that."""
        ...

    def published(self, name: str) -> list[Stored]:
        """The files below a folder that machines have published; none where all of them write into `folder`."""
        ...

    def claimed(
        self, name: str, what: str, *, owner: str = "", stop: Event | None = None
    ) -> AbstractContextManager[Callable[[], None]]:
        """Hold a claim against other machines; gives a check that raises RefusedError once it is lost.

        Args:
            name: the claim's name.
            what: the work that needs it, in a word.
            owner: told apart from other owners of this working copy; the same owner takes its own claim up at once.
            stop: ends the waiting for a silent holder.

        Raises:
            RefusedError: another one holds it.
        """
        ...

    def working_in(self, folder: Path) -> "Store":
        """The same files, written and read in another folder of this machine if they are in a bucket."""
        ...

    def table_uri(self, name: str) -> str:
        """The address of a table for the table library."""
        ...

    def table_options(self) -> dict[str, str] | None:
        """How the table library reaches the store."""
        ...

    def prepare_table(self, name: str) -> None:
        """Make the folder that the table library needs for a new table."""
        ...

    def table_stamp(self, name: str) -> tuple[int, int] | None:
        """Two numbers that change when something is committed to a table, the second a time in ns.

        None if there is no table, or if telling costs as much as opening it.
        """
        ...

    def may_have_table(self, name: str) -> bool:
        """Whether it is worth opening a table: False only if there is certainly none."""
        ...

    def table_error(self, name: str, error: Exception) -> PipelineError:
        """The error to raise where a table's log cannot be read: what to do next depends on where it is stored."""
        ...

    def sync_table(self, name: str, version: int | None, *, is_new: bool = False) -> None:
        """Make log entries of a table survive a power cut; the table library itself never calls fsync.

        Args:
            name: the table's folder.
            version: one that was there before; from it on entries are synced. None: the log is listed for the newest two.
            is_new: whether the table was created just now, so that its folders are synced as well.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A lake in a folder of this machine.

    Args:
        folder: the lake root.
        objects: another lake whose objects are read through this one, as a backfill does.
    """

    folder: Path
    objects: Store | None = None

    @property
    def renames_folders(self) -> bool:
        """True."""
        return True

    @property
    def looks_per_listing(self) -> int:
        """One: listing a folder costs little."""
        return 1

    @property
    def remote_config(self) -> RemoteConfig | None:
        """None: other machines must see the folder."""
        return None

    def has_local(self, name: str) -> bool:  # noqa: ARG002  # a file that is not there cannot be fetched either
        """Always: the folder is the store."""
        return True

    def local(self, name: str) -> Path:
        """Path of a file; an object of the other lake gets a second name here first."""
        path = self.folder / name
        if self.objects is not None and name.startswith(f"{OBJECTS}/") and not path.exists():
            self.objects.fetch(name, path)
        return path

    def fetch(self, name: str, path: Path) -> bool:
        """Give a file a second name on this disk, or a copy where file systems differ. No link is followed."""
        try:
            file = binary_beneath(self.folder, name)
        except FileNotFoundError:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path, "tmp")
        with file:
            try:
                os.link(file.name, temporary)
            except OSError:
                with temporary.open("wb") as out:
                    shutil.copyfileobj(file, out)
                    out.flush()
                    os.fsync(out.fileno())
        temporary.replace(path)
        return True

    def check_plain(self, name: str, paths: Iterable[str]) -> None:
        """Look at each file without following links. What is not there is left to its reader."""
        with folder_beneath(self.folder, name) as folder:
            for path in paths:
                with suppress(FileNotFoundError):
                    if reason := why_refused(os.stat(path, dir_fd=folder, follow_symlinks=False)):
                        raise RefusedFileError(reason, Path(path))

    def read(self, name: str) -> bytes:
        """Read a file."""
        return (self.folder / name).read_bytes()

    def read_part(self, name: str, start: int, length: int) -> bytes:
        """Read some bytes of a file."""
        with (self.folder / name).open("rb") as file:
            return os.pread(file.fileno(), length, start)

    def read_tagged(self, name: str) -> tuple[bytes, str] | None:
        """Read a file; its tag is a hash of its bytes."""
        try:
            body = self.read(name)
        except FileNotFoundError:
            return None
        return body, _tag(body)

    def put(self, name: str, body: bytes) -> None:
        """Write a file, durable."""
        write_atomic(self._in_its_folder(name), body, mode=0o644)

    def move_in(self, path: Path, name: str) -> None:
        """Rename a file."""
        whole = self._in_its_folder(name)
        path.rename(whole)
        sync_folder(whole.parent)

    def create(self, name: str, body: bytes | Path) -> None:
        """Write a file under a new name. A link, unlike a rename, refuses to replace: of two writers only one succeeds."""
        path = self._in_its_folder(name)
        temporary = _temporary(path, "new")
        write_atomic(temporary, body if isinstance(body, bytes) else body.read_bytes(), mode=0o644)
        try:
            path.hardlink_to(temporary)
        except FileExistsError as error:
            raise ConflictError(f"{path}: somebody else wrote it first") from error
        finally:
            temporary.unlink()

    def replace(self, name: str, body: bytes, tag: str) -> str:
        """Write a file in place of the one with this tag. One process at a time compares and writes in a folder."""
        path = self._in_its_folder(name)
        with _folder_locked(path.parent):
            found = self.read_tagged(name)
            if (NEW if found is None else found[1]) != tag:
                raise ConflictError(f"{path}: somebody else has replaced it")
            write_atomic(path, body, mode=0o644)
        return _tag(body)

    def delete(self, names: Sequence[str]) -> None:
        """Delete the files that are there, in this order."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def files(self, name: str, after: str = "") -> list[Stored]:
        """Every file below a folder; a link is refused, because what it leads to is not the lake's to list or delete."""
        steps = name.split("/")
        parents = [self.folder.joinpath(*steps[:count]) for count in range(1, len(steps) + 1)]
        links = [path for path in parents if path.is_symlink()]
        everything = [] if links else sorted((self.folder / name).rglob("*"))
        # Backfills have some of their own; nobody lists them to read or delete what they lead to.
        links += [path for path in everything if path.is_symlink() and not path.is_relative_to(backfills_folder(self.folder))]
        if links:
            raise BadReferenceError(f"{links[0]}: a link in the lake; put what it leads to in its place, or mount it there")
        found = {str(path.relative_to(self.folder)): path.stat() for path in everything if path.is_file()}
        return [Stored(each, stat.st_size, stat.st_mtime) for each, stat in sorted(found.items()) if each > after]

    def folders(self, name: str) -> list[str]:
        """The names of the folders in a folder."""
        folder = self.folder / name
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def size(self, name: str) -> int | None:
        """The bytes of a file."""
        try:
            return (self.folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def copy(self, name: str, new_name: str) -> None:
        """Give a file a second name by a hard link."""
        with suppress(FileExistsError):
            self._in_its_folder(new_name).hardlink_to(self.folder / name)

    def upload(self, names: Iterable[str]) -> None:
        """Do nothing: the files are there."""

    def evict(self, names: Iterable[str]) -> None:
        """Do nothing: these are no copies."""

    def copies(self, name: str, pattern: str) -> list[str]:  # noqa: ARG002  # whatever the folder
        """None: these are no copies."""
        return []

    def publish(self, name: str, body: bytes) -> None:
        """Do nothing: all machines see the folder."""

    def published(self, name: str) -> list[Stored]:  # noqa: ARG002  # likewise
        """None: all machines write into the folder."""
        return []

    @contextmanager
    def claimed(
        self,
        name: str,  # noqa: ARG002  # locks are files with names of their own
        what: str,  # noqa: ARG002  # likewise
        *,
        owner: str = "",  # noqa: ARG002  # likewise
        stop: Event | None = None,  # noqa: ARG002  # nobody is waited for
    ) -> Iterator[Callable[[], None]]:
        """Hold nothing: locks in the folder keep others away."""
        yield lambda: None

    def working_in(self, folder: Path) -> Store:  # noqa: ARG002  # only copies need a folder
        """This store: work in it is done in place."""
        return self

    def table_uri(self, name: str) -> str:
        """The table's folder."""
        return str(self.folder / name)

    def table_options(self) -> dict[str, str] | None:
        """None are needed."""
        return None

    def prepare_table(self, name: str) -> None:
        """Make the table's folder."""
        (self.folder / name).mkdir(parents=True, exist_ok=True)

    def table_stamp(self, name: str) -> tuple[int, int] | None:
        """The number and time of the log's folder."""
        try:
            stat = (self.folder / name / "_delta_log").stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns

    def may_have_table(self, name: str) -> bool:
        """Whether there is a log."""
        return (self.folder / name / "_delta_log").is_dir()

    def table_error(self, name: str, error: Exception) -> PipelineError:
        """CorruptLakeError: a disk does not go away for a while."""
        # The library's message ends in a stack trace of its own.
        reason = str(error).partition("\n")[0][:300]
        return CorruptLakeError(f"{self.folder / name}: its Delta log cannot be read ({reason}); restore _delta_log")

    def sync_table(self, name: str, version: int | None, *, is_new: bool = False) -> None:
        """Call fsync on entries and folders."""
        log = self.folder / name / "_delta_log"
        for entry in sorted(log.glob("*.json"))[-2:] if version is None else _entries_from(log, version):
            with entry.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(log)
        if version is None or version <= _YOUNG_VERSIONS:
            sync_folder(self.folder / name)
        if is_new:
            sync_folder((self.folder / name).parent)
            sync_folder(self.folder)

    def _in_its_folder(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _entries_from(log: Path, version: int) -> list[Path]:
    entries = (log / f"{number:020d}.json" for number in itertools.count(version))
    return list(itertools.takewhile(Path.exists, entries))


def _temporary(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.{ending}")


def _tag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
