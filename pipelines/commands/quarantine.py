"""`catchment quarantine`: what was refused and why; replay it once the cause is gone, or discard it."""

import json
import time
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from catchment.runtime.clock import SystemClock
from pipelines.commands.options import AsJson, Config, show
from pipelines.config import CoreConfig, load_core_config
from pipelines.errors import NotFoundError, RefusedError, RetryLaterError
from pipelines.ingest.decode import RECEIVED
from pipelines.ingest.quarantine import BODY_NONE, DISCARD, REPLAY, STAGE_CHIPS, Request, write_request
from pipelines.lake.lake import Lake, lake_of
from pipelines.lake.quarantined import Where, closed, grouped, heads
from pipelines.lake.workplace import scratch
from schemas.envelope import parse_time
from schemas.errors import EnvelopeError

quarantine_app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Refused samples: see why, replay them once the cause is gone, or discard them.",
)

Ids = Annotated[list[str] | None, typer.Option("--id", help="This row; may be given again.")]
Stream = Annotated[str | None, typer.Option(help="Of this stream; '' for messages that named none.")]
Stage = Annotated[str | None, typer.Option(help="Refused at this stage.")]
Reason = Annotated[str | None, typer.Option(help="With this in the reason.")]
Device = Annotated[str | None, typer.Option(help="Of this device.")]
EventTime = Annotated[
    str,
    typer.Option(
        help="Set event times that the device could not know: 'received' dates the newest sample of each message by when it"
        " landed, a time such as 2026-05-28T20:26:40Z dates the first; the others keep their distances."
    ),
]
All = Annotated[bool, typer.Option("--all", help="Everything that fits; needed where nothing else is given.")]
_POLL_S = 0.2


@quarantine_app.command("ls")
def ls(config: Config = None, as_json: AsJson = False) -> None:
    """Refused samples by stream, stage and kind of reason, the most first."""
    show("Quarantine", grouped(heads(_lake(config), Where())), as_json=as_json)


@quarantine_app.command("show")
def show_rows(
    stream: Annotated[str, typer.Argument(help="A stream's name; '' for messages that named none.")],
    config: Config = None,
    stage: Stage = None,
    reason: Reason = None,
    device: Device = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """The refused samples of one stream, newest first, each with the id to replay or discard it by."""
    found = heads(_lake(config), Where(stream, stage, reason, device))
    if not found.num_rows:
        raise NotFoundError(f"nothing of stream {stream!r} in quarantine; `catchment quarantine ls` shows what there is")
    rows = found.sort_by([("run", "descending")]).slice(0, limit).drop_columns(["stream", "content_type", "spans"]).to_pylist()
    show(f"Quarantine of {stream}", rows, as_json=as_json)


@quarantine_app.command("replay")
def replay(  # noqa: PLR0913, PLR0917  # each is an option of the command line
    config: Config = None,
    ids: Ids = None,
    stream: Stream = None,
    stage: Stage = None,
    reason: Reason = None,
    device: Device = None,
    everything: All = False,
    version: Annotated[str, typer.Option(help="Read them by this contract version, not by the one they name.")] = "",
    event_time: EventTime = "",
    wait_s: Annotated[float, typer.Option(help="How long to wait for a run loop that is at work.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Put refused samples through again, by today's contracts and policies. Each is committed once, or refused again."""
    where = _where(Where(stream, stage, reason, device, tuple(ids or ())), everything=everything)
    set_to = _event_time(event_time)
    _carry_out(load_core_config(config), REPLAY, where, wait_s, as_json=as_json, version=version, event_time=set_to)


@quarantine_app.command("discard")
def discard(  # noqa: PLR0913, PLR0917  # likewise
    config: Config = None,
    ids: Ids = None,
    stream: Stream = None,
    stage: Stage = None,
    reason: Reason = None,
    device: Device = None,
    everything: All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait_s: Annotated[float, typer.Option(help="How long to wait for a run loop that is at work.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Let refused samples go: they leave the list, and `catchment maintain` then deletes their bytes."""
    where = _where(Where(stream, stage, reason, device, tuple(ids or ())), everything=everything)
    core = load_core_config(config)
    if not yes:
        typer.confirm(f"Discard {heads(lake_of(core), where).num_rows} rows of the quarantine permanently?", abort=True)
    _carry_out(core, DISCARD, where, wait_s, as_json=as_json)


def _event_time(text: str) -> str:
    """The option as a replay's property: `received`, or the microseconds since 1970."""
    if text in ("", RECEIVED):
        return text
    try:
        return str(parse_time(text))
    except EnvelopeError as error:
        raise RefusedError(f"--event-time: {error}; give 'received', or a time such as 2026-05-28T20:26:40Z") from error


def _where(where: Where, *, everything: bool) -> Where:
    if where == Where() and not everything:
        raise RefusedError("say which: --id, --stream, --stage, --reason, --device, or --all")
    return where


def _carry_out(
    core: CoreConfig, kind: str, where: Where, wait_s: float, *, as_json: bool, version: str = "", event_time: str = ""
) -> None:
    lake = lake_of(core)
    found = heads(lake, where)
    rows = zip(*(found.column(name).to_pylist() for name in ("id", "body_format", "stage")), strict=True)
    ids = tuple(
        row_id
        for row_id, form, stage in rows
        if row_id is not None and (kind == DISCARD or form != BODY_NONE or stage == STAGE_CHIPS)
    )
    if not ids:
        raise NotFoundError(f"nothing to {kind}; `catchment quarantine ls` shows what there is")
    requested_at_us = SystemClock().now_ms() * 1_000
    request = Request(kind, ids, requested_at_us, version, event_time)  # type: ignore[arg-type]  # one of the two constants
    path = write_request(lake, request)
    _wait(core, path, wait_s)
    show(f"{kind} of {len(ids)} rows", [_outcome(lake, ids)], as_json=as_json)


def _wait(core: CoreConfig, path: Path, wait_s: float) -> None:
    """Do it here if no run loop is at work, else wait for that one to do it."""
    from pipelines.ingest.loop import only_loop  # noqa: PLC0415  # Beam is heavy, and only here

    ends = time.monotonic() + wait_s
    while lake_of(core).size(path) is not None:
        try:
            with only_loop(lake_of(core)), scratch(core.lake_root, "quarantine"):
                _do_here(core)
        except RefusedError:
            if time.monotonic() > ends:
                raise RetryLaterError(f"the run loop has not come to it in {wait_s:g} s; it will: {path}") from None
            Event().wait(_POLL_S)


def _do_here(core: CoreConfig) -> None:
    """Carry out what is asked, and cut the slides that are replayed."""
    from pipelines.ingest.chips.loop import ChipLoop  # noqa: PLC0415  # as above
    from pipelines.ingest.loop import NoReceipts, RunLoop  # noqa: PLC0415  # likewise
    from pipelines.runners.engine import Engine  # noqa: PLC0415  # likewise

    loop = RunLoop(core, NoReceipts(), SystemClock(), Engine())
    loop.carry_out_requests()
    with closing(ChipLoop(core, SystemClock(), lambda: loop.ledger.run)) as chips:
        while chips.step():
            pass


def _outcome(lake: Lake, ids: tuple[str, ...]) -> dict[str, Any]:
    done = [row for row in closed(lake).to_pylist() if row["id"] in set(ids)]
    runs = sorted({row["run"] for row in done})
    again = heads(lake, Where())
    refused = sum(
        count
        for run, count in zip(again.column("run").to_pylist(), again.column("count").to_pylist(), strict=True)
        if run in set(runs)
    )
    samples = sum(row["count"] for row in done)
    replayed = sum(row["count"] for row in done if row["outcome"] == REPLAY)
    return {
        "rows": len(done), "samples": samples, "committed": max(0, replayed - refused), "refused_again": refused,
        "discarded": samples - replayed, "not_replayable": len(ids) - len(done), "runs": json.dumps(runs),
    }  # fmt: skip


def _lake(path: Path | None) -> Lake:
    return lake_of(load_core_config(path))
