"""Claim the state folder: for one agent at a time, and for one device as long as samples of it wait there."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from catchment.runtime.atomic_files import make_folder, write_atomic
from edge_agent.errors import AgentError, ConfigError
from schemas.errors import SchemaError
from schemas.ids import enrolled_id, is_role_name

LOCK_NAME = "agent.lock"
FILE_NAME = "device"
_MAX_BYTES = 256

log = structlog.get_logger(__name__)


def claim(state_dir: Path, device: str, undelivered: int) -> None:
    """Note whose spool this is: samples are sent under the device's name, and one that changes must not change theirs.

    Args:
        state_dir: the agent's own folder.
        device: as the configuration or the certificate names it.
        undelivered: samples in the spool that are not settled.

    Raises:
        ConfigError: the spool holds samples of another device, or a new device has the name of one of the core's roles.
    """
    path = state_dir / FILE_NAME
    before = _noted(path)
    refuse_role_name(state_dir, device, is_known=before == device or (not before and undelivered > 0))
    if before == device:
        return
    if before and undelivered:
        raise ConfigError(
            f"the spool in {state_dir} holds {undelivered:,} samples of device {before}, which would be sent as {device}'s:"
            f" run as {before} until `edge-agent books` says spooled 0, or give {device} a state_dir of its own"
        )
    try:
        write_atomic(path, device.encode())
    except OSError as error:
        # A full disk is no reason not to drain: it is noted at the next start.
        log.warning("spool_owner_not_recorded", error=str(error))


def refuse_role_name(state_dir: Path, device: str, *, is_known: bool | None = None) -> None:
    """Refuse to begin a device under the name of one of the core's roles; one that has begun goes on, with a warning.

    Args:
        state_dir: the agent's own folder.
        device: its name.
        is_known: whether this device has run here before; None: look.

    Raises:
        ConfigError: the name is a role's, and the device is new.
    """
    if not is_role_name(device):
        return
    if is_known is None:
        is_known = _noted(state_dir / FILE_NAME) == device
    if is_known:
        log.warning(
            "device_has_role_name", device=device, hint="its certificate has the core's rights; enrol it again under another name"
        )
        return
    try:
        enrolled_id(device)
    except SchemaError as error:
        raise ConfigError(str(error)) from error


def _noted(path: Path) -> str:
    """The device whose spool it was; empty where nothing is known, as before the first start."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode(errors="replace").strip()
    except OSError:
        return ""


@contextmanager
def held(state_dir: Path) -> Iterator[None]:
    """One agent per state folder: two would give the same samples to two epochs."""
    try:
        make_folder(state_dir)
        lock = (state_dir / LOCK_NAME).open("w")
    except OSError as error:
        raise ConfigError(f"state_dir {state_dir} cannot be written: {error}; give it to the agent's user") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AgentError(f"another agent runs with state_dir {state_dir}; stop it first") from error
        yield
