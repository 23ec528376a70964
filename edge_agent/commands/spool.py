"""`edge-agent spool` and `edge-agent park`: single envelopes, as the operator sees them."""

import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from catchment.runtime.output import say, say_json
from catchment.runtime.plain import plain
from edge_agent.commands.exits import EXIT_DAMAGED
from edge_agent.commands.options import AGENT, AsJson, Config
from edge_agent.config import load_agent_config
from edge_agent.errors import AgentError, NotFoundError

if TYPE_CHECKING:
    from edge_agent.spool.inspection import SpoolEntry

_TAKEN_WITHIN_S = 3.0
_SPOOL_HELP = """Look at single envelopes. Works while the agent runs and after; changes nothing.

An envelope is a batch of samples of one stream, as one message. Example: `edge-agent spool ls -c agent.toml --state parked`.
"""
_PARK_HELP = """Envelopes that the broker or the core refuses for good: put aside with the reason, so that the rest goes on.

They are kept until they are sent, or evicted first when the spool is full. Example: raise the broker's packet limit, then
`edge-agent park replay -c agent.toml --all`.
"""

spool_app = typer.Typer(help=_SPOOL_HELP, no_args_is_help=True)
park_app = typer.Typer(help=_PARK_HELP, no_args_is_help=True)
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="At most so many, oldest first.")]


@spool_app.command("ls")
def list_spool(
    config: Config = AGENT,
    stream: Annotated[str | None, typer.Option("--stream", help="Only this stream.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only ready, waiting (for its large payload) or parked.")] = None,
    limit: LimitOption = 100,
    as_json: AsJson = False,
) -> None:
    """List envelopes, oldest first."""
    from edge_agent.spool import inspection
    from edge_agent.spool.records import State

    if state is not None and state.upper() not in State.__members__:
        raise typer.BadParameter(f"{state!r} is not one of ready, waiting, parked", param_hint="--state")
    with opened_spool(config) as (db, _):
        found = inspection.entries(db, stream=stream, state=None if state is None else State[state.upper()], limit=limit)
        in_all = inspection.count(db)
    _tell_entries(found, in_all, as_json=as_json, is_cut=len(found) >= limit)


@spool_app.command("show")
def show_envelope(
    id_: Annotated[int, typer.Argument(metavar="ID", help="As `spool ls` shows it.")],
    config: Config = AGENT,
    body: Annotated[Path | None, typer.Option("--body", help="Write its body (an Arrow IPC stream) to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one envelope, and whether it is what was stored."""
    from edge_agent.spool import database, inspection, payload_files
    from edge_agent.spool.sealing import open_envelope, read_seal

    with opened_spool(config) as (db, folder):
        found = inspection.entry(db, id_)
        if found is None:
            raise NotFoundError(f"there is no envelope {id_}; it is settled, or never was: see `edge-agent spool ls`")
        try:
            envelope = database.load(db, id_, partial(payload_files.read_body, folder / payload_files.FOLDER_NAME))
            check = "as it was stored"
        except database.RottenEnvelopeError as error:
            envelope, check = None, str(error)
    if body is not None:
        if envelope is None:
            raise AgentError(f"its body is not written: {check}")
        opened = open_envelope(envelope, read_seal(load_agent_config(config).spool.key))
        body.write_bytes(b"" if opened is None else opened.body)
    fields = {**msgspec.structs.asdict(found), "verdict": check}
    if as_json:
        say_json(msgspec.json.encode(fields))
        return
    for name, value in fields.items():
        say(f"{name:<17} {plain(value)}")


@spool_app.command("verify")
def verify_spool(config: Config = AGENT, as_json: AsJson = False) -> None:
    """Read everything and compare it with its checksums. Exit code 1 when something is damaged.

    The agent gives damaged envelopes up by itself, counted as `corrupt`, when it comes to send them.
    """
    from edge_agent.spool import inspection

    with opened_spool(config) as (db, folder):
        check = inspection.verify(db, folder)
    if as_json:
        say_json(msgspec.json.encode({**msgspec.structs.asdict(check), "is_sound": check.is_sound}))
    else:
        say(
            f"{check.envelopes:,} envelopes of {check.samples:,} samples, {check.body_bytes:,} bytes,"
            f" {check.objects:,} large payloads: {'sound' if check.is_sound else f'{len(check.findings)} DAMAGED'}"
        )
        for finding in check.findings:
            say(f"  {finding.what}")
    if not check.is_sound:
        sys.exit(EXIT_DAMAGED)


@park_app.command("ls")
def list_parked(config: Config = AGENT, limit: LimitOption = 100, as_json: AsJson = False) -> None:
    """List parked envelopes and why each was put aside."""
    from edge_agent.spool import inspection
    from edge_agent.spool.records import State

    with opened_spool(config) as (db, _):
        found = inspection.entries(db, stream=None, state=State.PARKED, limit=limit)
        in_all = inspection.count(db)
    _tell_entries(found, in_all, as_json=as_json, is_cut=len(found) >= limit)


@park_app.command("replay")
def replay_parked(
    config: Config = AGENT,
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="As `park ls` shows them.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is parked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have parked envelopes sent again. A running agent does it at once, a stopped one when it starts."""
    from edge_agent.spool import inspection
    from edge_agent.spool.inspection import ask_replay
    from edge_agent.spool.records import State

    if bool(ids) == everything:
        raise typer.BadParameter("give ids, or --all", param_hint="ID")
    with opened_spool(config) as (db, folder):
        parked = {entry.id for entry in inspection.entries(db, stream=None, state=State.PARKED, limit=1_000_000)}
    unknown = sorted(set(ids or ()) - parked)
    if unknown:
        raise NotFoundError(f"not parked: {', '.join(map(str, unknown))}; see `edge-agent park ls`")
    request = ask_replay(folder, None if everything else tuple(ids or ()))
    deadline_s = time.monotonic() + _TAKEN_WITHIN_S
    while request.exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    count, is_taken = len(parked if everything else set(ids or ())), not request.exists()
    if as_json:
        say_json(msgspec.json.encode({"envelopes": count, "is_taken": is_taken}))
    else:
        say(f"{count} parked: {'being sent again' if is_taken else 'sent again when the agent runs'}")


@contextmanager
def opened_spool(path: Path) -> Iterator[tuple[sqlite3.Connection, Path]]:
    """The spool of this configuration, to be read alone: its database and its folder."""
    from edge_agent.spool import inspection

    folder = load_agent_config(path).spool_dir
    try:
        with closing(inspection.open_folder(folder)) as db:
            yield db, folder
    except sqlite3.OperationalError as error:
        raise AgentError(f"the spool in {folder} cannot be read: {error}; has `edge-agent run` been started?") from error


def _tell_entries(found: "list[SpoolEntry]", in_all: dict[str, int], *, as_json: bool, is_cut: bool) -> None:
    from edge_agent.commands.tables import show_entries

    if as_json:
        say_json(msgspec.json.encode({"envelopes": found, "in_all": in_all}))
    else:
        show_entries(found, in_all, is_cut=is_cut)
