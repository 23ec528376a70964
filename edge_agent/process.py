"""Hold the state folder for one agent and one device, and open its spool; where that fails, stand by until it can be opened.

A full or refusing disk is no reason to exit: the service manager would see only a service that restarts again and again.
A standing-by agent stays up, reports the failure everywhere, and tries again.
"""

import fcntl
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from catchment.runtime.atomic_files import make_folder, write_atomic
from catchment.runtime.clock import Backoff, Clock
from edge_agent.config import AgentConfig, load_contract
from edge_agent.errors import AgentError, ConfigError, SpoolError
from edge_agent.health.agent_stats import AgentStats
from edge_agent.health.file import Health, notify_service_manager, rss_bytes, write_health
from edge_agent.spool.database import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES
from edge_agent.spool.sealing import read_seal
from edge_agent.spool.spool import Spool
from schemas.errors import SchemaError
from schemas.ids import enrolled_id, is_role_name

log = structlog.get_logger(__name__)

LOCK_NAME = "agent.lock"
FILE_NAME = "device"
_MAX_BYTES = 256


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


_FIRST_S = 1.0
_CAP_S = 60.0
_TURN_S = 1.0


def open_spool(config: AgentConfig, clock: Clock) -> Spool:
    """Open the agent's spool.

    Raises:
        ConfigError: a source's contract is wrong, or the spool's key.
        SpoolError: the disk refuses even a new file.
    """
    has_payloads = any(load_contract(source).payload is not None for source in config.source)
    return Spool(
        config.spool_dir,
        max_bytes=config.spool.max_bytes,
        linger_ms=config.spool.linger_ms,
        clock=clock,
        page_bytes=LARGE_PAGE_BYTES if has_payloads else SMALL_PAGE_BYTES,
        min_free_bytes=config.spool.min_free_bytes,
        seal=read_seal(config.spool.key),
    )


class Standby:
    """Waits for the spool.

    Args:
        config: the agent's.
        version: the agent's.
        clock: monotonic time for ages and waits.
        stop: set when the agent is to end.
    """

    def __init__(self, config: AgentConfig, version: str, clock: Clock, stop: threading.Event) -> None:
        self._config = config
        self._version = version
        self._clock = clock
        self._stop = stop
        self._started_s = self._loop_s = clock.monotonic_s()
        self._failure = ""

    def open(self) -> Spool | None:
        """The spool, as soon as it can be opened; None when the agent is to end before that.

        Raises:
            ConfigError: the configuration asks for what is not there, or the key is not the spool's.
        """
        try:
            return open_spool(self._config, self._clock)
        except SpoolError as error:
            self._failure = str(error)
        # Loaded only where somebody asks: an HTTP server brings 2 MB along.
        from edge_agent.health.server import HealthServer  # noqa: PLC0415

        server = HealthServer(self._config.health, self.snapshot) if self._config.health.port else None
        notify_service_manager("READY=1")
        try:
            return self._try_on()
        finally:
            if server is not None:
                server.close()

    def snapshot(self) -> AgentStats:
        """Alive, and waiting. From any thread."""
        now_s = self._clock.monotonic_s()
        return AgentStats(
            device=self._config.device,
            version=self._version,
            last_loop_age_s={"main": now_s - self._loop_s},
            is_connected=False,
            uptime_s=now_s - self._started_s,
            oldest_unsettled_s=None,
            last_receipt_s=None,
            last_ack_s=None,
            sent=0,
            not_sent=0,
            resent=0,
            parked=0,
            used_bytes=0,
            max_bytes=self._config.spool.max_bytes,
            rss_bytes=rss_bytes(),
            sources_running=0,
            books=(),
            waits_for=self._failure,
        )

    def _try_on(self) -> Spool | None:
        backoff = Backoff(_FIRST_S, _CAP_S, random.random)
        while not self._stop.is_set():
            wait_s = backoff.next_s()
            log.error("spool_not_open", error=self._failure, retry_in_s=round(wait_s, 1))
            until_s = self._clock.monotonic_s() + wait_s
            while (left_s := until_s - self._clock.monotonic_s()) > 0 and not self._stop.wait(min(left_s, _TURN_S)):
                self._loop_s = self._clock.monotonic_s()
                self._tell()
            if self._stop.is_set():
                break
            try:
                spool = open_spool(self._config, self._clock)
            except SpoolError as error:
                self._failure = str(error)
                continue
            log.info("spool_open")
            return spool
        return None

    def _tell(self) -> None:
        notify_service_manager("WATCHDOG=1")
        health = Health(
            at_ms=self._clock.now_ms(),
            pid=os.getpid(),
            is_connected=False,
            sources_running=0,
            sent=0,
            not_sent=0,
            resent=0,
            parked=0,
            since_ack_s=None,
            used_bytes=0,
            max_bytes=self._config.spool.max_bytes,
            rss_bytes=rss_bytes(),
            failure=self._failure,
        )
        try:
            write_health(self._config.state_dir, health)
        except OSError as error:
            log.warning("health_not_written", error=str(error))
