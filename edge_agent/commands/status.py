"""`edge-agent status` and `books`: what a running or stopped agent holds."""

import msgspec

from catchment.runtime.output import say_json
from edge_agent.commands.options import AGENT, AsJson, Config


def status(config: Config = AGENT, as_json: AsJson = False) -> None:
    """Is it connected, does it make progress, how full is the spool, what was refused, what is parked?"""
    from edge_agent.commands.status_reader import read_status
    from edge_agent.commands.tables import show_status

    found = read_status(config)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_status(found)


def books(config: Config = AGENT, as_json: AsJson = False) -> None:
    """The books of every stream: captured = settled + spooled + dropped, with reasons and open epochs."""
    from edge_agent.commands.status_reader import read_ledger
    from edge_agent.commands.tables import show_ledger

    found = read_ledger(config)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_ledger(found)
