"""`catchment status` and `catchment watch`."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from catchment.runtime.clock import SystemClock
from catchment.runtime.exits import STOP
from catchment.runtime.output import say, say_json
from pipelines.commands.options import AsJson, Config, show
from pipelines.config import load_core_config
from pipelines.inspect.suspended import HINT
from pipelines.lake.commit import committed_run
from pipelines.lake.lake import lake_of
from pipelines.lake.layout import COMMITS
from pipelines.lake.ledger import gaps as find_gaps
from pipelines.lake.ledger_files import read_ledger
from pipelines.status.health import assess
from pipelines.status.server import serving
from pipelines.status.survey import Survey, as_plain, survey
from pipelines.stopping import stop_on_signals


def status(
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show what waits and since when, the last commit, the rate, and alarms. Exit code 1 if there is an alarm."""
    core = load_core_config(config)
    found = survey(lake_of(core), SystemClock().now_ms() * 1_000)
    verdict = assess(found, core.alarms)
    if as_json:
        plain = {"alive": verdict.is_alive, "ready": verdict.is_ready, "alarms": verdict.alarms, **as_plain(found)}
        say_json(json.dumps(plain, default=str))
    else:
        _print(found)
        for alarm in verdict.alarms:
            say(f"ALARM: {alarm}")
    if verdict.alarms:
        raise typer.Exit(STOP)


def watch(
    config: Config = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0: any free one.")] = 9109,
) -> None:
    """Serve /metrics (Prometheus), /live and /ready for this lake, until stopped."""
    stop = stop_on_signals()
    core = load_core_config(config)
    with serving(lake_of(core), host, port, SystemClock(), core.alarms) as bound:
        say(f"http://{host}:{bound}/metrics", err=True)
        stop.wait()


def _print(found: Survey) -> None:
    rows: list[dict[str, Any]] = [
        {
            "stream": stream.stream,
            "committed": stream.counts.committed,
            "quarantined": stream.counts.quarantined,
            "discarded": stream.counts.discarded,
            "duplicate": stream.counts.duplicate,
            "waiting": stream.waiting,
            "oldest waiting": _age(found.at_us, stream.oldest_waiting_us),
            "last commit": _age(found.at_us, stream.last_commit_us),
            "samples/s": round(stream.recent_samples * 1e6 / found.recent_span_us) if found.recent_span_us else 0,
        }
        for stream in found.streams
    ]
    show(f"Streams after run {found.run}", rows, as_json=False)
    _print_waiting(found)
    _print_processes(found)
    if found.suspended:
        rows = [{"suspended": f"{one.kind} {one.name}", "stream": one.stream, "since": _age(found.at_us, one.at_us),
                 "reason": one.reason} for one in found.suspended]  # fmt: skip
        show("Suspended: give no tags, or no columns", rows, as_json=False)
        say(HINT)


def _print_waiting(found: Survey) -> None:
    stages: list[dict[str, Any]] = [
        {
            "stage": f"landing {one.bridge}",
            "waiting": one.segments,
            "bytes": one.bytes,
            "oldest": _age(found.at_us, one.oldest_us),
        }
        for one in found.waiting
    ]
    if stages:
        show("Landed, not run", stages, as_json=False)


def _print_processes(found: Survey) -> None:
    processes: list[dict[str, Any]] = [
        {
            "process": f"{heartbeat.role} {heartbeat.name}",
            "host": heartbeat.host,
            "pid": heartbeat.pid,
            "heartbeat": _age(found.at_us, heartbeat.at_ms * 1_000),
            "ready": heartbeat.is_ready,
            "trouble": heartbeat.trouble,
        }
        for heartbeat in (*found.heartbeats, *found.remote_heartbeats)
    ]
    show("Processes", processes, as_json=False)


def _age(now_us: int, then_us: int | None) -> str:
    return "-" if then_us is None else f"{max(0, now_us - then_us) / 1e6:,.1f} s"


def gaps(
    config: Config = None,
    device: Annotated[str, typer.Option(help="Of this device.")] = "",
    stream: Annotated[str, typer.Option(help="Of this stream.")] = "",
    as_json: AsJson = False,
) -> None:
    """Missing seqs: later ones of the same epoch are here. Filled when they come, closed when the device says it dropped them."""
    lake = lake_of(load_core_config(config))
    found = find_gaps(read_ledger(lake, committed_run(lake, COMMITS)), device, stream)
    rows = [{**asdict(gap), "samples": gap.samples} for gap in found]
    show("Gaps", rows, as_json=as_json)
