"""The model repository: TUF metadata and model files in `<lake>/models/`, readable by any TUF client.

    metadata/<n>.root.json  <n>.targets.json  <n>.<model>.<hundred>.json  <n>.snapshot.json  timestamp.json
    targets/<model>/<sha256>.<version>.onnx   targets/<model>/<sha256>.<version>.json

A repository of an earlier release, whose targets role holds everything, gets this form when something is published.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from msgspec.structs import replace
from tuf.api.metadata import (
    Root,
    TargetFile,
    Targets,
)

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import Clock
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.rollout.keys import ROLES, KeyFolder, KeyPlan
from pipelines.rollout.model_roles import (
    WITHDRAWN,
    brief_spec,
    delegate,
    delegated_roles,
    model_path,
    parse_model_path,
    role_of,
    target_files,
    withdrawn_versions,
)
from pipelines.rollout.role_files import LIFETIMES, TARGETS, RoleChange, RoleFiles
from schemas.errors import SchemaError
from schemas.model import (
    MAX_DETAILS_BYTES,
    MAX_MODEL_BYTES,
    ImageInput,
    ModelNeeds,
    ModelSpec,
    decode_details,
    details_path,
    encode_details,
    model_spec,
    model_spec_from_plain,
)
from schemas.model_origin import ModelOrigin
from schemas.model_tasks import Classify, ModelTask, RowInput

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RoleExpiry:
    """One role's signature: until when it holds, and for how long such a signature holds in all."""

    role: str
    expires: datetime
    lifetime: timedelta

    def left(self, now: datetime) -> timedelta:
        """How long it still holds."""
        return self.expires - now

    def state(self, now: datetime) -> str:
        """`ok`, `due` when a third of its life or less is left, `over`."""
        if self.left(now) <= timedelta(0):
            return "over"
        return "due" if self.left(now) <= self.lifetime / 3 else "ok"

    @property
    def remedy(self) -> str:
        """The command that signs it again."""
        if self.role == "root":
            return "catchment model root draft, sign, install"
        return "the model server signs it" if self.role in {"timestamp", "snapshot"} else "catchment model sign"


def expiry_warnings(found: Iterable[RoleExpiry], now: datetime) -> tuple[str, ...]:
    """A sentence for each role whose signature is due or over."""
    return tuple(
        f"the {each.role} signature of the model repository {'ended' if each.state(now) == 'over' else 'ends'} on "
        f"{each.expires:%Y-%m-%d}; then devices take no model; sign again: {each.remedy}"
        for each in found
        if each.state(now) != "ok"
    )


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
        self.files = RoleFiles(root, keys, clock)
        self.keys = keys

    # -- making ------------------------------------------------------------------------------------------------------

    def init(self, plan: KeyPlan) -> Path:
        """Make an empty repository; returns the root metadata that devices need (`1.root.json`).

        Raises:
            RefusedError: there is a repository already.
        """
        if self.files.folder.exists():
            raise RefusedError(f"{self.root} already holds a repository; publish into it, or remove it knowingly")
        self.keys.generate(plan)
        self.files.folder.mkdir(parents=True)
        (self.root / "targets").mkdir(exist_ok=True)
        root = Root(version=1, expires=self.files.expiry("root"), consistent_snapshot=True)
        for role in ROLES:
            for signer in self.keys.signers(role):
                root.add_key(signer.public_key, role)
            root.roles[role].threshold = plan.of(role)[1]
        with self._locked():
            self.files.begin(root)
        return self.files.folder / "1.root.json"

    def publish(  # noqa: PLR0913  # each argument is a part of what is signed
        self,
        name: str,
        onnx: bytes,
        image: ImageInput | None,
        *,
        labels: tuple[str, ...] = (),
        output: str = "",
        softmax: bool = False,
        golden: tuple[float, ...] = (),
        tolerance: float = 0.01,
        origin: ModelOrigin | None = None,
        task: ModelTask | None = None,
        rows: RowInput | None = None,
        needs: ModelNeeds | None = None,
    ) -> PublishedModel:
        """Sign a model's bytes as the next version of `name`. Needs the targets, snapshot and timestamp keys.

        It takes pictures (`image`) or columns (`rows`); without a task it is a classifier.

        Raises:
            RefusedError: a key is not here, the description is malformed, or a device would refuse what came of it.
            CorruptLakeError: the repository is damaged.
        """
        if len(onnx) > MAX_MODEL_BYTES:
            raise RefusedError(f"model {name[:80]!r} has {len(onnx):,} bytes; a device takes {MAX_MODEL_BYTES:,}")
        with self._locked():
            change = self._change()
            try:
                version = 1 + self._highest(change, name)
                spec = model_spec(name, version, image, rows, task or Classify())
                spec = replace(spec, labels=labels, output=output, softmax=softmax, golden=golden)
                spec = replace(spec, tolerance=tolerance, origin=origin, needs=needs)
                entry = self._add(change, spec, TargetFile.from_data(model_path(name, version), onnx, ["sha256"]))
            except SchemaError as error:
                raise RefusedError(f"model {name[:80]!r} cannot be published: {error}") from error
            file = self._write_target(entry, onnx)
            change.checked += [entry.path, details_path(name, version)]
            self.files.publish(change)
        return PublishedModel(spec, entry.path, file, entry.length, entry.hashes["sha256"])

    def withdraw(self, name: str, version: int) -> PublishedModel:
        """Vouch for a version no more: no device installs it from then on. Its number is not given again.

        Raises:
            NotFoundError: there is no such version.
            RefusedError: as for `publish`.
        """
        self.model(name, version)  # a repository that is not there has no folder for the lock
        with self._locked():
            gone = self.model(name, version)
            change = self._change()
            role = self._role(change, role_of(name, version))
            for path in (gone.target, details_path(name, version)):
                role.targets.pop(path, None)
            role.unrecognized_fields[WITHDRAWN] = sorted(withdrawn_versions(role) | {version})
            self.files.publish(change)
        return gone

    def sign(self) -> int:
        """Sign the targets role and all below it again, with the keys that the root names now; how many roles that were.

        Raises:
            RefusedError: as for `publish`.
        """
        with self._locked():
            change = self._change()
            top = change.roles.get(TARGETS) or self._renew_role(self.files.targets())
            change.roles[TARGETS] = top
            for role in delegated_roles(top):
                if role not in change.roles:
                    change.roles[role] = self._renew_role(self.files.targets(role))
            newest = max(self.models(), key=lambda model: model.spec.version, default=None)
            change.checked += [] if newest is None else [newest.target]
            self.files.publish(change)
            return len(change.roles)

    def expiries(self) -> list[RoleExpiry]:
        """Until when each role's signature holds.

        Raises:
            NotFoundError, CorruptLakeError: as `models`.
        """
        snapshot, root = self.files.snapshot(), self.files.root()
        top = self.files.targets(snapshot=snapshot)
        below = {role: self.files.targets(role, snapshot).expires for role in delegated_roles(top)}
        ends = {"root": root.expires, TARGETS: top.expires, **below, "snapshot": snapshot.expires}
        ends["timestamp"] = self.files.timestamp().expires
        return [RoleExpiry(role, expires, LIFETIMES.get(role, LIFETIMES[TARGETS])) for role, expires in ends.items()]

    def renew(self, *, when_within: timedelta) -> bool:
        """Sign the timestamp (and the snapshot) again if it expires within that time; whether it was done.

        Raises:
            RefusedError: the online keys are not here.
            CorruptLakeError: the repository is damaged.
        """
        with self._locked():
            soon = self.files.now() + when_within
            if self.files.snapshot().expires < soon:
                self.files.publish(RoleChange())
                return True
            if self.files.timestamp().expires < soon:
                self.files.publish_timestamp()
                return True
        return False

    # -- reading -----------------------------------------------------------------------------------------------------

    def models(self) -> list[PublishedModel]:
        """All versions of all models, by name, then version, without their golden answers; `model` gives all of one.

        Raises:
            NotFoundError: there is no repository.
            CorruptLakeError: the repository is damaged.
        """
        snapshot = self.files.snapshot()
        top = self.files.targets(snapshot=snapshot)
        roles = [top, *(self.files.targets(role, snapshot) for role in delegated_roles(top))]
        entries = [entry for role in roles for path, entry in role.targets.items() if parse_model_path(path)]
        return sorted(map(self._published, entries), key=lambda model: (model.spec.name, model.spec.version))

    def model(self, name: str, version: int | None = None) -> PublishedModel:
        """One version of a model, with all that is said of it; the newest if none is named.

        Raises:
            NotFoundError: there is none such; the message lists what there is.
            CorruptLakeError: the repository is damaged.
        """
        models = self.models()
        fitting = [model for model in models if model.spec.name == name and version in (None, model.spec.version)]
        if not fitting:
            known = ", ".join(f"{model.spec.name} {model.spec.version}" for model in models) or "none"
            raise NotFoundError(f"no model {name[:80]!r}{'' if version is None else f' version {version}'}; published: {known}")
        return self._detailed(fitting[-1])

    def version_of(self, digest: str) -> PublishedModel | None:
        """The version whose ONNX file has this SHA-256; None: it was not published here.

        Raises:
            NotFoundError, CorruptLakeError: as `models`.
        """
        return next((self._detailed(model) for model in self.models() if model.digest == digest), None)

    def withdrawn(self) -> dict[str, tuple[int, ...]]:
        """The versions of each model that were withdrawn.

        Raises:
            NotFoundError, CorruptLakeError: as `models`.
        """
        snapshot = self.files.snapshot()
        found: dict[str, set[int]] = {}
        for role in delegated_roles(self.files.targets(snapshot=snapshot)):
            gone = withdrawn_versions(self.files.targets(role, snapshot))
            found.setdefault(role.rpartition(".")[0], set()).update(gone)
        return {name: tuple(sorted(versions)) for name, versions in found.items() if versions}

    def timestamp_expires(self) -> datetime:
        """Until when devices accept what is published now."""
        return self.files.timestamp().expires

    def _published(self, entry: TargetFile) -> PublishedModel:
        try:
            spec = brief_spec(entry)
        except SchemaError as error:
            raise CorruptLakeError(f"{entry.path} in {self.files.folder}: {error}") from error
        file = self.root / "targets" / _prefixed(entry)
        return PublishedModel(spec, entry.path, file, entry.length, entry.hashes["sha256"])

    def _detailed(self, model: PublishedModel) -> PublishedModel:
        snapshot = self.files.snapshot()
        top = self.files.targets(snapshot=snapshot)
        if model.target in top.targets:
            return replace_spec(model, model_spec_from_plain(top.targets[model.target].custom))
        name, version = model.spec.name, model.spec.version
        role = self.files.targets(role_of(name, version), snapshot)
        entry = role.targets.get(details_path(name, version))
        try:
            if entry is None:
                raise CorruptLakeError(
                    f"{role_of(name, version)} does not name {details_path(name, version)}; restore the metadata"
                )
            path = self.root / "targets" / _prefixed(entry)
            return replace_spec(model, decode_details(path.read_bytes()))
        except (OSError, SchemaError) as error:
            raise CorruptLakeError(f"{details_path(name, version)} is missing or damaged: {error}; restore it") from error

    # -- parts of a change -------------------------------------------------------------------------------------------

    def _change(self) -> RoleChange:
        """A change that begins with the targets role in today's form, signed again with everything that is old."""
        snapshot = self.files.snapshot()
        change = RoleChange()
        top = change.roles[TARGETS] = self.files.targets(snapshot=snapshot)
        legacy = {path: entry for path, entry in top.targets.items() if parse_model_path(path)}
        has_changed = bool(legacy)
        for role in delegated_roles(top):
            has_changed |= self._delegate(top, role)
        for path, entry in legacy.items():
            self._migrate(change, entry)
            del top.targets[path]
        if has_changed or self._is_old(top):
            self._renew_role(top)
        else:
            del change.roles[TARGETS]
        for role in delegated_roles(top):
            if role not in change.roles and self._is_old(found := self.files.targets(role, snapshot)):
                change.roles[role] = self._renew_role(found)
        return change

    def _is_old(self, role: Targets) -> bool:
        """Whether half of the time for which it was signed is over."""
        return role.expires - self.files.now() < (self.files.expiry(TARGETS) - self.files.now()) / 2

    def _renew_role(self, role: Targets) -> Targets:
        role.version += 1
        role.expires = self.files.expiry(TARGETS)
        return role

    def _role(self, change: RoleChange, role: str) -> Targets:
        """A role below targets, in the change; made and delegated to where there is none."""
        if role in change.roles:
            return change.roles[role]
        top = change.roles.get(TARGETS) or self.files.targets()
        snapshot = self.files.snapshot()
        if f"{role}.json" in snapshot.meta:
            found = self._renew_role(self.files.targets(role, snapshot))
        else:
            found = Targets(expires=self.files.expiry(TARGETS))
        if self._delegate(top, role) and TARGETS not in change.roles:
            change.roles[TARGETS] = self._renew_role(top)
        change.roles[role] = found
        return found

    def _delegate(self, top: Targets, role: str) -> bool:
        root = self.files.root()
        keys = [root.keys[keyid] for keyid in root.roles[TARGETS].keyids]
        return delegate(top, role, keys, root.roles[TARGETS].threshold)

    def _highest(self, change: RoleChange, name: str) -> int:
        """The highest version that a model ever had."""
        snapshot = self.files.snapshot()
        highest = 0
        for role in delegated_roles(change.roles.get(TARGETS) or self.files.targets(snapshot=snapshot)):
            if role.rpartition(".")[0] == name:
                found = change.roles.get(role) or self.files.targets(role, snapshot)
                versions = {parsed[1] for path in found.targets if (parsed := parse_model_path(path))}
                highest = max(highest, *versions, *withdrawn_versions(found), 0)
        return highest

    def _add(self, change: RoleChange, spec: ModelSpec, onnx: TargetFile) -> TargetFile:
        """Have the version's role vouch for it; its details are written, its ONNX file is not."""
        entry, details_entry, details = target_files(spec, onnx)
        role = self._role(change, role_of(spec.name, spec.version))
        self._write_target(details_entry, details)
        role.targets |= {entry.path: entry, details_entry.path: details_entry}
        return entry

    def _migrate(self, change: RoleChange, entry: TargetFile) -> None:
        try:
            spec = model_spec_from_plain(entry.custom)
            if len(encode_details(spec)) > MAX_DETAILS_BYTES:
                log.warning("golden_answers_dropped", model=spec.name, version=spec.version, answers=len(spec.golden))
                spec = replace(spec, golden=())
            self._add(change, spec, TargetFile(entry.length, entry.hashes, entry.path))
        except SchemaError as error:
            raise CorruptLakeError(f"{entry.path} in {self.files.folder}: {error}") from error

    def _write_target(self, entry: TargetFile, body: bytes) -> Path:
        file = self.root / "targets" / _prefixed(entry)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, body, mode=0o644)
        return file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: `publish` by a person, `renew` by the server."""
        if not self.root.exists():
            raise NotFoundError(f"{self.root} holds no repository; make one with: catchment model init")
        descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def replace_spec(model: PublishedModel, spec: ModelSpec) -> PublishedModel:
    """The model with another description."""
    return PublishedModel(spec, model.target, model.file, model.size, model.digest)


def _prefixed(info: TargetFile) -> str:
    folder, _, name = info.path.rpartition("/")
    return f"{folder}/{info.hashes['sha256']}.{name}"
