"""The signed metadata files of the model repository: read, signed with the keys that are there, and written.

Every file but `timestamp.json` is written once. A change is published by replacing that one file, last.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
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

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import Clock
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.rollout.device_check import check_as_device
from pipelines.rollout.keys import KeyFolder

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
