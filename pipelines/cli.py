"""The command `catchment`: the core's processes, and what the lake says of itself. What commands raise becomes a line here."""

import importlib
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NoReturn

import typer

from catchment.runtime.exits import STOP, exit_table
from catchment.runtime.output import say
from catchment.runtime.plain import plain_tracebacks
from catchment.runtime.renamed_commands import RenamedCommands
from pipelines.config import config_path, load_core_config
from pipelines.ending import code_of, leave
from pipelines.errors import RefusedError
from pipelines.exits import REPORTED, report
from pipelines.logs import log_to_stderr
from pipelines.options import AsJson, Config
from pipelines.stopping import stop_on_signals
from pipelines.tables import show

if TYPE_CHECKING:
    from pipelines.lake.lake import Lake

# Where a shell that completes a command puts the words typed so far.
_TYPED = "COMP_WORDS"


@dataclass(frozen=True, slots=True)
class Room:
    """A command that another room brings: imported only when it is asked for, so that help stays fast."""

    module: str
    name: str
    help: str


ROOMS = {
    "bridge": Room("pipelines.bridge.cli", "bridge", "Take messages from the broker and land them durably."),
    "status": Room("pipelines.status.cli", "status", "What waits, since when, how fast, and is all well."),
    "watch": Room("pipelines.status.cli", "watch", "Serve /metrics, /live and /ready."),
    "gaps": Room("pipelines.status.cli", "gaps", "Samples that must exist and have not come."),
    "compact": Room("pipelines.upkeep.cli", "compact", "Put small files together."),
    "vacuum": Room("pipelines.upkeep.cli", "vacuum", "Delete what nothing refers to any more."),
    "maintain": Room("pipelines.upkeep.cli", "maintain", "Roll-ups, compaction and vacuum."),
    "quarantine": Room("pipelines.ingest.quarantine_cli", "quarantine_app", "Refused samples: see why, replay, discard."),
    "contract": Room("pipelines.contracts.cli", "contract_app", "Check, compile and show contracts."),
    "policy": Room("pipelines.policy.cli", "policy_app", "Check, try and apply tagging policies."),
    "set": Room("pipelines.training.cli", "set_app", "Build, verify and read training sets."),
    "model": Room("pipelines.rollout.cli", "model_app", "Sign and publish models; serve them to devices."),
    "rollout": Room("pipelines.rollout.cli", "rollout_app", "Roll a model out to cohorts of devices, watch it, halt it."),
    "director": Room("pipelines.director.cli", "director_app", "The key that signs orders: make, give out, change."),
    "demo": Room("pipelines.demo.cli", "demo", "See all of it work on this machine, in minutes."),
}


class LazyRooms(RenamedCommands):
    """Lists every room's commands without importing a room."""

    renamed: ClassVar[dict[str, str]] = {"ledger": "books", "holes": "gaps"}

    def list_commands(self, ctx: Any) -> list[str]:
        """All names: the core's own, then the rooms'."""
        return [*super().list_commands(ctx), *ROOMS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; for help alone a stand-in that says what it is."""
        room = ROOMS.get(cmd_name)
        if room is None:
            return super().get_command(ctx, cmd_name)
        if (ctx.resilient_parsing and _TYPED not in os.environ) or _lists_commands():
            return typer.main.get_command(_stand_in(cmd_name, room))
        return _load(cmd_name, room)


app = typer.Typer(
    cls=LazyRooms,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Carry what devices see into training sets, and models back. Start everything: [b]catchment up -c core.toml[/b]",
    epilog=exit_table(),
    rich_markup_mode="rich",
)


@app.command()
def up(config: Config = None) -> None:
    """Run bridge, run loop and model server here, restart what falls over, stop in order on Ctrl-C or SIGTERM."""
    from pipelines.clock import SystemClock  # noqa: PLC0415  # likewise
    from pipelines.contracts.retention import warn_of_retention  # noqa: PLC0415  # likewise
    from pipelines.status.server import serving  # noqa: PLC0415  # likewise
    from pipelines.up import STOP_WITHIN_S, supervise  # noqa: PLC0415  # heavy only here

    path = config_path(config)
    core = load_core_config(path)
    warn_of_retention(core.contracts)
    watched = serving(_lake(path), core.watch.host, core.watch.port, SystemClock(), core.alarms)
    with watched if core.watch.port else nullcontext():
        stop = stop_on_signals(STOP_WITHIN_S + 0.3)
        code = supervise(path, stop, with_models=bool(core.models), maintain_every_s=core.maintain.every_s)
    raise typer.Exit(code)


@app.command()
def run(
    config: Config = None,
    once: Annotated[bool, typer.Option(help="End when nothing waits.")] = False,
    runner: Annotated[str, typer.Option(help="direct | dask | flink | portable | spark | dataflow; else as configured.")] = "",
    workers: Annotated[
        int,
        typer.Option("--dask-workers", "--workers", min=0, help="With dask: processes of a local cluster kept open over runs."),
    ] = 0,
    from_landing: Annotated[
        str, typer.Option(help="Run these landed segments once more ([BRIDGE:]FIRST-LAST), as a new version of their tables.")
    ] = "",
    as_json: AsJson = False,
    beam_options: Annotated[list[str] | None, typer.Argument(help="After --: Beam's own options, as Beam takes them.")] = None,
) -> None:
    """Turn landed segments into rows, again and again: plan, run, commit, receipts. Kill it at any time."""
    from pipelines.clock import SystemClock  # noqa: PLC0415  # heavy only here
    from pipelines.ingest.loop_process import run_loop  # noqa: PLC0415  # heavy only here
    from pipelines.runners.engine import Engine  # noqa: PLC0415  # only here

    core = load_core_config(config)
    options = tuple(beam_options or ()) or core.run.beam_options
    engine = Engine(runner or core.run.runner, options, workers or core.run.dask_workers)
    if from_landing:
        from pipelines.ingest.backfill import backfill, segments_of  # noqa: PLC0415  # only here
        from pipelines.lake.lake import lake_of  # noqa: PLC0415  # only here
        from pipelines.lake.scratch import scratch  # noqa: PLC0415  # only here
        from pipelines.upkeep.maintain import only_maintenance  # noqa: PLC0415  # only here

        with only_maintenance(lake_of(core)), scratch(core.lake_root, "backfill"):
            done = backfill(core, segments_of(from_landing), engine, SystemClock())
        show("Made anew", [asdict(one) for one in done], as_json=as_json)
        return
    run_loop(core, stop_on_signals(), SystemClock(), once=once, engine=engine)


@app.command()
def books(config: Config = None, as_json: AsJson = False) -> None:
    """The books per stream: received = committed + quarantined + discarded + duplicate. Exit code 1 if they do not balance."""
    from pipelines.lake import report  # noqa: PLC0415  # heavy only here

    found = report.books(_lake(config))
    show("Books", found.rows, as_json=as_json)
    if not found.is_balanced:
        raise typer.Exit(STOP)


@app.command()
def streams(config: Config = None, as_json: AsJson = False) -> None:
    """The stream tables: rows, files, bytes, columns, Delta version."""
    from pipelines.lake import report  # noqa: PLC0415  # heavy only here

    show("Streams", report.streams(_lake(config)), as_json=as_json)


@app.command()
def version() -> None:
    """The version of this installation."""
    from importlib.metadata import version as installed  # noqa: PLC0415  # rarely asked

    say(f"catchment {installed('catchment')}")


def main() -> NoReturn:
    """Run the command and turn what it raises into a sentence and an exit code."""
    plain_tracebacks()
    log_to_stderr()
    leave(_run())


def _run() -> int:
    try:
        app()
    except SystemExit as ended:
        return code_of(ended)
    except REPORTED as error:
        return report(error)
    return 0


def _lake(path: Path | None) -> "Lake":
    from pipelines.lake.lake import lake_of  # noqa: PLC0415  # only here

    return lake_of(load_core_config(path))


def _lists_commands() -> bool:
    """Whether only the list of commands is asked for, so that no room need be imported to say what it does."""
    typed = os.environ[_TYPED].split() if _TYPED in os.environ else sys.argv
    words = [word for word in typed[1:] if not word.startswith("-")]
    return not any(word in ROOMS or word in LazyRooms.renamed for word in words)


def _stand_in(name: str, room: Room) -> typer.Typer:
    stand_in = typer.Typer(add_completion=False)
    stand_in.command(name, help=room.help)(lambda: None)
    return stand_in


def _load(name: str, room: Room) -> Any:
    try:
        found = getattr(importlib.import_module(room.module), room.name)
    except ModuleNotFoundError as error:
        raise RefusedError(f"`{name}` needs {error.name}, which is not installed; install the extra that brings it") from error
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, help=None if found.__doc__ else room.help)(found)
    return typer.main.get_command(single)
