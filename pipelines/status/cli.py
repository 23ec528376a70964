"""`catchment status` and `catchment watch`."""

import json
import signal
from pathlib import Path
from threading import Event
from typing import Annotated, Any

import typer

from pipelines.clock import SystemClock
from pipelines.config import load_core_config
from pipelines.status.health import judge
from pipelines.status.server import serving
from pipelines.status.survey import Survey, as_plain, survey
from pipelines.tables import show

Config = Annotated[Path, typer.Option("-c", "--config", help="The core's TOML file.")]


def status(
    config: Config = Path("core.toml"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """What waits, since when, what was committed last, how fast, and is all well. Exit code 1 if something is not."""
    found = survey(load_core_config(config).lake_root, SystemClock().now_ms() * 1_000)
    verdict = judge(found)
    if as_json:
        plain = {"alive": verdict.is_alive, "ready": verdict.is_ready, "alarms": verdict.alarms, **as_plain(found)}
        typer.echo(json.dumps(plain, default=str))
    else:
        _print(found)
        for alarm in verdict.alarms:
            typer.echo(f"ALARM: {alarm}")
    if not verdict.is_ready:
        raise typer.Exit(1)


def watch(
    config: Config = Path("core.toml"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port; 0: any free one.")] = 9109,
) -> None:
    """Serve /metrics (Prometheus), /live and /ready for this lake, until stopped."""
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with serving(load_core_config(config).lake_root, host, port, SystemClock()) as bound:
        typer.echo(f"http://{host}:{bound}/metrics", err=True)
        stop.wait()


def _print(found: Survey) -> None:
    rows: list[dict[str, Any]] = [
        {
            "stream": stream.stream,
            "committed": stream.counts.committed,
            "quarantined": stream.counts.quarantined,
            "duplicate": stream.counts.duplicate,
            "waiting": stream.waiting,
            "oldest waiting": _age(found.at_us, stream.oldest_waiting_us),
            "last commit": _age(found.at_us, stream.last_commit_us),
            "samples/s": round(stream.recent_samples * 1e6 / found.recent_span_us) if found.recent_span_us else 0,
        }
        for stream in found.streams
    ]
    show(f"Streams after run {found.run}", rows, as_json=False)
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
    processes: list[dict[str, Any]] = [
        {"process": f"{beat.role} {beat.name}", "pid": beat.pid, "beat": _age(found.at_us, beat.at_ms * 1_000),
         "ready": beat.is_ready, "trouble": beat.trouble}
        for beat in found.beats
    ]  # fmt: skip
    show("Processes", processes, as_json=False)


def _age(now_us: int, then_us: int | None) -> str:
    return "-" if then_us is None else f"{max(0, now_us - then_us) / 1e6:,.1f} s"
