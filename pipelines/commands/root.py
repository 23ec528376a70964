"""The command `catchment`: its groups, the core's processes, and what the lake says of itself."""

import importlib
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from catchment.runtime.exits import STOP, exit_table
from catchment.runtime.output import say
from catchment.runtime.renamed_commands import RenamedCommands
from pipelines.commands.options import AsJson, Config, show
from pipelines.config import config_path, load_core_config
from pipelines.errors import RefusedError
from pipelines.stopping import stop_on_signals

if TYPE_CHECKING:
    from pipelines.lake.lake import Lake


@dataclass(frozen=True, slots=True)
class CommandGroup:
    """A command that another room brings: imported only when it is asked for, so that help stays fast."""

    module: str
    name: str
    help: str


ROOMS = {
    "bridge": CommandGroup("pipelines.commands.bridge", "bridge", "Take messages from the broker and land them durably."),
    "status": CommandGroup("pipelines.commands.status", "status", "What waits, since when, how fast, and is all well."),
    "watch": CommandGroup("pipelines.commands.status", "watch", "Serve /metrics, /live and /ready."),
    "gaps": CommandGroup("pipelines.commands.status", "gaps", "Samples that must exist and have not come."),
    "compact": CommandGroup("pipelines.commands.maintenance", "compact", "Put small files together."),
    "vacuum": CommandGroup("pipelines.commands.maintenance", "vacuum", "Delete files that nothing refers to."),
    "maintain": CommandGroup("pipelines.commands.maintenance", "maintain", "Roll-ups, compaction and vacuum."),
    "quarantine": CommandGroup("pipelines.commands.quarantine", "quarantine_app", "Refused samples: see why, replay, discard."),
    "chips": CommandGroup("pipelines.commands.chips", "chips_app", "Cut slides again, or by a new spec."),
    "contract": CommandGroup("pipelines.commands.contract", "contract_app", "Check, compile and show contracts."),
    "policy": CommandGroup("pipelines.commands.policy", "policy_app", "Check, try and apply tagging policies."),
    "set": CommandGroup("pipelines.commands.training_set_care", "set_app", "Build, verify and read training sets."),
    "similar": CommandGroup("pipelines.commands.mining", "similar", "Samples most like given ones."),
    "rare": CommandGroup("pipelines.commands.mining", "rare", "Samples least like the rest of a stream."),
    "uncertain": CommandGroup("pipelines.commands.mining", "uncertain", "Samples of which a model is least sure."),
    "disagreeing": CommandGroup("pipelines.commands.mining", "disagreeing", "Samples on which models, or people, disagree."),
    "label": CommandGroup("pipelines.commands.label", "label_app", "Labels from and for labelling tools."),
    "model": CommandGroup("pipelines.commands.model", "model_app", "Sign and publish models; serve them to devices."),
    "rollout": CommandGroup(
        "pipelines.commands.rollout", "rollout_app", "Roll a model out to cohorts of devices, watch it, halt it."
    ),
    "director": CommandGroup("pipelines.commands.director", "director_app", "The key that signs orders: make, give out, change."),
    "bench": CommandGroup("pipelines.commands.bench", "bench_app", "Measure how many accelerators a disk feeds."),
    "demo": CommandGroup("pipelines.commands.demo", "demo", "See all of it work on this machine, in minutes."),
}


class LazyRooms(RenamedCommands):
    """Lists every room's commands without importing a room."""

    renamed: ClassVar[dict[str, str]] = {"ledger": "books", "holes": "gaps"}

    def list_commands(self, ctx: Any) -> list[str]:
        """All names: the core's own, then the rooms'."""
        return [*super().list_commands(ctx), *ROOMS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command of this module; for a room's, a stand-in that says what it is."""
        room = ROOMS.get(cmd_name)
        return super().get_command(ctx, cmd_name) if room is None else typer.main.get_command(_stand_in(cmd_name, room))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, with its room imported."""
        name, command, rest = super().resolve_command(ctx, args)
        room = ROOMS.get(name)
        return name, command if room is None else _load(name, room), rest


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
    """Run bridge, run loop and model server here, restart processes that exit, stop in order on Ctrl-C or SIGTERM."""
    from catchment.runtime.clock import SystemClock  # noqa: PLC0415  # likewise
    from pipelines.commands.supervisor import STOP_WITHIN_S, supervise  # noqa: PLC0415  # heavy only here
    from pipelines.contracts.registry import warn_of_retention  # noqa: PLC0415  # likewise
    from pipelines.status.server import serving  # noqa: PLC0415  # likewise

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
    runner: Annotated[
        str, typer.Option(help="direct | dask | portable | prism | flink | spark | dataflow; else as configured.")
    ] = "",
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
    from catchment.runtime.clock import SystemClock  # noqa: PLC0415  # heavy only here
    from pipelines.ingest.loop_process import run_loop  # noqa: PLC0415  # heavy only here
    from pipelines.lake.lake import lake_of  # noqa: PLC0415  # only here
    from pipelines.maintenance.maintain import LogShortener, only_maintenance  # noqa: PLC0415  # only here
    from pipelines.maintenance.vacuum import Keep  # noqa: PLC0415  # only here
    from pipelines.runners.engine import Engine  # noqa: PLC0415  # only here

    core = load_core_config(config)
    options = tuple(beam_options or ()) or core.run.beam_options
    engine = Engine(runner or core.run.runner, options, workers or core.run.dask_workers)
    if from_landing:
        from pipelines.ingest.backfill import backfill, segments_of  # noqa: PLC0415  # only here
        from pipelines.lake.workplace import scratch  # noqa: PLC0415  # only here

        with only_maintenance(lake_of(core)), scratch(core.lake_root, "backfill"):
            done = backfill(core, segments_of(from_landing), engine, SystemClock())
        show("Replaced rows", [asdict(one) for one in done], as_json=as_json)
        return
    shortener = LogShortener(lake_of(core), Keep.of(core.maintain))
    run_loop(core, stop_on_signals(), SystemClock(), once=once, engine=engine, after_run=shortener.after_run)


@app.command()
def books(config: Config = None, as_json: AsJson = False) -> None:
    """The books per stream: received = committed + quarantined + discarded + duplicate. Exit code 1 if they do not balance."""
    from pipelines.lake import view  # noqa: PLC0415  # heavy only here

    found = view.books(_lake(config))
    show("Books", found.rows, as_json=as_json)
    if not found.is_balanced:
        raise typer.Exit(STOP)


@app.command()
def streams(config: Config = None, as_json: AsJson = False) -> None:
    """The stream tables: rows, files, bytes, columns, Delta version."""
    from pipelines.lake import view  # noqa: PLC0415  # heavy only here

    show("Streams", view.streams(_lake(config)), as_json=as_json)


@app.command()
def version() -> None:
    """The version of this installation."""
    from importlib.metadata import version as installed  # noqa: PLC0415  # rarely asked

    say(f"catchment {installed('catchment')}")


def _lake(path: Path | None) -> "Lake":
    from pipelines.lake.lake import lake_of  # noqa: PLC0415  # only here

    return lake_of(load_core_config(path))


def _stand_in(name: str, room: CommandGroup) -> typer.Typer:
    stand_in = typer.Typer(add_completion=False)
    stand_in.command(name, help=room.help)(lambda: None)
    return stand_in


def _load(name: str, room: CommandGroup) -> Any:
    try:
        found = getattr(importlib.import_module(room.module), room.name)
    except ModuleNotFoundError as error:
        raise RefusedError(f"`{name}` needs {error.name}, which is not installed; install the extra that brings it") from error
    if isinstance(found, typer.Typer):
        return typer.main.get_command(found)
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name, help=None if found.__doc__ else room.help)(found)
    return typer.main.get_command(single)
