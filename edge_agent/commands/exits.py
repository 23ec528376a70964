"""Map errors of the agent's commands to one line on standard error and an exit code."""

import sqlite3

from catchment.runtime.exits import REFUSED, RETRY, STOP, USAGE
from edge_agent.errors import AgentError, ConfigError, NotFoundError
from schemas.errors import SchemaError

EXIT_UNHEALTHY = STOP  # `doctor` found something that does not work
EXIT_DAMAGED = STOP  # `spool verify` found something damaged
EXIT_CONFIG = USAGE  # the configuration is wrong: correct it
EXIT_PARKED = REFUSED  # all else is settled, but parked envelopes are left: see `edge-agent status`
EXIT_RETRY = RETRY  # the spool broke, or another agent runs: start again (EX_TEMPFAIL)

# The first that fits decides.
_CODES: tuple[tuple[type[Exception], int], ...] = (
    (ConfigError, USAGE),
    (NotFoundError, REFUSED),
    (SchemaError, REFUSED),
    (AgentError, RETRY),
    (sqlite3.Error, RETRY),
    (OSError, RETRY),
)
REPORTED = tuple(kind for kind, _ in _CODES)


def exit_code(error: Exception) -> int:
    """The exit code for an error, by the table that `edge-agent --help` shows."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), STOP)
