"""The signed metadata files of the model repository: read, signed, tried as a device would; and the ceremony of a new root.

Every file but `timestamp.json` is written once. A change is published by replacing that one file, last.

A root that has expired is replaced the same way: devices follow any chain of roots, and judge the last one's expiry alone.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import Clock
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.rollout.keys import ROLES, KeyFolder

_BASE_URL = "repository://"
LIFETIMES = {
    "root": timedelta(days=3 * 365),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=90),
    # How long a device can be held on old models by somebody who cuts it off from the repository.
    "timestamp": timedelta(days=14),
}
# What one file may have: a device on a slow link reads it for each new model.
MAX_METADATA_BYTES = 256 * 1024
TARGETS = "targets"
SignedT = TypeVar("SignedT", Root, Targets, Snapshot, Timestamp)
_MAX_BYTES = 512_000


class _FolderFetcher(FetcherInterface):
    """Reads the files of a repository, and the timestamp that is not written yet."""

    def __init__(self, root: Path, timestamp: bytes) -> None:
        self._root = root
        self._timestamp = timestamp

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix(_BASE_URL)
        if path == "metadata/timestamp.json":
            return iter((self._timestamp,))
        try:
            return iter(((self._root / path).read_bytes(),))
        except OSError as error:
            raise DownloadHTTPError(f"{path} is not in the repository", 404) from error


def check_as_device(root: Path, timestamp: bytes, now: datetime, paths: Iterable[str]) -> None:
    """Have a TUF client go from the first root metadata to the targets.

    Args:
        root: the repository.
        timestamp: the timestamp metadata to be published.
        now: the time at which the client looks.
        paths: target paths it must find, whole.

    Raises:
        RefusedError: it refuses something.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            client = Updater(
                folder,
                f"{_BASE_URL}metadata/",
                target_dir=folder,
                target_base_url=f"{_BASE_URL}targets/",
                fetcher=_FolderFetcher(root, timestamp),
                config=UpdaterConfig(max_root_rotations=1024),
                bootstrap=(root / "metadata" / "1.root.json").read_bytes(),
            )
            client._trusted_set.reference_time = now  # noqa: SLF001  # the client has no other way to be given a time
            client.refresh()
            for path in paths:
                found = client.get_targetinfo(path)
                if found is None:
                    raise RefusedError(f"a device would not find {path} in what is about to be published; nothing was published")
                client.download_target(found, str(Path(folder) / "target"))
        except (RepositoryError, DownloadError, OSError) as error:
            raise RefusedError(
                f"a device would refuse what is about to be published ({type(error).__name__}: {error}); nothing was published; "
                "`catchment model expiry` shows what is over"
            ) from error


@dataclass(slots=True)
class RoleChange:
    """Roles that are written together.

    Attributes:
        roles: what the targets role and those below it say from now on, by name.
        checked: target paths that a device must accept afterwards.
        written: the files made so far, deleted again if the change is not published.
    """

    roles: dict[str, Targets] = field(default_factory=dict)
    checked: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)


class RoleFiles:
    """The folder `<lake>/models/metadata`.

    Args:
        root: the repository, which holds the folder.
        keys: what signs.
        clock: from when a signature holds.
    """

    def __init__(self, root: Path, keys: KeyFolder, clock: Clock) -> None:
        self.folder = root / "metadata"
        self._repository = root
        self._keys = keys
        self._clock = clock

    # -- reading -----------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The time, to the second."""
        return datetime.fromtimestamp(self._clock.now_ms() // 1000, tz=UTC)

    def expiry(self, role: str) -> datetime:
        """Until when a signature made now holds."""
        return self.now() + LIFETIMES.get(role, LIFETIMES[TARGETS])

    def timestamp(self) -> Timestamp:
        """The file that names all others."""
        return self._read(Timestamp, self.folder / "timestamp.json")

    def snapshot(self) -> Snapshot:
        """What the timestamp leads to: a file that a killed publisher left unreferenced is not it."""
        return self._read(Snapshot, self.folder / f"{self.timestamp().snapshot_meta.version}.snapshot.json")

    def targets(self, role: str = TARGETS, snapshot: Snapshot | None = None) -> Targets:
        """The targets role, or one below it."""
        version = (snapshot or self.snapshot()).meta[f"{role}.json"].version
        return self._read(Targets, self.folder / f"{version}.{role}.json")

    def root_path(self) -> Path:
        """The newest root metadata."""
        versions = [int(path.name.partition(".")[0]) for path in self.folder.glob("*.root.json") if path.name[0].isdecimal()]
        if not versions:
            raise self._missing(self.folder / "1.root.json", "no root metadata")
        return self.folder / f"{max(versions)}.root.json"

    def root(self) -> Root:
        """The newest root metadata's content."""
        return self._read(Root, self.root_path())

    def _read(self, kind: type[SignedT], path: Path) -> SignedT:
        try:
            signed = Metadata.from_bytes(path.read_bytes()).signed
        except (DeserializationError, RepositoryError, OSError) as error:
            raise self._missing(path, str(error)) from error
        if not isinstance(signed, kind):
            raise CorruptLakeError(f"{path} holds {type(signed).__name__}, not {kind.__name__}; restore it")
        return signed

    def _missing(self, path: Path, reason: str) -> Exception:
        if not self.folder.exists():
            return NotFoundError(f"{self._repository} holds no repository; make one with: catchment model init")
        return CorruptLakeError(f"{path} is missing or damaged: {reason}; restore it")

    # -- writing -----------------------------------------------------------------------------------------------------

    def begin(self, root: Root) -> None:
        """Write the first files of an empty repository."""
        self._write(root, "root", f"{root.version}.root.json")
        change = RoleChange({TARGETS: Targets(expires=self.expiry(TARGETS))})
        self._write_roles(change, Snapshot(1, expires=self.expiry("snapshot"), meta={}), 0)

    def publish(self, change: RoleChange) -> None:
        """Sign the changed roles, check that a device accepts them, and make them what is published.

        Raises:
            RefusedError: too few keys are here, a role is too large, or a device would refuse what came of it.
        """
        snapshot = self.snapshot()
        snapshot.version += 1
        snapshot.expires = self.expiry("snapshot")
        self._write_roles(change, snapshot, self.timestamp().version)

    def publish_timestamp(self) -> None:
        """Sign the timestamp again."""
        timestamp = self.timestamp()
        self._write(self._next_timestamp(timestamp.snapshot_meta.version, timestamp.version), "timestamp", "timestamp.json")

    def _write_roles(self, change: RoleChange, snapshot: Snapshot, timestamp_version: int) -> None:
        try:
            for role, targets in change.roles.items():
                self._write(targets, role, f"{targets.version}.{role}.json", change)
                snapshot.meta[f"{role}.json"] = MetaFile(targets.version)
            self._write(snapshot, "snapshot", f"{snapshot.version}.snapshot.json", change)
            timestamp = self._signed(self._next_timestamp(snapshot.version, timestamp_version), "timestamp")
            check_as_device(self._repository, timestamp, self.now(), change.checked)
        except BaseException:
            for path in change.written:
                path.unlink(missing_ok=True)
            raise
        write_atomic(self.folder / "timestamp.json", timestamp, mode=0o644)

    def _next_timestamp(self, snapshot_version: int, version: int) -> Timestamp:
        return Timestamp(version + 1, expires=self.expiry("timestamp"), snapshot_meta=MetaFile(snapshot_version))

    def _write(self, signed: SignedT, role: str, name: str, change: RoleChange | None = None) -> None:
        body = self._signed(signed, role)
        if change is not None:
            change.written.append(self.folder / name)
        write_atomic(self.folder / name, body, mode=0o644)

    def _signed(self, signed: SignedT, role: str) -> bytes:
        # The roles below targets have its keys: who vouches for one model vouches for all.
        key_role = role if role in LIFETIMES else TARGETS
        whole: Signed = signed
        root = whole if isinstance(whole, Root) else self.root()
        known = root.roles[key_role]
        signers = [signer for signer in self._keys.signers(key_role) if signer.public_key.keyid in known.keyids]
        if len(signers) < known.threshold:
            raise RefusedError(
                f"{known.threshold} {key_role} key must sign and {len(signers)} of them are in {self._keys.folder}; "
                "bring them there, and take them offline afterwards"
            )
        document = Metadata(signed)
        for signer in signers:
            document.sign(signer, append=True)
        body = document.to_bytes()
        if len(body) > MAX_METADATA_BYTES:
            raise RefusedError(
                f"the metadata of {role} would have {len(body):,} bytes, and {MAX_METADATA_BYTES:,} are allowed; "
                "withdraw versions that nobody needs: catchment model withdraw"
            )
        return body


def draft_root(files: RoleFiles, keys: Mapping[str, Iterable[Key]]) -> Metadata[Root]:
    """The next root, unsigned: expiry from now on, and other keys for the roles named."""
    root = files.root()
    root.version += 1
    root.expires = files.expiry("root")
    for role, fresh in keys.items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for key in fresh:
            root.add_key(key, role)
        if len(root.roles[role].keyids) < root.roles[role].threshold:
            raise RefusedError(
                f"{root.roles[role].threshold} keys of the role {role} must sign, and {len(root.roles[role].keyids)} are named"
            )
    return Metadata(root)


def draft_rotation(files: RoleFiles, keys: KeyFolder, role: str) -> Metadata[Root]:
    """The next root, with as many new keys for a role as it has, signed by the root keys that are here.

    The old keys stay where they are: until the draft is installed they are the ones that sign.

    Raises:
        RefusedError: a key is unreadable or cannot be written.
    """
    count = len(files.root().roles[role].keyids)
    document = draft_root(files, {role: [keys.add(role) for _ in range(count)]})
    known = {*files.root().roles["root"].keyids, *document.signed.roles["root"].keyids}
    sign_draft(document, [signer for signer in keys.signers("root") if signer.public_key.keyid in known])
    return document


def read_draft(path: Path) -> Metadata[Root]:
    """Read a drafted root.

    Raises:
        RefusedError: not root metadata.
    """
    try:
        with path.open("rb") as file:
            document = Metadata.from_bytes(file.read(_MAX_BYTES))
    except (OSError, DeserializationError, RepositoryError) as error:
        raise RefusedError(f"{path}: not root metadata: {error}") from error
    if not isinstance(document.signed, Root):
        raise RefusedError(f"{path}: {type(document.signed).__name__} metadata, not root metadata")
    return document


def sign_draft(document: Metadata[Root], signers: Iterable[Signer]) -> int:
    """Add signatures; how many there are now."""
    for signer in signers:
        document.sign(signer, append=True)
    return len(document.signatures)


def check_draft(files: RoleFiles, document: Metadata[Root]) -> tuple[list[str], list[str]]:
    """Compare a drafted root with the one in force.

    Returns:
        What it changes, in lines to read aloud; and what it lacks before it can be installed.
    """
    old, new = files.root(), document.signed
    changes = [f"version {old.version} -> {new.version}", f"expires {old.expires:%Y-%m-%d} -> {new.expires:%Y-%m-%d}"]
    for role in ROLES:
        before, after = old.roles[role], new.roles[role]
        changes += [f"{role}: without key {keyid}" for keyid in before.keyids if keyid not in after.keyids]
        changes += [f"{role}: with key {keyid}" for keyid in after.keyids if keyid not in before.keyids]
        if before.threshold != after.threshold:
            changes.append(f"{role}: {before.threshold} -> {after.threshold} keys must sign")
    lacks = [] if new.version == old.version + 1 else [f"it is version {new.version}, and the next one is {old.version + 1}"]
    for name, root in (("in force", old), ("drafted", new)):
        result = root.get_verification_result("root", document.signed_bytes, document.signatures)
        if not result.verified:
            lacks.append(f"{len(result.signed)} of the {result.threshold} signatures that the root {name} asks for")
    if new.expires <= files.now():
        lacks.append("it has expired")
    return changes, lacks


def install_root(files: RoleFiles, document: Metadata[Root]) -> Path:
    """Put a signed root in force.

    Raises:
        RefusedError: something is missing that devices ask for.
    """
    _, lacks = check_draft(files, document)
    if lacks:
        raise RefusedError(f"devices would refuse this root: {'; '.join(lacks)}")
    path = files.folder / f"{document.signed.version}.root.json"
    write_atomic(path, document.to_bytes(), mode=0o644)
    return path
