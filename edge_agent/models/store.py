"""The device's models on disk: the active one and the one before it, and a small state that says which is which.

A version's bytes are written once under a name of their own and never changed. The state is replaced atomically: whatever
instruction the power fails at, it names files that are whole. Files are deleted only if the state names them as retired.
"""

import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from msgspec.structs import replace

from catchment.runtime.atomic_files import sync_file, sync_folder
from edge_agent.errors import ModelError, RottenModelError
from edge_agent.models.state import Attempt, Installed, StateFile, StoreState, version_file

_BLOCK_BYTES = 1024 * 1024
_MAX_TRIED = 8

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

log = structlog.get_logger(__name__)


def _exclusive(
    change: "Callable[Concatenate[ModelStore, _Given], _Result]",
) -> "Callable[Concatenate[ModelStore, _Given], _Result]":
    """One change of the state after another: each reads it, and writes it as a whole."""

    @wraps(change)
    def guarded(store: "ModelStore", /, *args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        with store._lock:  # noqa: SLF001  # a method of the class below
            return change(store, *args, **kwargs)

    return guarded


class ModelStore:
    """One model's files in a folder. Any thread may call.

    Attributes:
        state: what is active, what was before, what is refused. Replaced as a whole by every change.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = threading.RLock()
        self._folder = folder
        self._versions = folder / "versions"
        self._versions.mkdir(parents=True, exist_ok=True)
        self._file = StateFile(folder)
        found = self._file.read()
        self.state = found.state
        if found.is_lost:
            log.error(
                "model_state_lost", folder=str(folder), hint="the files of its versions are kept; the model is fetched again"
            )
        elif not found.is_whole and self.state != StoreState():
            self._repair()
        self.discard_incoming()
        self._sweep()
        self._report_unexplained()

    def path(self, installed: Installed) -> Path:
        """Where a version's bytes are."""
        return self._versions / installed.file_name

    @property
    def incoming(self) -> Path:
        """Where a download goes before it is one of the versions."""
        return self._folder / "incoming.onnx"

    def discard_incoming(self) -> None:
        """Remove a download that became no version, so that it takes no room."""
        with suppress(OSError):
            self.incoming.unlink(missing_ok=True)

    def whole(self, installed: Installed) -> Path:
        """Where a version's bytes are, once they are seen to be those that were vouched for.

        Raises:
            RottenModelError: they are not, or cannot be read.
        """
        try:
            found = _sha256(self.path(installed))
        except OSError as error:
            raise RottenModelError(f"version {installed.version} on disk cannot be read: {error}") from error
        if found != installed.digest:
            raise RottenModelError(f"version {installed.version} on disk is not what was installed")
        return self.path(installed)

    def held(self, version: int, digest: str) -> Path | None:
        """Where the bytes of a version are if they are on disk and whole: they need not be fetched again."""
        path = self._versions / version_file(version, digest)
        try:
            return path if _sha256(path) == digest else None
        except OSError:
            return None

    @_exclusive
    def add(self, installed: Installed) -> Path:
        """Make the verified download one of the versions, durably; it is recorded as one that is being tried.

        Raises:
            ModelError: the disk refuses.
        """
        self._write(self._with_attempt(installed, 0, is_open=False))
        try:
            if self.held(installed.version, installed.digest) is None:
                sync_file(self.incoming)
                self.incoming.replace(self.path(installed))
                sync_folder(self._versions)
        except OSError as error:
            raise ModelError(f"model version {installed.version} cannot be kept: {error}") from error
        return self.path(installed)

    # -- attempts to load a version ---------------------------------------------------------------------------------

    @_exclusive
    def begin_attempt(self, installed: Installed) -> None:
        """Record that a version is about to be loaded, before it is: the load may be the last thing that happens.

        Raises:
            ModelError: the disk refuses; the version must not be loaded.
        """
        self._write(self._with_attempt(installed, 1, is_open=True))

    @_exclusive
    def end_attempt(self, installed: Installed, *, counts: bool) -> None:
        """Record that the load under way has ended.

        Args:
            installed: which version.
            counts: whether it failed in a way that may not happen twice; a load that was broken off does not count.
        """
        self._write(self._with_attempt(installed, 0 if counts else -1, is_open=False))

    @_exclusive
    def forget_attempts(self, installed: Installed) -> None:
        """A version was loaded."""
        kept = tuple(tried for tried in self.state.attempts if tried.version != installed.version)
        self._write(replace(self.state, attempts=kept))

    @_exclusive
    def close_open_attempts(self) -> tuple[Attempt, ...]:
        """The attempts during which the agent itself ended, now recorded as over."""
        found = tuple(tried for tried in self.state.attempts if tried.is_open)
        if found:
            self._write(replace(self.state, attempts=tuple(replace(tried, is_open=False) for tried in self.state.attempts)))
        return found

    def _with_attempt(self, installed: Installed, more: int, *, is_open: bool) -> StoreState:
        others = [tried for tried in self.state.attempts if tried.version != installed.version][-_MAX_TRIED:]
        count = max(0, self.state.attempts_of(installed.version) + more)
        mine = Attempt(installed.version, installed.digest, count, is_open)
        return replace(self.state, attempts=(*others, mine), retired=_without(self.state.retired, installed.file_name))

    # -- which version is active ------------------------------------------------------------------------------------

    @_exclusive
    def activate(self, installed: Installed) -> None:
        """Point to a version, on probation. The one before it stays until this one has proved itself.

        Raises:
            ModelError: the disk refuses; the old version stays active.
        """
        old = self.state
        # While the active version is itself on probation, the one to go back to is the one it would go back to.
        proven = old.previous if old.on_probation else old.active
        self._change(StoreState(active=installed, previous=proven, refused=old.refused, on_probation=True, is_running=True))

    @_exclusive
    def confirm(self) -> None:
        """The active version has proved itself."""
        self._write(replace(self.state, on_probation=False, starts=0, deaths=0, watched_s=0.0))

    @_exclusive
    def note_watched(self, seconds: float) -> None:
        """Record for how long the version on probation has run."""
        if self.state.on_probation and seconds > self.state.watched_s:
            self._write(replace(self.state, watched_s=seconds))

    @_exclusive
    def note_start(self, *, counts: bool) -> None:
        """The agent starts.

        Args:
            counts: whether an abnormal end before it speaks against the active version.
        """
        abnormal = counts and self.state.on_probation and self.state.is_running
        if abnormal or not self.state.is_running:
            self._write(replace(self.state, starts=self.state.starts + abnormal, is_running=True))

    @_exclusive
    def note_stop(self, watched_s: float = 0.0) -> None:
        """The agent stops in order; the version on probation, if there is one, has run for so long."""
        if self.state.is_running:
            watched_s = max(watched_s, self.state.watched_s) if self.state.on_probation else 0.0
            self._write(replace(self.state, is_running=False, watched_s=watched_s))

    @_exclusive
    def count_death(self) -> int:
        """The process of the active version died during probation; how often that was by now."""
        self._write(replace(self.state, deaths=self.state.deaths + 1))
        return self.state.deaths

    @_exclusive
    def go_back(self, reason: str) -> None:
        """Give the active version up permanently; the one before it, if any, is active again."""
        old = self.state
        refused = old.refused if old.active is None else _with(old.refused, old.active.version)
        self._change(replace(self._previous(), refused=refused, rolled_back=True, reason=reason[:500]))

    @_exclusive
    def drop_rotten(self, reason: str) -> None:
        """Take the active version out of force because its bytes are damaged; it may be fetched and tried again.

        Its file is kept until then: what cannot be read now may be readable later.
        """
        state = self._previous()
        damaged = () if self.state.active is None else (Attempt(self.state.active.version, self.state.active.digest),)
        self._change(replace(state, reason=reason[:500], attempts=(*state.attempts, *damaged)))

    @_exclusive
    def refuse(self, version: int, reason: str) -> None:
        """Never try this version again."""
        kept = tuple(tried for tried in self.state.attempts if tried.version != version)
        self._change(replace(self.state, refused=_with(self.state.refused, version), reason=reason[:500], attempts=kept))

    def _previous(self) -> StoreState:
        old = self.state
        gone = -1 if old.active is None else old.active.version
        attempts = tuple(tried for tried in old.attempts if tried.version != gone)
        return StoreState(active=old.previous, refused=old.refused, is_running=old.is_running, attempts=attempts)

    # -- files ------------------------------------------------------------------------------------------------------

    def _change(self, state: StoreState) -> None:
        """Write a state, and retire the files that the old one needed and this one does not."""
        retired = (self.state.needed | {*self.state.retired}) - state.needed
        self._write(replace(state, retired=tuple(sorted(retired))))
        self._sweep()

    def _write(self, state: StoreState) -> None:
        state = replace(state, generation=self.state.generation + 1)
        try:
            self._file.write(state)
        except OSError as error:
            raise ModelError(f"the state in {self._folder} cannot be written: {error}; the model in force stays") from error
        self.state = state

    def _repair(self) -> None:
        """Write a copy again that was damaged or missing; a disk that refuses must not keep the agent from starting."""
        try:
            self._write(self.state)
        except ModelError as error:
            log.warning("model_state_not_repaired", folder=str(self._folder), reason=str(error))

    def _sweep(self) -> None:
        """Delete the files that the state names as retired, and those only."""
        left = []
        for name in self.state.retired:
            try:
                (self._versions / Path(name).name).unlink(missing_ok=True)
            except OSError as error:
                log.warning("model_file_not_deleted", file=name, reason=str(error))
                left.append(name)
        self.state = replace(self.state, retired=tuple(left))

    def _report_unexplained(self) -> None:
        unexplained = sorted(path.name for path in self._versions.iterdir() if path.name not in self.state.needed)
        if unexplained:
            log.warning("model_files_unexplained", folder=str(self._versions), files=unexplained[:8], count=len(unexplained))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _with(versions: tuple[int, ...], version: int) -> tuple[int, ...]:
    return tuple(sorted({*versions, version}))


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)
