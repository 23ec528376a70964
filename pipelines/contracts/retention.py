"""Says at the start of a process which contracts ask for a retention: nothing in this release deletes rows by their age."""

import structlog

from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError

log = structlog.get_logger(__name__)
HINT = "rows stay until you delete them; the data engineer's page says how, and what goes with them"


def requested_retention(contracts: ContractSet) -> dict[str, int]:
    """The days of retention that the newest contract of each stream asks for; streams that ask for none are left out."""
    newest = {contract.name: contract for contract in contracts.all()}
    return {name: contract.retention_days for name, contract in newest.items() if contract.retention_days is not None}


def warn_of_retention(folder: str) -> dict[str, int]:
    """Log a warning if contracts ask for a retention; the streams and their days. A broken folder is for others to report.

    Args:
        folder: the folder of contracts, or "" for the built-in ones alone.
    """
    try:
        requested = requested_retention(ContractSet.load(folder))
    except ConfigError as error:
        log.debug("retention_unknown", reason=str(error))
        return {}
    if requested:
        log.warning("retention_not_enforced", days_by_stream=requested, hint=HINT)
    return requested
