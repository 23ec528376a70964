"""`catchment chips`: cut slides that are committed already, by a new spec or after a refusal."""

import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Annotated, Any

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
