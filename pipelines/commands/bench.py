"""`catchment bench au`: how many accelerators this disk feeds.

Stands alone because every group of commands is a module that is imported only when it is asked for.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from catchment.runtime.clock import SystemClock
from catchment.runtime.output import say, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands.options import AsJson
from pipelines.errors import RefusedError
from pipelines.training.utilisation import WORKLOADS, measure

bench_app = typer.Typer(help="Measure this machine.", no_args_is_help=True)


@bench_app.callback()
def _group() -> None:
    """Measure this machine."""


@bench_app.command("au")
def au(
    folder: Annotated[Path, typer.Argument(help="Folder on the disk that sets will be read from.")],
    work: Annotated[str, typer.Option("--work", help=f"Shape of the job: {', '.join(WORKLOADS)}.")] = "retinanet",
    accelerators: Annotated[int, typer.Option(min=1, max=64, help="How many to emulate.")] = 1,
    gigabytes: Annotated[float, typer.Option("--gb", min=0.001, help="Samples to write and read, in GB.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Emulate accelerators that read a set from a disk, warm and cold, next to samples in memory."""
    if work not in WORKLOADS:
        raise RefusedError(f"--work {work!r}: there are {', '.join(WORKLOADS)}")
    if not folder.is_dir():
        raise RefusedError(f"{folder}: no such folder")
    with tempfile.TemporaryDirectory(prefix="catchment-au-", dir=folder) as home:
        found = measure(Path(home), WORKLOADS[work], accelerators, int(gigabytes * 1e9), SystemClock())
    if as_json:
        say_json(msgspec.json.encode({"measured": found, "advice": found.advice()}))
        return
    table = PlainTable("samples from", "busy", "samples/s", "MB/s", title=f"{accelerators} x {work}")
    for name, one in (("memory (control)", found.control), ("kernel's memory", found.warm), ("disk", found.cold)):
        size = one.samples_per_s * found.work.sample_bytes / 1e6
        table.add_row(name, f"{one.share:.1%}", f"{one.samples_per_s:,.0f}", f"{size:,.0f}")
    PlainConsole().print(table)
    for line in found.advice():
        say(line)
    say("an emulation of the shapes of MLPerf Storage, no result of it")
