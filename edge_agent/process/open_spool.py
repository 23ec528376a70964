"""The spool as the configuration asks for it."""

from catchment.runtime.clock import Clock
from edge_agent.config import AgentConfig, load_contract
from edge_agent.spool.database import LARGE_PAGE_BYTES, SMALL_PAGE_BYTES
from edge_agent.spool.sealing import read_seal
from edge_agent.spool.spool import Spool


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
