"""A lake's store in memory, for tests: like a bucket it has a working copy, and like a folder it needs no server."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock

from pipelines.errors import ConflictError, CorruptLakeError, PipelineError
from pipelines.lake.store import NEW, Stored


@dataclass(frozen=True)
class MemoryStore:
    """Files in a dictionary; tables, which their library writes itself, lie in the folder."""

    folder: Path
    bodies: dict[str, bytes] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)
    renames_folders = False
    looks_per_listing = 1
    remote_config = None

    def has_local(self, name: str) -> bool:
        return (self.folder / name).exists()

    def local(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            self.fetch(name, path)
        return path

    def fetch(self, name: str, path: Path) -> bool:
        if name not in self.bodies:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.bodies[name])
        return True

    def check_plain(self, name: str, paths: Iterable[str]) -> None:
        pass

    def read(self, name: str) -> bytes:
        try:
            return self.bodies[name]
        except KeyError as error:
            raise FileNotFoundError(name) from error

    def read_part(self, name: str, start: int, length: int) -> bytes:
        return self.read(name)[start : start + length]

    def read_tagged(self, name: str) -> tuple[bytes, str] | None:
        body = self.bodies.get(name)
        return None if body is None else (body, _tag(body))

    def put(self, name: str, body: bytes) -> None:
        self.bodies[name] = body

    def move_in(self, path: Path, name: str) -> None:
        self.bodies[name] = path.read_bytes()
        path.unlink()

    def create(self, name: str, body: bytes | Path) -> None:
        new = body if isinstance(body, bytes) else body.read_bytes()
        with self.lock:
            if self.bodies.setdefault(name, new) != new:
                raise ConflictError(f"{name}: somebody else stored it first")

    def replace(self, name: str, body: bytes, tag: str) -> str:
        with self.lock:
            found = self.read_tagged(name)
            if (NEW if found is None else found[1]) != tag:
                raise ConflictError(f"{name}: somebody else has replaced it")
            self.bodies[name] = body
        return _tag(body)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self.bodies.pop(name, None)
        self.evict(names)

    def files(self, name: str, after: str = "") -> list[Stored]:
        below = sorted(each for each in self.bodies if each.startswith(f"{name}/") and each > after)
        return [Stored(each, len(self.bodies[each]), 0.0) for each in below]

    def folders(self, name: str) -> list[str]:
        rests = [file.name.removeprefix(f"{name}/") for file in self.files(name)]
        return sorted({rest.split("/")[0] for rest in rests if "/" in rest})

    def size(self, name: str) -> int | None:
        body = self.bodies.get(name)
        return None if body is None else len(body)

    def copy(self, name: str, new_name: str) -> None:
        self.bodies.setdefault(new_name, self.read(name))

    def upload(self, names: Iterable[str]) -> None:
        for name in names:
            self.bodies[name] = (self.folder / name).read_bytes()

    def evict(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def copies(self, name: str, pattern: str) -> list[str]:
        return [str(path.relative_to(self.folder)) for path in sorted((self.folder / name).glob(pattern)) if path.is_file()]

    def publish(self, name: str, body: bytes) -> None:
        self.put(name, body)

    def published(self, name: str) -> list[Stored]:
        return self.files(name)

    @contextmanager
    def claimed(self, name: str, what: str, *, owner: str = "", stop: Event | None = None) -> Iterator[Callable[[], None]]:
        yield lambda: None

    def working_in(self, folder: Path) -> "MemoryStore":
        return MemoryStore(folder, self.bodies, self.lock)

    def table_uri(self, name: str) -> str:
        return str(self.folder / name)

    def table_options(self) -> dict[str, str] | None:
        return None

    def prepare_table(self, name: str) -> None:
        (self.folder / name).mkdir(parents=True, exist_ok=True)

    def table_stamp(self, name: str) -> tuple[int, int] | None:
        return None

    def may_have_table(self, name: str) -> bool:
        return (self.folder / name / "_delta_log").is_dir()

    def table_error(self, name: str, error: Exception) -> PipelineError:
        return CorruptLakeError(f"{name}: {error}")

    def sync_table(self, name: str, version: int | None, *, is_new: bool = False) -> None:
        pass


def _tag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
