"""`catchment compact`, `catchment vacuum` and `catchment maintain`."""

from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Annotated

import structlog
import typer

from pipelines.commands.options import AsJson, Config, show
from pipelines.config import load_core_config
from pipelines.contracts.registry import warn_of_retention
from pipelines.errors import RefusedError, RetryLaterError
from pipelines.lake.compact import compact_all
from pipelines.lake.lake import lake_of
from pipelines.maintenance.maintain import maintain as maintain_once
from pipelines.maintenance.maintain import only_maintenance
from pipelines.maintenance.vacuum import Keep, Vacuum
from pipelines.stopping import stop_on_signals

log = structlog.get_logger(__name__)


def compact(config: Config = None, as_json: AsJson = False) -> None:
    """Put the small files that frequent runs write together. Runs and readers go on meanwhile."""
    lake = lake_of(load_core_config(config))
    with only_maintenance(lake):
        show("Compacted", [asdict(done) for done in compact_all(lake)], as_json=as_json)


def vacuum(
    config: Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Without grace; the run loop must not be at work.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete files that nothing refers to: replaced files past their time, orphans of crashes, segments long since rows."""
    core = load_core_config(config)
    lake, keep = lake_of(core), Keep.of(core.maintain)
    with ExitStack() as held:
        held.enter_context(only_maintenance(lake))
        if now:
            from pipelines.ingest.loop import only_loop  # noqa: PLC0415  # Beam is heavy, and only here

            held.enter_context(only_loop(lake))
            keep = replace(keep, grace_s=0)
        done = Vacuum(lake, keep, dry_run=dry_run).sweep()
    rows = [{"kind": kind, "files": count} for kind, count in sorted(done.files.items())]
    show(f"{'Would delete' if dry_run else 'Deleted'} {done.bytes:,} bytes", rows, as_json=as_json)


def maintain(
    config: Config = None,
    every_s: Annotated[float, typer.Option("--every-s", help="Again and again, so many seconds apart; 0: once.")] = 0,
) -> None:
    """Roll-ups, compaction and vacuum."""
    core = load_core_config(config)
    warn_of_retention(core.contracts)
    stop = stop_on_signals()
    while not stop.is_set():
        try:
            maintain_once(lake_of(core), Keep.of(core.maintain))
        except OSError as error:
            raise RetryLaterError(f"maintenance: {error}; try again") from error
        except RefusedError as error:
            if core.remote is None or not every_s:
                raise
            log.info("maintenance_left_to_another", reason=str(error))  # each machine of a remote lake has its turn
        if not every_s:
            return
        stop.wait(every_s)
