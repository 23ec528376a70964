"""The program `edge-agent`: runs a command and turns what it raises into one line on standard error and an exit code.

Stands alone because it is what the installed script names.
"""

import sys

from catchment.runtime.output import say
from catchment.runtime.plain import plain_tracebacks
from edge_agent.commands.exits import REPORTED, exit_code
from edge_agent.commands.root import app


def main() -> None:
    """The console script."""
    plain_tracebacks()
    try:
        app()
    except REPORTED as error:
        say(f"edge-agent: {error}", err=True)
        sys.exit(exit_code(error))
