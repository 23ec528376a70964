"""`edge-agent check`, `try` and `doctor`: what is wrong with a configuration, its sources, or the device."""

from typing import Annotated

import msgspec
import typer

from catchment.runtime.output import say, say_json
from edge_agent.commands.exits import EXIT_CONFIG, EXIT_UNHEALTHY
from edge_agent.commands.options import AGENT, AsJson, Config


def check(config: Config = AGENT, as_json: AsJson = False) -> None:
    """Check a configuration, its contracts and its sources' options, and tell every fault at once; starts nothing."""
    from edge_agent.checking import check_file

    found = check_file(config)
    if as_json:
        say_json(msgspec.json.encode(found))
    for line in () if as_json else found.report_lines if not found.faults else [fault.located(config) for fault in found.faults]:
        say(line, err=bool(found.faults))
    if found.faults:
        raise typer.Exit(EXIT_CONFIG)


def try_(
    config: Config = AGENT,
    source: Annotated[str, typer.Option(help="Its stream, kind, kind:stream, or number in the file; all without it.")] = "",
    samples: Annotated[int, typer.Option("-n", "--samples", help="How many of each source.", min=1, max=10_000)] = 20,
    wait_s: Annotated[float, typer.Option("--wait-s", help="How long to wait for each source.", min=0.1, max=3_600)] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Read the first samples of each source as its contract sees them; stores, sends, moves and acknowledges nothing.

    Exit code 0: samples came and none would be refused; 1: some would be, or a source fails; 75: nothing came in time.
    """
    from edge_agent.commands.tables import show_trials
    from edge_agent.commands.try_sources import exit_code, try_sources

    found = try_sources(config, source, samples, wait_s)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_trials(found)
    if code := exit_code(found):
        raise typer.Exit(code)


def doctor(
    config: Config = AGENT,
    as_json: AsJson = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Connect as the device even while its agent is connected; interrupts that for a moment."),
    ] = False,
) -> None:
    """Look for what keeps this device from delivering: disk, clock, certificate, broker, topic rights; each with the fix.

    Exit code 0: nothing failed (warnings are allowed); 1: something did; 2: the configuration is wrong.
    """
    from edge_agent.commands.doctor.examine import CONFIGURATION, diagnose
    from edge_agent.commands.doctor.findings import CheckResult
    from edge_agent.commands.tables import show_diagnosis

    found = diagnose(config, is_probing=probe)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_diagnosis(found)
    if not found.is_healthy:
        is_misconfigured = any(each.what == CONFIGURATION and each.verdict is CheckResult.FAILED for each in found.findings)
        raise typer.Exit(EXIT_CONFIG if is_misconfigured else EXIT_UNHEALTHY)
