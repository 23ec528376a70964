"""The working copy of a remote lake: what a run reads is fetched, what it wrote is delivered before its commit.

For a lake that is a folder every function here does what it always did on that folder, and nothing else.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.beneath import binary_beneath
from pipelines.errors import BadReferenceError, ConflictError, CorruptLakeError
from pipelines.lake.files import NewFile
from pipelines.lake.layout import LANDING, OBJECTS, PAYLOAD, STREAMS, backfills_folder, chips_path, prepared_path
from pipelines.lake.remote import Remote, Stored, lender_of, remote_of

_LENDING_FOLDER = "objects.lake"
PUTS_AT_ONCE = 8
LOOKS_TO_A_LISTING = 100

_looks: dict[Path, int] = {}
_bridges: dict[Path, list[str]] = {}


def at_hand(root: Path, path: Path) -> Path:
    """The same path, once the file that never changes is there, if it is anywhere.

    Raises:
        RetryLaterError: the storage is away.
    """
    if path.exists():
        return path
    remote = remote_of(root)
    if remote is None and path.parent.name == OBJECTS:
        remote = lender_of(root)
        _borrow(root, path)
    if remote is not None:
        remote.fetch(name_of(root, path), path)
    return path


def lend_objects_of(root: Path, small: Path) -> None:
    """Let a small lake have the objects of another one on this machine, each when it is asked for.

    Raises:
        OSError: the disk refused.
    """
    if (small / OBJECTS).is_symlink():
        (small / OBJECTS).unlink()  # as an earlier version did it; nothing is read through a link
    write_atomic(small / _LENDING_FOLDER, os.fsencode(root.resolve()), mode=0o644)


def _borrow(root: Path, path: Path) -> None:
    """Give an object of the lending lake a second name here, or a copy where file systems differ."""
    try:
        lender = Path(os.fsdecode((root / _LENDING_FOLDER).read_bytes()))
        file = binary_beneath(lender, f"{OBJECTS}/{path.name}")
    except FileNotFoundError:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
    with file:
        try:
            os.link(file.name, beside)
        except OSError:
            with beside.open("wb") as out:
                shutil.copyfileobj(file, out)
                out.flush()
                os.fsync(out.fileno())
    beside.replace(path)


def fresh(root: Path, path: Path) -> Path:
    """The same path, with what the remote lake has under that name now.

    Raises:
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    found = remote.get(name_of(root, path)) if remote is not None else None
    if found is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, found[0], mode=0o644)
    return path


def read_bytes(root: Path, path: Path) -> bytes:
    """A file's bytes as the lake, not the working copy, has them.

    Raises:
        FileNotFoundError: there is none.
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is None:
        return path.read_bytes()
    found = remote.get(name_of(root, path))
    if found is None:
        raise FileNotFoundError(path)
    return found[0]


def keep(root: Path, path: Path, body: bytes) -> None:
    """Write a file of the lake, durable.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    write_atomic(path, body, mode=0o644)
    remote = remote_of(root)
    if remote is not None:
        remote.put(name_of(root, path), body)


def discard(root: Path, path: Path) -> None:
    """Delete a file of the lake if it is there.

    Raises:
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is not None:
        remote.delete(name_of(root, path))
    path.unlink(missing_ok=True)


def discard_all(root: Path, paths: Sequence[Path]) -> None:
    """Delete files of the lake in this order; of a remote lake several at once, in any order.

    Raises:
        RetryLaterError: the storage is away.
    """
    if remote_of(root) is None:
        for path in paths:
            path.unlink(missing_ok=True)
        return
    with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
        for _ in pool.map(lambda path: discard(root, path), paths):
            pass


def deliver(root: Path, files: Sequence[NewFile]) -> None:
    """See to it that every file that a commit will name is in the lake, as it was written.

    Raises:
        CorruptLakeError: one is gone, or of another size.
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is not None:
        _put_all(remote, root, [root / file.path for file in files if (root / file.path).is_file()])
    for file in files:
        path = root / file.path
        size = path.stat().st_size if path.is_file() else remote.size(file.path) if remote is not None else None
        if size != file.bytes:
            raise CorruptLakeError(f"{path}: prepared with {file.bytes} bytes and no longer so; delete its run's prepared.json")


def deliver_payloads(root: Path, run: int, files: Sequence[NewFile]) -> None:
    """Bring the payload shards and chips that lie here to a remote lake.

    Raises:
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is not None:
        _put_all(remote, root, payload_paths(root, run, files))


def deliver_run(root: Path, run: int, files: Sequence[NewFile]) -> None:
    """Bring all that a run has prepared to a remote lake, and last the word that it is prepared.

    From here on any machine ends the run in the same way. No commit names payload shards, but rows will.

    Raises:
        CorruptLakeError: a file is gone, or of another size.
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is not None:
        deliver_payloads(root, run, files)
        deliver(root, files)
        _put_all(remote, root, [path for path in (chips_path(root, run), prepared_path(root, run)) if path.is_file()])


def payload_paths(root: Path, run: int, files: Iterable[NewFile]) -> list[Path]:
    """The files of this working copy that hold the payloads of a run's rows."""
    rows = [root / file.path for file in files if file.table.startswith(f"{STREAMS}/")]
    shards = [root / PAYLOAD / path.parent.name / path.name for path in rows]
    chips = [path for found in (root / "chips").glob(f"*/*/{run:012d}-*") for path in ([found], found.rglob("*"))[found.is_dir()]]
    return [path for path in [*shards, *chips] if path.is_file()]


def forget(root: Path, paths: Iterable[Path]) -> None:
    """Delete files of a working copy that the remote lake has; for a lake that is a folder, nothing."""
    if remote_of(root) is not None:
        for path in paths:
            path.unlink(missing_ok=True)


def bridges_of(root: Path) -> list[str]:
    """The bridges that have landed anything, by name. Of a remote lake they are listed at every hundredth call only.

    Raises:
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is not None:
        _looks[root] = _looks.get(root, -1) + 1
        if _looks[root] % LOOKS_TO_A_LISTING == 0:
            _bridges[root] = [name for name in remote.folders(LANDING) if not name.startswith(".")]
        return _bridges[root]
    folder = root / LANDING
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(each.name for each in found if each.is_dir() and not each.name.startswith("."))


def size_of(root: Path, path: Path) -> int | None:
    """The bytes of a file of the lake; None if there is none.

    Raises:
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is not None:
        return remote.size(name_of(root, path))
    return path.stat().st_size if path.exists() else None


def name_of(root: Path, path: Path) -> str:
    """A path as a name in the lake."""
    return str(path.relative_to(root))


def create(root: Path, path: Path, body: bytes) -> None:
    """Write a file of the lake under a name that nobody has taken, durable.

    Raises:
        ConflictError: there is one, with other bytes.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    remote = remote_of(root)
    if remote is not None:
        remote.create(name_of(root, path), body)
        return
    beside = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.new")
    write_atomic(beside, body, mode=0o644)
    try:
        # A link, unlike a rename, refuses to replace: of two writers only one gives the name its meaning.
        path.hardlink_to(beside)
    except FileExistsError as error:
        raise ConflictError(f"{path}: somebody else wrote it first") from error
    finally:
        beside.unlink()


def exchange(root: Path, path: Path, old: bytes | None, new: bytes) -> None:
    """Write a file of the lake, durable, in place of the bytes that were read from it; None: there was none.

    Raises:
        ConflictError: of a remote lake: somebody else has written it meanwhile.
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    remote = remote_of(root)
    if remote is None:
        write_atomic(path, new, mode=0o644)
        return
    name = name_of(root, path)
    found = remote.get(name)
    if (None if found is None else found[0]) != old:
        raise ConflictError(f"{remote.where(name)}: somebody else has written it meanwhile; try again")
    if found is None:
        remote.create(name, new)
    else:
        remote.replace(name, new, found[1])


def duplicate(root: Path, path: Path, new_path: Path) -> None:
    """Give a file of the lake that never changes a second name, unless it has it.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    if size_of(root, new_path) is not None:
        return
    remote = remote_of(root)
    if remote is not None:
        remote.copy(name_of(root, path), name_of(root, new_path))
    else:
        new_path.hardlink_to(path)


def folders_of(root: Path, parent: str) -> list[str]:
    """The names of the folders in a folder of the lake. Of a remote lake: a listing, so not for what is done often.

    Raises:
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is not None:
        return remote.folders(parent)
    folder = root / parent
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def files_of(root: Path, parent: str) -> list[Stored]:
    """Every file below a folder of the lake, by name. Of a remote lake: a listing, likewise.

    Raises:
        BadReferenceError: it is, or holds, a link: what it leads to is not the lake's to list, read or delete.
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is not None:
        return remote.listed(parent)
    links = [path for path in _with_parents(root, parent) if path.is_symlink()]
    everything = [] if links else sorted((root / parent).rglob("*"))
    # Backfills of today and before have some of their own; nobody lists them to read or delete what they lead to.
    links += [path for path in everything if path.is_symlink() and not path.is_relative_to(backfills_folder(root))]
    if links:
        raise BadReferenceError(f"{links[0]}: a link in the lake; put what it leads to in its place, or mount it there")
    found = [path for path in everything if path.is_file()]
    return [Stored(name_of(root, path), (stat := path.stat()).st_size, stat.st_mtime) for path in found]


def _with_parents(root: Path, name: str) -> list[Path]:
    steps = name.split("/")
    return [root.joinpath(*steps[:count]) for count in range(1, len(steps) + 1)]


def send(root: Path, paths: Sequence[Path]) -> None:
    """Bring files that lie here to a remote lake; for a lake that is a folder, nothing.

    Raises:
        RetryLaterError: the storage is away.
    """
    remote = remote_of(root)
    if remote is not None:
        _put_all(remote, root, paths)


def _put_all(remote: Remote, root: Path, paths: Sequence[Path]) -> None:
    with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
        for _ in pool.map(lambda path: remote.put(name_of(root, path), path), paths):
            pass
