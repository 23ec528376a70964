"""The command line of `edge-agent`: every command, and the table of exit codes. Each command loads only what it needs."""

from typing import ClassVar

import typer

from catchment.runtime.exits import exit_table
from catchment.runtime.renamed_commands import RenamedCommands
from edge_agent.commands.check import check, doctor, try_
from edge_agent.commands.enrol import enrol
from edge_agent.commands.run import run, version
from edge_agent.commands.spool import park_app, spool_app
from edge_agent.commands.status import books, status

_HELP = """Captures samples, keeps them through power cuts, and delivers each exactly once.

Start with `edge-agent check -c agent.toml`, see with `edge-agent try` what its sources give, then `edge-agent run`; look with
`status` and `books`, which work while the agent runs and after. SIGHUP makes a running agent read its configuration again.

Code 1: `doctor` found something that does not work, `try` something that is refused, or `spool verify` damage; 3: also where
`run --until-settled` ended with parked envelopes left; 75: also where another agent runs, where nothing came for `try`, and
where there is no spool yet.
"""


class Commands(RenamedCommands):
    """The agent's commands."""

    renamed: ClassVar[dict[str, str]] = {"ledger": "books"}


app = typer.Typer(cls=Commands, help=_HELP, epilog=exit_table(), no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(spool_app, name="spool")
app.add_typer(park_app, name="park")
for _command in (run, status, books, version, enrol, check, doctor):
    app.command()(_command)
app.command("try")(try_)
