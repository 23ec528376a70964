"""`catchment demo`: the whole loop on this machine, in a minute or two."""

import signal
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from catchment.runtime.clock import SystemClock
from catchment.runtime.exits import INTERRUPTED, STOP
from catchment.runtime.output import say, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.demo.run import DemoOptions, Outcome, folder_name, outcome_json, run_demo
from pipelines.demo.view import DemoView
from pipelines.errors import PipelineError


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Your own folder of pictures, CSV and JSON lines, in place of simulated devices.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long the devices capture before the training.")] = 30,
    out: Annotated[
        Path | None, typer.Option(help="Where everything is written; default: a new folder for temporary files.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the simulated devices.")] = 7,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcome as one JSON document; progress goes to stderr.")
    ] = False,
) -> None:
    """See all of it work: devices, a dropped network, training sets, a model that goes back, and the books."""
    clock = SystemClock()
    console = PlainConsole(stderr=as_json)
    folder = (out or Path(tempfile.gettempdir()) / folder_name(clock)).absolute()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        if folder.exists() and any(folder.iterdir()):
            raise typer.BadParameter(f"{folder} is not empty; give a new folder", param_hint="--out")
        with DemoView(console, clock) as view:
            outcome = _run(data, DemoOptions(folder, seconds, seed), view)
    except KeyboardInterrupt:
        console.print(f"stopped; everything that was started has ended. What was written lies in {folder}")
        raise typer.Exit(INTERRUPTED) from None
    except PipelineError:
        say(f"the demo failed; what was written, and the logs, are in {folder}", err=True)
        raise
    if as_json:
        say_json(outcome_json(outcome))
    else:
        _tell(console, outcome)
    if outcome.faults:
        raise typer.Exit(STOP)


def _run(data: Path | None, options: DemoOptions, view: DemoView) -> Outcome:
    if data is None:
        return run_demo(options, view)
    from pipelines.demo.own_data import run_on_own_data  # noqa: PLC0415  # needed only with --data

    return run_on_own_data(data.absolute(), options, view)


def _tell(console: PlainConsole, outcome: Outcome) -> None:
    devices = PlainTable(title="the devices' books: captured = settled + spooled + dropped", title_justify="left")
    for name in ("device", "stream", "captured", "settled", "spooled", "dropped"):
        devices.add_column(name, justify="left" if name in ("device", "stream") else "right")
    for agent in outcome.agents:
        for book in agent.books:
            figures = (book.captured, book.settled, book.spooled, sum(book.dropped.values()))
            devices.add_row(agent.device, book.stream, *(f"{figure:,}" for figure in figures))
    core = PlainTable(title="the core's books: received = committed + quarantined + discarded + duplicate", title_justify="left")
    for name in ("stream", "received", "committed", "quarantined", "discarded", "duplicate"):
        core.add_column(name, justify="left" if name == "stream" else "right")
    for row in outcome.core:
        counts = (row.received, row.committed, row.quarantined, row.discarded, row.duplicate)
        core.add_row(row.stream, *(f"{figure:,}" for figure in counts))
    console.print(devices, core)
    for line in outcome.skipped:
        console.print(f"skipped: {line}", style="yellow", soft_wrap=True)
    for line in outcome.faults:
        console.print(f"does not add up: {line}", style="bold red", soft_wrap=True)
    if not outcome.faults:
        console.print("Every captured sample is in the lake or accounted for.", style="bold green")
    _tell_places(console, outcome)


def _tell_places(console: PlainConsole, outcome: Outcome) -> None:
    folder = Path(outcome.folder)
    console.print(f"\nEverything lies in {folder}: core.toml, agents/, policies/, lake/, logs/.", soft_wrap=True)
    for one in outcome.sets:
        console.print(f"  set {one.name}: {one.folder} (its card: card.html)", soft_wrap=True)
    console.print("\nTry next:")
    name = outcome.sets[-1].name if outcome.sets else "surface"
    for line in (
        f"catchment set show {name} -c {folder / 'core.toml'}",
        f"catchment policy test {folder / 'policies'}/*.yaml",
        f"python -c \"import catchment; print(catchment.open_set('{folder}/lake/sets/{name}/1')[0].columns)\"",
    ):
        console.print(f"  {line}", style="cyan", soft_wrap=True, highlight=False)
