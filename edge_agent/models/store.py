"""The device's models on disk: the active one and the one before it, and a small file that says which is which.

A version's bytes are written once under a name of their own and never changed. `state.json` is the one pointer, replaced
atomically: whatever instruction the power fails at, it names files that are whole.
"""

import hashlib
import os
from pathlib import Path

import msgspec
import structlog

from edge_agent.atomic import sync_folder, write_atomic
from edge_agent.errors import ModelError, ModelUnfitError
from edge_agent.models.state import Installed, StoreState

_BLOCK_BYTES = 1024 * 1024

log = structlog.get_logger(__name__)


class ModelStore:
    """One model's files in a folder.

    Attributes:
        state: what is active, what was before, what is refused. Replaced as a whole by every change.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._versions = folder / "versions"
        self._versions.mkdir(parents=True, exist_ok=True)
        self._file = folder / "state.json"
        self.state = self._load()
        self._sweep()

    def _load(self) -> StoreState:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=StoreState)
        except FileNotFoundError:
            return StoreState()
        except (OSError, msgspec.MsgspecError, ValueError):
            aside = self._file.with_suffix(".broken")
            log.exception("model state is unreadable and set aside; the model is fetched again", aside=str(aside))
            self._file.replace(aside)
            return StoreState()

    def path(self, installed: Installed) -> Path:
        """Where a version's bytes are."""
        return self._versions / f"{installed.version}-{installed.digest[:16]}.onnx"

    @property
    def incoming(self) -> Path:
        """Where a download goes before it is one of the versions."""
        return self._folder / "incoming.onnx"

    def whole(self, installed: Installed) -> Path:
        """Where a version's bytes are, once they are seen to be those that were vouched for.

        Raises:
            ModelUnfitError: they are not, or cannot be read.
        """
        digest = hashlib.sha256()
        try:
            with self.path(installed).open("rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise ModelUnfitError(f"version {installed.version} on disk cannot be read: {error}") from error
        if digest.hexdigest() != installed.digest:
            raise ModelUnfitError(f"version {installed.version} on disk is not what was installed")
        return self.path(installed)

    def add(self, installed: Installed) -> Path:
        """Make the verified download one of the versions, durably; nothing points to it yet.

        Raises:
            ModelError: the disk refuses.
        """
        try:
            descriptor = os.open(self.incoming, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self.incoming.replace(self.path(installed))
            sync_folder(self._versions)
        except OSError as error:
            raise ModelError(f"model version {installed.version} cannot be kept: {error}") from error
        return self.path(installed)

    def activate(self, installed: Installed) -> None:
        """Point to a version, on probation. The one before it stays until this one has proved itself.

        Raises:
            ModelError: the disk refuses; the old version stays active.
        """
        old = self.state
        # While the active version is itself on probation, the one to go back to is the one it would go back to.
        proven = old.previous if old.on_probation else old.active
        self._write(StoreState(active=installed, previous=proven, refused=old.refused, on_probation=True))
        self._sweep()

    def confirm(self) -> None:
        """The active version has proved itself."""
        self._write(msgspec.structs.replace(self.state, on_probation=False, starts=0))

    def count_start(self) -> None:
        """The agent starts while a version is on probation."""
        self._write(msgspec.structs.replace(self.state, starts=self.state.starts + 1))

    def go_back(self, reason: str) -> None:
        """Give the active version up for good; the one before it, if any, is active again."""
        old = self.state
        refused = old.refused if old.active is None else _with(old.refused, old.active.version)
        self._write(StoreState(active=old.previous, refused=refused, rolled_back=True, reason=reason[:500]))
        self._sweep()

    def refuse(self, version: int, reason: str) -> None:
        """Never try this version again."""
        self._write(msgspec.structs.replace(self.state, refused=_with(self.state.refused, version), reason=reason[:500]))
        self._sweep()

    def _write(self, state: StoreState) -> None:
        try:
            write_atomic(self._file, msgspec.json.encode(state))
        except OSError as error:
            raise ModelError(f"{self._file} cannot be written: {error}; the model in force stays") from error
        self.state = state

    def _sweep(self) -> None:
        """Remove versions that nothing points to."""
        kept = {self.path(item).name for item in (self.state.active, self.state.previous) if item is not None}
        for path in self._versions.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _with(versions: tuple[int, ...], version: int) -> tuple[int, ...]:
    return tuple(sorted({*versions, version}))
