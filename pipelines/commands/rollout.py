"""`catchment rollout …`: which devices run which model, in which waves."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

import msgspec
import typer

from catchment.runtime.clock import SystemClock
from catchment.runtime.output import say, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands.options import AsJson, Config, require_files
from pipelines.config import CoreConfig, load_core_config
from pipelines.director import DesiredOrders
from pipelines.errors import RefusedError, RetryLaterError
from pipelines.rollout.cohorts import BUCKETS, parse_cohort
from pipelines.rollout.fleet import publish_orders, reported_models
from pipelines.rollout.fleet_evidence import FleetWatch
from pipelines.rollout.judged import add_judged, read_judged, read_verdicts
from pipelines.rollout.keys import KeyFolder, keys_folder, models_folder
from pipelines.rollout.repository import ModelRepository
from pipelines.rollout.rollouts import Rollout, RolloutStore, progress, way_back
from pipelines.rollout.server import serve
from pipelines.rollout.waves import WAVES, parse_waves, promised_exposure, wave_counts
from pipelines.stopping import stop_on_signals
from schemas.reported import ModelReport

__all__ = ["order_again", "rollout_app", "serve"]

rollout_app = typer.Typer(help="Which devices run which model.", no_args_is_help=True)
out = PlainConsole()

Reports = Mapping[str, tuple[ModelReport, ...]]
Cohorts = Annotated[str, typer.Option("--cohort", help="all, 10%, device names, patterns like line-*; several with commas.")]
Waves = Annotated[str, typer.Option("--waves", help="Growing shares of the cohort, or none: everyone at once.")]
_WAVES = ",".join(f"{share:.0%}" for share in WAVES)
_WATCH_S = 2.0


@rollout_app.command("plan")
def rollout_plan(
    config: Config = None,
    cohort: Cohorts = "all",
    waves: Waves = _WAVES,
    devices: Annotated[int, typer.Option(help="Size of the cohort; 0: the devices that report now.")] = 0,
) -> None:
    """Show the waves of a rollout, and what a fleet of that size can be promised. Starts nothing."""
    count = devices
    if count < 1:
        covered = parse_cohort(cohort)
        known = reported_models(load_core_config(config))
        count = len({*covered.among("plan", known), *covered.named_devices})
    _say_plan(parse_waves(waves), count)


def _say_plan(waves: tuple[float, ...], devices: int) -> None:
    counts = wave_counts(waves or (1.0,), devices)
    out.print(f"{devices} devices in waves of {', '.join(map(str, counts)) or '0'} in all")
    for share in (0.2, 0.5, 1.0):
        worst = promised_exposure(counts, min(share, 1 - 1e-9))
        text = f"{worst} devices ({worst / devices:.0%})" if devices else "nobody"
        out.print(f"a model that fails on {share:.0%} of devices reaches at most {text}, in 95 of 100 such rollouts")
    if devices and promised_exposure(counts, 0.2) > 0.05 * devices:
        out.print(
            "that is more than 5%: the fleet is too small for failing devices alone; let waves last longer (--soak-minutes)"
        )


@rollout_app.command("start")
def rollout_start(  # noqa: PLR0913, PLR0917  # each argument is an option of the command
    model: Annotated[str, typer.Argument(help="The model's name.")],
    config: Config = None,
    cohort: Cohorts = "all",
    version: Annotated[int | None, typer.Option(help="The model's version; default: the newest.")] = None,
    name: Annotated[str, typer.Option(help="The rollout's name; default: <model>-<version>.")] = "",
    halt_ratio: Annotated[float, typer.Option(help="Without waves: stop when more than this share of answers fail.")] = 0.2,
    force: Annotated[bool, typer.Option(help="Start although the cohort covers no device that is known.")] = False,
    waves: Waves = _WAVES,
    soak_minutes: Annotated[float, typer.Option(help="A wave lasts at least so long.")] = 10.0,
    min_pictures: Annotated[int, typer.Option(help="Pictures that the version must see before a further wave.")] = 5_000,
    min_judged: Annotated[int, typer.Option(help="Disagreements to judge before a further wave: rollout judge.")] = 0,
    max_latency_ms: Annotated[float, typer.Option(help="An answer that takes longer is too slow; 0: none is.")] = 0.0,
) -> None:
    """Start a rollout, or widen it: the same name with a larger cohort."""
    core = load_core_config(config)
    found = _repository(core).model(model, version)
    text = str(parse_cohort(cohort))
    rollout = Rollout(
        name or f"{model}-{found.spec.version}", model, found.spec.version, found.target, text,
        SystemClock().now_ms(), halt_ratio=halt_ratio, waves=parse_waves(waves), soak_s=60 * soak_minutes,
        min_attempts=min_pictures, min_judged=min_judged, max_latency_ms=max_latency_ms,
    )  # fmt: skip
    reports = reported_models(core)
    _say_coverage(rollout, reports, is_forced=force)
    store = _store(core)
    rollout = _first_wave(rollout, store, reports)
    store.save(rollout)
    orders = DesiredOrders.open(core, SystemClock())
    published = publish_orders(core, rollout, reports, orders)
    if not orders.public_keys:
        say("unsigned: there is no director key, and devices with [director] refuse it; catchment director init", err=True)
    out.print(f"rollout {rollout.name}: {model} version {rollout.version} to {text}; {len(published)} devices notified")
    if rollout.waves and len(published) < len(rollout.eligible(reports)):
        out.print("the model server begins further waves: catchment rollout status --watch")


def _first_wave(rollout: Rollout, store: RolloutStore, reports: Reports) -> Rollout:
    """With its first wave; one that runs already keeps the wave that it has reached."""
    if not rollout.waves:
        return rollout
    same = (rollout.name, rollout.version, "running")
    running = next((each for each in store.all() if (each.name, each.version, each.state) == same and each.waves), None)
    if running is not None and running.opened_ms:
        return msgspec.structs.replace(rollout, limit=running.limit, opened_ms=running.opened_ms)
    return rollout.opened(reports, rollout.issued_ms)


def _say_coverage(rollout: Rollout, reports: Reports, *, is_forced: bool) -> None:
    """Say how many devices a cohort has, before anything is ordered.

    Raises:
        RefusedError: it has none, and that was not asked for.
    """
    cohort = rollout.devices
    covered = rollout.eligible(reports)
    known = f"{len(reports)} device{'' if len(reports) == 1 else 's'} known"
    if not covered and cohort.share < BUCKETS and not is_forced:
        raise RefusedError(
            f"cohort {cohort} covers 0 of {known}, so nobody would try the model; take a larger share, name a device, "
            "or give --force for devices that will report later; nothing was started"
        )
    out.print(f"cohort {cohort} covers {len(covered)} of {known}")


@rollout_app.command("pause")
def rollout_pause(name: str, config: Config = None) -> None:
    """Begin no further wave. Devices that were reached go on, and the rollout still halts by itself."""
    _store(load_core_config(config)).change(name, lambda now: msgspec.structs.replace(now, is_paused=True))
    out.print(f"rollout {name} is paused")


@rollout_app.command("resume")
def rollout_resume(name: str, config: Config = None) -> None:
    """Let further waves begin again, also when more than half of the devices failed: they are accepted as they are now."""
    core = load_core_config(config)
    _store(core).get(name)
    reports = reported_models(core)

    def resume(now: Rollout) -> Rollout:
        if now.state != "running":
            raise RefusedError(f"rollout {name} is {now.state}, which is final; start one of another name")
        return msgspec.structs.replace(now, is_paused=False, accepted_failures=len(progress(now, reports).failed))

    _store(core).change(name, resume)
    out.print(f"rollout {name} is resumed")


@rollout_app.command("halt")
def rollout_halt(name: str, config: Config = None) -> None:
    """Stop a rollout: devices that run its version well keep it, others are ordered what came before."""
    core = load_core_config(config)
    rollout = _store(core).halt(name, "halted by hand")
    out.print(f"rollout {name} is halted")
    order_again([rollout], core)


@rollout_app.command("rollback")
def rollout_rollback(
    name: str,
    config: Config = None,
    to: Annotated[int | None, typer.Option(help="The version to go back to; default: the newest one before it.")] = None,
) -> None:
    """Halt a rollout, and order all its devices the version before, also those that run its version well."""
    core = load_core_config(config)
    store = _store(core)
    bad = store.get(name)
    versions = [each for each in _repository(core).models() if each.spec.name == bad.model]
    back = way_back(bad, {each.spec.version: each.target for each in versions}, to, SystemClock().now_ms())
    store.halt(name, "rolled back by hand")
    store.save(back)
    out.print(f"rollout {name} is halted; {back.name} orders version {back.version}")
    order_again([back], core)


@rollout_app.command("judge")
def rollout_judge(
    name: str,
    file: Annotated[Path, typer.Argument(help="CSV or Parquet with the columns sample, current, candidate and truth.")],
    config: Config = None,
) -> None:
    """Say what was right on pictures on which a version and the one before disagree. A picture counts once."""
    core = load_core_config(config)
    _store(core).get(name)
    require_files([file])
    pairs = add_judged(_rollouts(core), name, read_verdicts(file))
    out.print(f"rollout {name}: the version before was right on {pairs.old_right} pictures, this one on {pairs.new_right}")


def order_again(rollouts: list[Rollout], core: CoreConfig) -> None:
    """Replace the orders of changed rollouts at the broker, whether or not a model server runs."""
    if not rollouts:
        return
    try:
        reports = reported_models(core)
        for rollout in rollouts:
            devices = publish_orders(core, rollout, reports, DesiredOrders.open(core, SystemClock()))
            out.print(f"rollout {rollout.name}: {len(devices)} devices notified")
    except RetryLaterError as error:
        raise RetryLaterError(
            f"it is halted, but its orders stand at the broker until the model server runs, or this is done again: {error}"
        ) from error


@rollout_app.command("status")
def rollout_status(
    config: Config = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds, until stopped.")] = False,
) -> None:
    """Show every rollout and how far its devices are, as they report it."""
    core = load_core_config(config)
    fleet = FleetWatch()
    _show_status(core, fleet, as_json=as_json)
    while watch:
        time.sleep(_WATCH_S)
        _show_status(core, fleet, as_json=as_json)


def _show_status(core: CoreConfig, fleet: FleetWatch, *, as_json: bool) -> None:
    reports = reported_models(core)
    rows: list[dict[str, object]] = []
    for rollout in _store(core).all():
        done = progress(rollout, reports)
        rows.append({"rollout": rollout.name, "model": rollout.model, "version": rollout.version, "cohort": rollout.cohort,
                     "state": "paused" if rollout.is_paused and rollout.state == "running" else rollout.state,
                     "active": list(done.active), "failed": list(done.failed),
                     "waiting": list(done.waiting), "on_probation": list(done.on_probation),
                     "blocked": list(done.blocked), "reason": rollout.reason,
                     "wave": _wave(core, rollout, reports, fleet)})  # fmt: skip
    devices = {device: [msgspec.to_builtins(item) for item in models] for device, models in sorted(reports.items())}
    if as_json:
        say_json(json.dumps({"rollouts": rows, "devices": devices}))
        return
    _print_status(rows, reports)


def _wave(core: CoreConfig, rollout: Rollout, reports: Reports, fleet: FleetWatch) -> str:
    """How many devices a rollout in waves has reached, and what the next wave waits for."""
    if not rollout.waves or rollout.state != "running":
        return ""
    judged = read_judged(_rollouts(core), rollout.name)
    decision, evidence = fleet.decide(rollout, reports, judged, SystemClock().now_ms())
    reached = f"{evidence.reached} of {len(rollout.eligible(reports))}"
    if evidence.reached >= len(rollout.eligible(reports)) and rollout.opened_ms:
        return f"{reached}: all waves have begun"
    return f"{reached}: {decision.reason}"


def _print_status(rows: list[dict[str, object]], reports: Reports) -> None:
    table = PlainTable("rollout", "model", "cohort", "state", "active", "on probation", "failed", "blocked", "waiting", "wave")
    for row in rows:
        counts = [str(len(cast("list[str]", row[key]))) for key in ("active", "on_probation", "failed", "blocked", "waiting")]
        model = f"{row['model']} {row['version']}"
        table.add_row(str(row["rollout"]), model, str(row["cohort"]), str(row["state"]), *counts, str(row["wave"]))
    out.print(table)
    devices = PlainTable("device", "model", "version", "state", "reason")
    for device, models in sorted(reports.items()):
        for item in models:
            devices.add_row(device, item.name, str(item.version), item.state, item.reason)
    out.print(devices)


def _rollouts(core: CoreConfig) -> Path:
    return models_folder(core) / "rollouts"


def _store(core: CoreConfig) -> RolloutStore:
    return RolloutStore(_rollouts(core))


def _repository(core: CoreConfig) -> ModelRepository:
    return ModelRepository(models_folder(core), KeyFolder(keys_folder(core)), SystemClock())


@rollout_app.command("serve")
def rollout_serve(config: Config = None) -> None:
    """Serve models to devices until stopped."""
    serve(load_core_config(config), stop_on_signals())
