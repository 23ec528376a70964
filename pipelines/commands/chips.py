"""`catchment chips`: cut slides that are committed already, by a new spec or after a refusal."""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer

from catchment.runtime.clock import SystemClock
from catchment.runtime.output import say
from pipelines.commands.options import AsJson, Config, show
from pipelines.config import CoreConfig, load_core_config
from pipelines.contracts.registry import ContractSet
from pipelines.errors import NotFoundError, RefusedError, RetryLaterError
from pipelines.ingest.chips.requests import CutRequest, SlideKey, cut_already, read_last_cut, request_slides
from pipelines.lake.lake import Lake, lake_of
from pipelines.lake.workplace import scratch
from pipelines.open_lake import LakeView
from schemas.chip_contract import chip_stream
from schemas.contract import ChipSpec

chips_app = typer.Typer(no_args_is_help=True, add_completion=False, help="Chips of slides: cut them again, or by a new spec.")
_POLL_S = 0.5
_KEY = ["device", "epoch", "seq"]


@chips_app.callback()
def chips() -> None:
    """Chips of slides: cut them again, or by a new spec."""


@chips_app.command("cut")
def cut(  # each is an option of the command line
    config: Config = None,
    stream: Annotated[str, typer.Option(help="Stream whose slides are cut.")] = "slide",
    spec: Annotated[list[str] | None, typer.Option(help="By this chip spec; may be given again; default: all.")] = None,
    where: Annotated[str, typer.Option(help="Only slides whose row fulfils this expression.")] = "",
    wait_s: Annotated[float, typer.Option(help="How long to wait for a run loop that is at work.")] = 600.0,
    as_json: AsJson = False,
) -> None:
    """Cut committed slides by today's contract and limits; slides that have chips of a spec as it is now are left as they are."""
    core = load_core_config(config)
    lake = lake_of(core)
    chosen = _specs(core, stream, spec or [])
    specs = [one.name for one in chosen]
    rows = LakeView(lake).rows(stream, columns=[*_KEY, "payload_shard"], where=where)
    keys = tuple(sorted(SlideKey(row[0], row[1], row[2]) for row in zip(*_columns(rows), strict=True) if row[3] is not None))
    if not keys:
        raise NotFoundError(f"no slides to cut: no row of stream {stream} with a payload fulfils the condition")
    wanted = {(*key, name) for key in keys for name in specs}
    before = wanted & cut_already(lake, stream, keys, chosen)
    changed = (wanted & cut_already(lake, stream, keys)) - before
    if changed:
        names = ", ".join(sorted({name for *_, name in changed}))
        say(f"{len(changed)} slides have chips of an earlier form of {names}; they are cut again", err=True)
    path = request_slides(lake, SystemClock().now_ms() * 1_000, CutRequest(stream, keys=keys, specs=tuple(specs)))
    _wait(core, path, keys, wait_s)
    done = wanted & cut_already(lake, stream, keys, chosen)
    result = {"slides": len(keys), "cut": len(done - before), "cut_before": len(before), "not_cut": len(wanted - done)}
    show(f"Chips of {stream} by {', '.join(specs)}", [result], as_json=as_json)


@chips_app.command("sheet")
def sheet(
    slide: Annotated[str, typer.Argument(help="device/epoch/seq of the slide, such as scanner-1/7/42.")],
    out: Annotated[Path, typer.Argument(help="The page: .html, or .png for the two maps alone.")],
    config: Config = None,
    stream: Annotated[str, typer.Option(help="Stream of the slides.")] = "slide",
    spec: Annotated[str, typer.Option(help="Chips of this spec; default: the first by name.")] = "",
    score: Annotated[str, typer.Option(help="Of the heat map: tissue, background, focus, entropy, …")] = "tissue",
    task: Annotated[str, typer.Option(help="Draw the labels of this task.")] = "",
) -> None:
    """A page of one slide's chips: the slide put together from them, a heat map of a score, some chips, labels drawn."""
    from pipelines.labels.chip_sheet import ChipSheet  # noqa: PLC0415  # the decoder of pictures only here
    from pipelines.labels.table import read_labels  # noqa: PLC0415  # likewise

    lake = lake_of(load_core_config(config))
    chosen, rows = _chips_of(lake, slide, stream, spec)
    labels = read_labels(lake, task)[0] if task else None
    found = ChipSheet(lake, f"{slide}, {chosen}", rows, score, labels).write(out)
    say(f"{out}: {found:,} chips of {slide} by {chosen}")


@chips_app.command("zarr")
def zarr(
    slide: Annotated[str, typer.Argument(help="device/epoch/seq of the slide, such as scanner-1/7/42.")],
    out: Annotated[Path, typer.Argument(help="A folder that is not there yet, such as slide.ome.zarr.")],
    config: Config = None,
    stream: Annotated[str, typer.Option(help="Stream of the slides.")] = "slide",
    spec: Annotated[str, typer.Option(help="Chips of this spec; default: the first by name.")] = "",
) -> None:
    """Put a slide together from its chips as an OME-Zarr 0.5 pyramid, for viewers such as napari."""
    from pipelines.imaging.ome_zarr import write_pyramid  # noqa: PLC0415  # as above

    lake = lake_of(load_core_config(config))
    chosen, rows = _chips_of(lake, slide, stream, spec)
    if not len(rows):
        raise NotFoundError(f"slide {slide} has no chips by {chosen or 'any spec'}; `catchment chips cut` cuts committed slides")
    levels = write_pyramid(lake, rows, out, f"{slide}, {chosen}")
    say(f"{out}: {levels} levels of {slide} by {chosen}")


def _chips_of(lake: Lake, slide: str, stream: str, spec: str) -> tuple[str, pa.Table]:
    """The chips of a slide by a spec, or by the first by name, in their order with the column `stream`; and the spec's name.

    Raises:
        RefusedError: that is not how a slide is named.
        NotFoundError: the stream has no chips.
    """
    steps = slide.split("/")
    if len(steps) != len(_KEY) or not steps[1].isdecimal() or not steps[2].isdecimal():
        raise RefusedError(f"a slide is named device/epoch/seq, such as scanner-1/7/42, not {slide[:80]!r}")
    rows = LakeView(lake).rows(chip_stream(stream), where=f"epoch = {int(steps[1])} AND seq = {int(steps[2])}")
    rows = rows.filter(pc.equal(rows.column("device").cast(pa.string()), steps[0]))
    specs = sorted(set(rows.column("spec").to_pylist()))
    chosen = spec or (specs[0] if specs else "")
    rows = rows.filter(pc.equal(rows.column("spec"), chosen))
    if "plane" in rows.schema.names:  # of a stack the first one
        rows = rows.filter(pc.equal(pc.fill_null(rows.column("plane"), 0), 0))
    rows = rows.append_column("stream", pa.repeat(pa.scalar(chip_stream(stream)), len(rows)))
    return chosen, rows.sort_by("chip_index")


def _columns(rows: Any) -> list[list[Any]]:
    return [rows.column(name).to_pylist() for name in (*_KEY, "payload_shard")]


def _specs(core: CoreConfig, stream: str, wanted: list[str]) -> list[ChipSpec]:
    """The specs to cut by.

    Raises:
        RefusedError: the stream's contract has no such spec.
    """
    contract = ContractSet.load(core.contracts).get(stream, None)
    known = [chip.name for chip in contract.chips] if contract is not None else []
    missing = [name for name in wanted if name not in known]
    if missing or not known:
        has = f"there are {', '.join(known)}" if known else "it has none"
        raise RefusedError(f"chip spec {(missing or ['(any)'])[0][:80]!r} is not in the contract of stream {stream}; {has}")
    assert contract is not None
    return [chip for chip in contract.chips if not wanted or chip.name in wanted]


def _wait(core: CoreConfig, path: Path, keys: tuple[SlideKey, ...], wait_s: float) -> None:
    """Cut here if no run loop is at work, else wait for that one to do it; show how far it is."""
    from pipelines.ingest.loop import load_state, only_loop  # noqa: PLC0415  # Beam is heavy, and only here

    lake, ends = lake_of(core), time.monotonic() + wait_s
    with typer.progressbar(length=len(keys), label="slides", file=sys.stderr) as bar:
        while lake.size(path) is not None:
            try:
                with only_loop(lake), scratch(core.lake_root, "chips"):
                    run = load_state(lake).ledger.run
                    _cut_here(core, run, lambda: bar.update(_done(lake, path, keys) - bar.pos))
            except RefusedError:
                if time.monotonic() > ends:
                    raise RetryLaterError(f"the run loop has not cut all in {wait_s:g} s; it goes on: {path}") from None
                Event().wait(_POLL_S)
            bar.update(_done(lake, path, keys) - bar.pos)


def _cut_here(core: CoreConfig, run: int, on_cut: Callable[[], None]) -> None:
    from pipelines.ingest.chips.loop import ChipLoop  # noqa: PLC0415  # likewise

    with closing(ChipLoop(core, SystemClock(), lambda: run)) as loop:
        while loop.step():
            on_cut()


def _done(lake: Lake, path: Path, keys: tuple[SlideKey, ...]) -> int:
    """How many slides of a request are done, cut or refused."""
    last = read_last_cut(lake)
    if lake.size(path) is None:
        return len(keys)
    return sum(key <= last.after for key in keys) if last.request == path.name and last.after is not None else 0
