"""The model repository: TUF metadata and model files in `<lake>/models/`, readable by any TUF client.

    metadata/<n>.root.json  <n>.targets.json  <n>.snapshot.json  timestamp.json
    targets/<name>/<sha256>.<version>.onnx

Every file but `timestamp.json` is written once. A change is published by replacing that one file, last.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # exported, but not in __all__
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import Clock
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.rollout.keys import ROLES, KeyFolder, KeyPlan
from schemas.errors import SchemaError
from schemas.model import ImageInput, ModelSpec, model_spec_from_plain, model_spec_to_plain

LIFETIMES = {
    "root": timedelta(days=3 * 365),
    "targets": timedelta(days=365),
    "snapshot": timedelta(days=90),
    # How long a device can be held on old models by somebody who cuts it off from the repository.
    "timestamp": timedelta(days=14),
}
SignedT = TypeVar("SignedT", Root, Targets, Snapshot, Timestamp)


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """One version in the repository: its TUF target path, the file, its size and SHA-256, and what it is."""

    spec: ModelSpec
    target: str
    file: Path
    size: int
    digest: str


class ModelRepository:
    """Reads and extends the repository below `root` (`<lake>/models`)."""

    def __init__(self, root: Path, keys: KeyFolder, clock: Clock) -> None:
        self.root = root
        self._keys = keys
        self._clock = clock
        self._metadata = root / "metadata"

    # -- making ------------------------------------------------------------------------------------------------------

    def init(self, plan: KeyPlan) -> Path:
        """Make an empty repository; returns the root metadata that devices need (`1.root.json`).

        Raises:
            RefusedError: there is a repository already.
        """
        if self._metadata.exists():
            raise RefusedError(f"{self.root} already holds a repository; publish into it, or remove it knowingly")
        self._keys.generate(plan)
        self._metadata.mkdir(parents=True)
        (self.root / "targets").mkdir(exist_ok=True)
        root = Root(version=1, expires=self._expiry("root"), consistent_snapshot=True)
        for role in ROLES:
            for signer in self._keys.signers(role):
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = plan.of(role)[1]
        with self._locked():
            self._write(root, "root", f"{root.version}.root.json")
            self._write(Targets(expires=self._expiry("targets")), "targets", "1.targets.json")
            self._publish_snapshot(1, 1, 1)
        return self._metadata / "1.root.json"

    def publish(
        self,
        name: str,
        onnx: bytes,
        image: ImageInput,
        *,
        labels: tuple[str, ...] = (),
        output: str = "",
        softmax: bool = False,
        golden: tuple[float, ...] = (),
        tolerance: float = 0.01,
    ) -> PublishedModel:
        """Sign a model's bytes as the next version of `name`. Needs the targets, snapshot and timestamp keys.

        Raises:
            RefusedError: a key is not here, or the description is malformed.
            CorruptLakeError: the repository is damaged.
        """
        with self._locked():
            targets = self._newest(Targets, "targets")
            version = 1 + max((model.spec.version for model in self.models() if model.spec.name == name), default=0)
            try:
                spec = ModelSpec(name, version, image, labels, output, softmax, golden, tolerance)
            except SchemaError as error:
                raise RefusedError(f"model {name[:80]!r} cannot be published: {error}") from error
            path = f"{name}/{version}.onnx"
            info = TargetFile.from_data(path, onnx, ["sha256"])
            info.unrecognized_fields["custom"] = model_spec_to_plain(spec)
            file = self.root / "targets" / _prefixed(info)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, onnx, mode=0o644)
            targets.targets[path] = info
            targets.version += 1
            targets.expires = self._expiry("targets")
            self._write(targets, "targets", f"{targets.version}.targets.json")
            timestamp = self._timestamp()
            self._publish_snapshot(timestamp.snapshot_meta.version + 1, targets.version, timestamp.version + 1)
        return PublishedModel(spec, path, file, info.length, info.hashes["sha256"])

    def renew(self, *, when_within: timedelta) -> bool:
        """Sign the timestamp (and the snapshot) anew if it expires within that time; whether it was done.

        Raises:
            RefusedError: the online keys are not here.
            CorruptLakeError: the repository is damaged.
        """
        with self._locked():
            timestamp = self._timestamp()
            snapshot = self._newest(Snapshot, "snapshot")
            soon = self._now() + when_within
            if snapshot.expires < soon:
                targets_version = snapshot.meta["targets.json"].version
                self._publish_snapshot(snapshot.version + 1, targets_version, timestamp.version + 1)
                return True
            if timestamp.expires < soon:
                self._publish_timestamp(snapshot.version, timestamp.version + 1)
                return True
        return False

    # -- reading -----------------------------------------------------------------------------------------------------

    def models(self) -> list[PublishedModel]:
        """All versions of all models, by name, then version.

        Raises:
            NotFoundError: there is no repository.
            CorruptLakeError: the repository is damaged.
        """
        found: list[PublishedModel] = []
        for path, info in self._newest(Targets, "targets").targets.items():
            try:
                spec = model_spec_from_plain(info.custom)
            except SchemaError as error:
                raise CorruptLakeError(f"{path} in {self._metadata}: {error}") from error
            found.append(PublishedModel(spec, path, self.root / "targets" / _prefixed(info), info.length, info.hashes["sha256"]))
        return sorted(found, key=lambda model: (model.spec.name, model.spec.version))

    def model(self, name: str, version: int | None = None) -> PublishedModel:
        """One version of a model; the newest if none is named.

        Raises:
            NotFoundError: there is none such; the message lists what there is.
        """
        models = self.models()
        fitting = [model for model in models if model.spec.name == name and version in (None, model.spec.version)]
        if not fitting:
            known = ", ".join(f"{model.spec.name} {model.spec.version}" for model in models) or "none"
            raise NotFoundError(f"no model {name[:80]!r}{'' if version is None else f' version {version}'}; published: {known}")
        return fitting[-1]

    def timestamp_expires(self) -> datetime:
        """Until when devices accept what is published now."""
        return self._timestamp().expires

    # -- parts of the above ------------------------------------------------------------------------------------------

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_ms() // 1000, tz=UTC)

    def _expiry(self, role: str) -> datetime:
        return self._now() + LIFETIMES[role]

    def _publish_snapshot(self, version: int, targets_version: int, timestamp_version: int) -> None:
        snapshot = Snapshot(version, expires=self._expiry("snapshot"), meta={"targets.json": MetaFile(targets_version)})
        self._write(snapshot, "snapshot", f"{version}.snapshot.json")
        self._publish_timestamp(version, timestamp_version)

    def _publish_timestamp(self, snapshot_version: int, version: int) -> None:
        timestamp = Timestamp(version, expires=self._expiry("timestamp"), snapshot_meta=MetaFile(snapshot_version))
        self._write(timestamp, "timestamp", "timestamp.json")

    def _write(self, signed: SignedT, role: str, name: str) -> None:
        signers = self._keys.signers(role)
        if not signers:
            raise RefusedError(f"the {role} key is not in {self._keys.folder}; bring it there, and take it offline afterwards")
        document = Metadata(signed)
        for signer in signers:
            document.sign(signer, append=True)
        write_atomic(self._metadata / name, document.to_bytes(), mode=0o644)

    def _timestamp(self) -> Timestamp:
        return self._read(Timestamp, self._metadata / "timestamp.json")

    def _newest(self, kind: type[SignedT], role: str) -> SignedT:
        """What the timestamp leads to: a file that a killed publisher left unreferenced is not it."""
        version = self._timestamp().snapshot_meta.version
        if role == "targets":
            snapshot = self._read(Snapshot, self._metadata / f"{version}.snapshot.json")
            version = snapshot.meta["targets.json"].version
        return self._read(kind, self._metadata / f"{version}.{role}.json")

    def _read(self, kind: type[SignedT], path: Path) -> SignedT:
        try:
            signed = Metadata.from_bytes(path.read_bytes()).signed
        except (DeserializationError, RepositoryError, OSError) as error:
            if not self._metadata.exists():
                raise NotFoundError(f"{self.root} holds no repository; make one with: catchment model init") from error
            raise CorruptLakeError(f"{path} is missing or damaged: {error}; restore it") from error
        if not isinstance(signed, kind):
            raise CorruptLakeError(f"{path} holds {type(signed).__name__}, not {kind.__name__}; restore it")
        return signed

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: `publish` by a person, `renew` by the server."""
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _prefixed(info: TargetFile) -> str:
    folder, _, name = info.path.rpartition("/")
    return f"{folder}/{info.hashes['sha256']}.{name}"
