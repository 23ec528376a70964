"""The program `catchment`: runs a command and turns what it raises into one line on standard error and an exit code.

Stands alone because it is what the installed script names.
"""

from typing import NoReturn

from catchment.runtime.plain import plain_tracebacks
from pipelines.commands.exits import REPORTED, code_of, leave, report
from pipelines.commands.root import app
from pipelines.logs import log_to_stderr


def main() -> NoReturn:
    """Run the command that was typed, and end the process."""
    plain_tracebacks()
    log_to_stderr()
    leave(run_command())


def run_command() -> int:
    """Run the command that was typed; the exit code."""
    try:
        app()
    except SystemExit as ended:
        return code_of(ended)
    except REPORTED as error:
        return report(error)
    return 0
