"""The commands of `edge-agent`: run, look, enrol, check. Those of the spool are in `spool.py`. Each loads only what it needs."""

import os
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import typer

from catchment.runtime.exits import exit_table
from catchment.runtime.output import say, say_json
from catchment.runtime.renamed_commands import RenamedCommands
from edge_agent.commands.exits import EXIT_CONFIG, EXIT_UNHEALTHY
from edge_agent.commands.options import AGENT, AsJson, Config
from edge_agent.commands.spool import park_app, spool_app


def run(
    config: Config = AGENT,
    until_settled: Annotated[
        bool, typer.Option("--until-settled", help="End when all sources ended and everything is settled.")
    ] = False,
) -> None:
    """Capture and deliver until SIGTERM or Ctrl-C. Logs go to stderr; SIGHUP reads the configuration again."""
    # The process that runs for months carries neither this command line nor its tables: it starts small.
    from edge_agent.config import load_agent_config

    device = load_agent_config(config).device
    arguments = [sys.executable, "-m", "edge_agent", "-c", str(config), "--device", device]
    arguments += ["--until-settled"] if until_settled else []
    # Few malloc arenas: threads of bursts must not keep their peaks permanently.
    environment = {"MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "131072", **os.environ}
    sys.stdout.flush()
    os.execve(sys.executable, arguments, environment)  # noqa: S606 # our own interpreter and module


def version() -> None:
    """The installed version."""
    from importlib import metadata

    say(metadata.version("catchment"))


def status(config: Config = AGENT, as_json: AsJson = False) -> None:
    """Is it connected, does it make progress, how full is the spool, what was refused, what is parked?"""
    from edge_agent.commands.status_reader import read_status
    from edge_agent.commands.tables import show_status

    found = read_status(config)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_status(found)


def books(config: Config = AGENT, as_json: AsJson = False) -> None:
    """The books of every stream: captured = settled + spooled + dropped, with reasons and open epochs."""
    from edge_agent.commands.status_reader import read_ledger
    from edge_agent.commands.tables import show_ledger

    found = read_ledger(config)
    if as_json:
        say_json(msgspec.json.encode(found))
    else:
        show_ledger(found)


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
    from edge_agent import identity
    from edge_agent.documents.trust import KEY_FILE_NAME, write_key_file
    from edge_agent.errors import ConfigError
    from schemas.errors import SchemaError
    from schemas.ids import enrolled_id

    key_path, request_path = key or folder / identity.KEY_NAME, request or folder / identity.REQUEST_NAME
    try:
        name = enrolled_id(device)
        keys = write_key_file(folder / KEY_FILE_NAME, director) if director else ()
        is_new = identity.enrol(name, key_path, request_path)
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


_HELP = """Captures samples, keeps them through power cuts, and delivers each exactly once.

Start with `edge-agent check -c agent.toml`, see with `edge-agent try` what its sources give, then `edge-agent run`; look with
`status` and `books`, which work while the agent runs and after. SIGHUP makes a running agent read its configuration again.

Code 1: `doctor` found something that does not work, `try` something that is refused, or `spool verify` damage; 3: also where
`run --until-settled` ended with parked envelopes left; 75: also where another agent runs, where nothing came for `try`, and
where there is no spool yet.
"""


class Commands(RenamedCommands):
    """The agent's commands."""

    renamed: ClassVar[dict[str, str]] = {"ledger": "books"}


app = typer.Typer(cls=Commands, help=_HELP, epilog=exit_table(), no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(spool_app, name="spool")
app.add_typer(park_app, name="park")
for _command in (run, status, books, version, enrol, check, doctor):
    app.command()(_command)
app.command("try")(try_)
