"""Open the agent's spool, and stand by until it can be opened: stay up, report the failure everywhere, try again.

A disk without a byte left, or one that refuses, is no reason to end: whoever watches over the device would see a service that
restarts for ever, and nothing of why.
"""

import os
import random
import threading

import structlog

from catchment.runtime.backoff import Backoff
from catchment.runtime.clock import Clock
from edge_agent.config import AgentConfig, load_contract
from edge_agent.errors import SpoolError
from edge_agent.health.agent_stats import AgentStats
from edge_agent.health.file import Health, notify_service_manager, rss_bytes, write_health
from edge_agent.spool.database import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES
from edge_agent.spool.sealing import read_seal
from edge_agent.spool.spool import Spool

_FIRST_S = 1.0
_CAP_S = 60.0
_TURN_S = 1.0

log = structlog.get_logger(__name__)


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
