"""A lake root on S3-compatible storage, with a folder of this machine as its working copy.

The folder says so with `remote.json`. Everything that must outlive this machine goes to the bucket before anyone is told:
segments and objects before the ack, plan, files, ledger before the commit. What is decided once is decided by a put that
the storage refuses if the name is taken (`If-None-Match: *`), so no lock server is needed. Names follow from numbers, so
nothing is listed but the bridges, now and then.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from threading import get_ident
from typing import Any

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.config import RemoteConfig
from pipelines.errors import ConfigError, ConflictError, RetryLaterError
from pipelines.lake.store import Stored

MARKER = "remote.json"
LENDER = "objects.remote.json"
CONNECT_S = 5
# Processes that were forked from one in which the library had run.
_LOST: set[int] = set()


@dataclass(frozen=True, slots=True)
class Remote:
    """The bucket and prefix of a lake. Every name is relative to the lake root."""

    config: RemoteConfig

    def where(self, name: str) -> str:
        """A name's address, for the table library."""
        return f"{self.config.url.rstrip('/')}/{name}"

    def table_options(self) -> dict[str, str]:
        """How the table library reaches the bucket; keys and secrets it takes from the environment."""
        config = self.config
        options = {
            "AWS_REGION": config.region,
            "AWS_ALLOW_HTTP": str(config.endpoint.startswith("http://")).lower(),
            "timeout": f"{config.timeout_s}s",
            "connect_timeout": f"{CONNECT_S}s",
            "max_retries": str(config.retries),
            "retry_timeout": f"{config.retry_s}s",
        }
        return {**options, "AWS_ENDPOINT_URL": config.endpoint} if config.endpoint else options

    def size(self, name: str) -> int | None:
        """The bytes of an object; None if there is none.

        Raises:
            RetryLaterError: the storage is away.
        """
        import obstore  # noqa: PLC0415  # an extra

        try:
            with translate_errors(self.where(name)):
                return int(obstore.head(store(self.config), name)["size"])
        except FileNotFoundError:
            return None

    def get(self, name: str) -> tuple[bytes, str] | None:
        """An object's bytes and tag; None if there is none.

        Raises:
            RetryLaterError: the storage is away.
        """
        import obstore  # noqa: PLC0415  # an extra

        try:
            with translate_errors(self.where(name)):
                found = obstore.get(store(self.config), name)
                return bytes(found.bytes()), str(found.meta["e_tag"])
        except FileNotFoundError:
            return None

    def part(self, name: str, start: int, length: int) -> bytes:
        """Some bytes of an object.

        Raises:
            FileNotFoundError: there is no such object.
            RetryLaterError: the storage is away, or the object is shorter.
        """
        import obstore  # noqa: PLC0415  # an extra

        with translate_errors(self.where(name)):
            return bytes(obstore.get_range(store(self.config), name, start=start, length=length))

    def fetch(self, name: str, path: Path) -> bool:
        """Write an object to a file, a piece at a time; False if there is none.

        Raises:
            RetryLaterError: the storage is away.
            OSError: the disk refused.
        """
        import obstore  # noqa: PLC0415  # an extra

        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.tmp")
        try:
            with translate_errors(self.where(name)), temporary.open("wb") as file:
                for piece in obstore.get(store(self.config), name).stream():
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())  # what has the name is trusted permanently
            temporary.replace(path)
        except FileNotFoundError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def copy(self, name: str, new_name: str) -> None:
        """Give an object a second name, without its bytes coming here.

        Raises:
            FileNotFoundError: there is no such object.
            RetryLaterError: the storage is away.
        """
        import obstore  # noqa: PLC0415  # an extra

        with translate_errors(self.where(name)):
            obstore.copy(store(self.config), name, new_name)

    def put(self, name: str, body: bytes | Path) -> None:
        """Store an object, whatever was there.

        Raises:
            RetryLaterError: the storage is away.
        """
        import obstore  # noqa: PLC0415  # an extra

        with translate_errors(self.where(name)):
            obstore.put(store(self.config), name, body)

    def create(self, name: str, body: bytes | Path) -> None:
        """Store an object under a name that nobody has taken.

        Raises:
            ConflictError: somebody has, with other bytes.
            RetryLaterError: the storage is away.
        """
        import obstore  # noqa: PLC0415  # an extra
        from obstore.exceptions import AlreadyExistsError, PreconditionError  # noqa: PLC0415  # an extra

        try:
            with translate_errors(self.where(name)):
                obstore.put(store(self.config), name, body, mode="create")
        except (AlreadyExistsError, PreconditionError) as error:
            # An answer that was lost makes the second try of the same put look like somebody else's.
            found = self.get(name)
            if found is None or found[0] != (body.read_bytes() if isinstance(body, Path) else body):
                raise ConflictError(f"{self.where(name)}: somebody else stored it first") from error

    def replace(self, name: str, body: bytes, tag: str) -> str:
        """Store an object in place of the one with this tag; its own tag.

        Raises:
            ConflictError: it has been replaced meanwhile.
            RetryLaterError: the storage is away.
        """
        import obstore  # noqa: PLC0415  # an extra
        from obstore.exceptions import NotFoundError, PreconditionError  # noqa: PLC0415  # an extra

        try:
            with translate_errors(self.where(name)):
                return str(obstore.put(store(self.config), name, body, mode={"e_tag": tag})["e_tag"])
        except (PreconditionError, NotFoundError, FileNotFoundError) as error:
            found = self.get(name)
            if found is None or found[0] != body:
                raise ConflictError(f"{self.where(name)}: somebody else has replaced it") from error
            return found[1]

    def delete(self, name: str) -> None:
        """Delete an object if it is there.

        Raises:
            RetryLaterError: the storage is away.
        """
        import obstore  # noqa: PLC0415  # an extra

        try:
            with translate_errors(self.where(name)):
                obstore.delete(store(self.config), name)
        except FileNotFoundError:
            return

    def folders(self, name: str) -> list[str]:
        """The names one level below a folder: a listing, so not for what is done often.

        Raises:
            RetryLaterError: the storage is away.
        """
        import obstore  # noqa: PLC0415  # an extra

        with translate_errors(self.where(name)):
            found = obstore.list_with_delimiter(store(self.config), f"{name}/")
            return sorted(str(prefix).rsplit("/", 1)[-1] for prefix in found["common_prefixes"])

    def listed(self, name: str, after: str = "") -> list[Stored]:
        """What lies below a folder, by name, of it what comes after a name: a listing, likewise.

        Raises:
            RetryLaterError: the storage is away.
        """
        import obstore  # noqa: PLC0415  # an extra

        with translate_errors(self.where(name)):
            pages = obstore.list(store(self.config), f"{name}/", offset=after or None)
            found = [Stored(str(one["path"]), one["size"], one["last_modified"].timestamp()) for page in pages for one in page]
        return sorted(found, key=lambda one: one.name)


def bind(root: Path, config: RemoteConfig | None) -> None:
    """Make a folder the working copy of a remote lake; nothing happens without one.

    Raises:
        ConfigError: it is the working copy of another, or a lake of its own.
    """
    found = remote_of(root)
    if config is None and found is None:
        return
    if config is None or (found is not None and found.config.url != config.url):
        known = found.config.url if found else "nothing"
        raise ConfigError(f"{root}: is the working copy of {known}; give `lake` another folder")
    if found is None and (root / "commits" / "_delta_log").is_dir():
        raise ConfigError(f"{root}: is a lake of its own; give `lake` an empty folder as the working copy of {config.url}")
    if found is not None and found.config == config:
        return
    root.mkdir(parents=True, exist_ok=True)
    write_atomic(root / MARKER, msgspec.json.encode(config), mode=0o644)


def remote_of(root: Path) -> Remote | None:
    """The remote lake that a folder is the working copy of; None if it is the lake itself."""
    try:
        written = (root / MARKER).stat().st_mtime_ns
    except FileNotFoundError:
        return None
    return _read_marker(root / MARKER, written)


def lender_of(root: Path) -> Remote | None:
    """The remote lake whose objects a folder may have; None for most."""
    try:
        written = (root / LENDER).stat().st_mtime_ns
    except FileNotFoundError:
        return None
    return _read_marker(root / LENDER, written)


@lru_cache(maxsize=16)
def _read_marker(path: Path, _written_ns: int) -> Remote:
    return Remote(msgspec.json.decode(path.read_bytes(), type=RemoteConfig))


@contextmanager
def translate_errors(where: str) -> Iterator[None]:
    """What the storage library raises, as what to do next. Answers that are no failure pass."""
    from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError  # noqa: PLC0415  # an extra

    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except NotFoundError as error:
        raise FileNotFoundError(where) from error
    except BaseError as error:
        reason = str(error).split("\n", 1)[0]
        raise RetryLaterError(f"{where}: {reason}; is the storage there, and are its keys right?") from error


@lru_cache(maxsize=16)
def store(config: RemoteConfig) -> Any:
    """The bucket, opened once for each configuration.

    Raises:
        ConfigError: the library is not installed.
    """
    try:
        from obstore.store import S3Store  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ConfigError("a remote lake needs the extra `s3`: pip install 'catchment[s3]'") from error
    more: dict[str, Any] = {"endpoint": config.endpoint} if config.endpoint else {}
    return S3Store.from_url(
        config.url,
        region=config.region,
        client_options={
            "allow_http": config.endpoint.startswith("http://"),
            "timeout": f"{config.timeout_s}s",
            "connect_timeout": f"{CONNECT_S}s",
        },
        retry_config={"max_retries": config.retries, "retry_timeout": timedelta(seconds=config.retry_s)},
        **more,
    )


def is_lost_by_fork() -> bool:
    """Whether this process was forked from one in which the library had run: then its requests would wait forever."""
    return os.getpid() in _LOST


def _note_fork() -> None:
    if store.cache_info().currsize or _LOST:
        _LOST.add(os.getpid())


os.register_at_fork(after_in_child=_note_fork)
