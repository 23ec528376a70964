"""`edge-agent enrol`, `check`, `try`, `doctor`: what an operator needs around a running agent."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from catchment.runtime.output import say, say_json
from edge_agent.commands.exits import EXIT_CONFIG, EXIT_UNHEALTHY
from edge_agent.commands.options import AGENT, AsJson, Config


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (enrol, check, doctor):
        app.command()(command)
    app.command("try")(try_)


def enrol(
    device: Annotated[str, typer.Argument(help="The device id: what the certificate's common name will be.")],
    folder: Annotated[Path, typer.Option(help="Where key and request go.")] = Path(),
    key: Annotated[Path | None, typer.Option(help="The key's file, if not device.key in the folder.")] = None,
    request: Annotated[Path | None, typer.Option(help="The request's file, if not device.csr in the folder.")] = None,
    director: Annotated[
        str,
        typer.Option(help="The keys whose orders this device follows: `catchment director show --bare` prints them; or a file."),
    ] = "",
) -> None:
    """Make this device's key, which never leaves it, and a request that an authority answers with a certificate."""
    from edge_agent.documents.trust import KEY_FILE_NAME, write_key_file  # noqa: PLC0415
    from edge_agent.errors import ConfigError  # noqa: PLC0415
    from edge_agent.identity import enrol as enrolling  # noqa: PLC0415 # each command loads only what it needs
    from schemas.errors import SchemaError  # noqa: PLC0415
    from schemas.ids import enrolled_id  # noqa: PLC0415

    key_path, request_path = key or folder / enrolling.KEY_NAME, request or folder / enrolling.REQUEST_NAME
    try:
        name = enrolled_id(device)
        keys = write_key_file(folder / KEY_FILE_NAME, director) if director else ()
        is_new = enrolling.enrol(name, key_path, request_path)
    except SchemaError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror}; run it as who may write there") from error
    say(f"key      {key_path} ({'new' if is_new else 'used again'}, mode 0600: it stays here)")
    say(f"request  {request_path}")
    if keys:
        say(f"director {folder / KEY_FILE_NAME} ({len(keys)} trusted: [director] file in agent.toml names it)")
    say(
        f"Next: have it signed (docs/operator/install.md, Who a device is); put the answer next to it as {folder / 'device.pem'}."
    )
    sys.stdout.flush()


def check(config: Config = AGENT, as_json: AsJson = False) -> None:
    """Check a configuration, its contracts and its sources' options, and tell every fault at once; starts nothing."""
    import msgspec  # noqa: PLC0415

    from edge_agent.checking import check_file  # noqa: PLC0415

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
    import msgspec  # noqa: PLC0415

    from edge_agent.commands.tables import show_trials  # noqa: PLC0415
    from edge_agent.commands.try_sources import exit_code, try_sources  # noqa: PLC0415

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
    import msgspec  # noqa: PLC0415

    from edge_agent.commands.doctor.examine import CONFIGURATION, diagnose  # noqa: PLC0415
    from edge_agent.commands.doctor.findings import CheckResult  # noqa: PLC0415
    from edge_agent.commands.tables import show_diagnosis  # noqa: PLC0415

    found = diagnose(config, is_probing=probe)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_diagnosis(found)
    if not found.is_healthy:
        is_misconfigured = any(each.what == CONFIGURATION and each.verdict is CheckResult.FAILED for each in found.findings)
        raise typer.Exit(EXIT_CONFIG if is_misconfigured else EXIT_UNHEALTHY)
