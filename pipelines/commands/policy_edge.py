"""`catchment policy keygen | push`: the device's part of the policies, signed and sent."""

import time
from pathlib import Path
from typing import Annotated

import typer

from catchment.runtime.output import say, say_document
from pipelines.commands.options import Config
from pipelines.commands.site import LakeSite
from pipelines.config import CoreConfig, load_core_config
from pipelines.director import DocumentSigner, director_folder, parse_key, require_director, write_key
from pipelines.errors import ConfigError, NotFoundError
from pipelines.ingest.receipts import MqttPublisher
from pipelines.policy.edge import edge_inspectors, edge_rules, numbered_policy, signed_message
from pipelines.rollout.fleet import reported_models
from schemas.ids import DeviceId
from schemas.topics import Topics


def keygen(path: Annotated[Path, typer.Argument(help="Where the private key shall lie.")]) -> None:
    """Make a key that signs device rules and nothing else, and print what devices are configured with."""
    public = write_key(path)
    say_document(f'# agent.toml of every device\n[policy]\npublic_key = "{public}"')


def push(
    key: Annotated[
        Path | None, typer.Option("--key", help="The private key that `keygen` made; default: the director's keys.")
    ] = None,
    config: Config = None,
    device: Annotated[list[str] | None, typer.Option("--device", help="Which; default: all that have reported.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compile and show; sign and send nothing.")] = False,
) -> None:
    """Give devices the keep, sample and priority rules of the policies in force: compiled, signed, retained."""
    core = load_core_config(config)
    give_out(LakeSite.open(config, None), core, None if dry_run else policy_signer(core, key), device)


def policy_signer(core: CoreConfig, path: Path | None) -> DocumentSigner:
    """What signs device rules.

    Args:
        core: names the director's keys.
        path: the file of another key; None: the director's.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: the file cannot be read.
        RefusedError: there is no such key, or it is not an Ed25519 private key.
    """
    if path is None:
        return require_director(director_folder(core))
    try:
        body = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file; make one with `catchment policy keygen`") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); make one with `catchment policy keygen`") from error
    return DocumentSigner([parse_key(body, str(path))])


def give_out(site: LakeSite, core: CoreConfig, signer: DocumentSigner | None, device: list[str] | None = None) -> None:
    """Compile the device rules of the policies in force and show them; with a signer, sign and send them.

    Args:
        site: the lake and its contracts.
        core: its configuration, which names the broker.
        signer: who signs; None: only show.
        device: which devices; None: all that have reported.
    """
    streams = edge_rules(site.in_force(), site.contracts)
    inspect = edge_inspectors(site.in_force(), streams)
    for stream, rules in streams.items():
        for rule in rules:
            say(f"{stream}: {rule.id}: {rule.action}")
    for stream, steps in inspect.items():
        say(f"{stream}: devices inspect {', '.join(step.use for step in steps)}")
    if signer is None:
        return
    policy = numbered_policy(site.lake, streams, time.time_ns() // 1_000_000, inspect)
    message = signed_message(policy, signer)
    devices = sorted({*(device or reported_models(core))})
    topics = Topics(core.broker.namespace)
    with MqttPublisher(core.broker, "catchment-policy-push") as publisher:
        publisher.publish({topics.policy(DeviceId(name)): message for name in devices})
    say(f"version {policy.version} of the device rules sent to {len(devices)} devices")
