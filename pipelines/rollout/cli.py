"""`catchment model …` and `catchment rollout …`."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, cast

import msgspec
import typer
from paho.mqtt.client import MQTTMessage
from rich.console import Console
from rich.table import Table

from pipelines.clock import SystemClock
from pipelines.config import CoreConfig, load_core_config
from pipelines.errors import ConfigError, NotFoundError, PipelineError, RetryLaterError
from pipelines.rollout.cohorts import parse_cohort
from pipelines.rollout.connection import BrokerLink
from pipelines.rollout.golden import try_model
from pipelines.rollout.keys import KeyFolder, KeyPlan
from pipelines.rollout.paths import keys_folder, models_folder
from pipelines.rollout.repository import ModelRepository, PublishedModel
from pipelines.rollout.rollouts import Rollout, RolloutStore, progress
from pipelines.rollout.server import serve
from schemas.errors import SchemaError
from schemas.ids import DeviceId
from schemas.model import ImageInput
from schemas.reported import ModelReport, decode_reported
from schemas.rollout import encode_desired
from schemas.topics import Topics

__all__ = ["model_app", "rollout_app", "serve"]

EXIT_REFUSED, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_RETRY = 1, 2, 3, 75
_QUIET_S, _LONGEST_S = 0.4, 5.0

model_app = typer.Typer(help="The models that the signing keys vouch for.", no_args_is_help=True)
rollout_app = typer.Typer(help="Which devices run which model.", no_args_is_help=True)
out = Console()

Core = Annotated[Path, typer.Option("-c", "--config", help="The core's configuration.")]
Keys = Annotated[Path | None, typer.Option("--keys", help="Folder of the signing keys; default: as configured.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_CORE = Path("core.toml")


@contextmanager
def _exits() -> Iterator[None]:
    """Turn what went wrong into a line on standard error and an exit code that says what to do next."""
    try:
        yield
    except (PipelineError, SchemaError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        if isinstance(error, NotFoundError):
            raise typer.Exit(EXIT_NOT_FOUND) from error
        if isinstance(error, RetryLaterError):
            raise typer.Exit(EXIT_RETRY) from error
        raise typer.Exit(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_REFUSED) from error


def _repository(config: CoreConfig, keys: Path | None = None) -> ModelRepository:
    return ModelRepository(models_folder(config), KeyFolder(keys or keys_folder(config)), SystemClock())


def _plain(model: PublishedModel) -> dict[str, object]:
    return {"name": model.spec.name, "version": model.spec.version, "target": model.target, "bytes": model.size,
            "sha256": model.digest, "labels": list(model.spec.labels), "input": msgspec.to_builtins(model.spec.input)}  # fmt: skip


@model_app.command("init")
def model_init(
    config: Core = _CORE,
    keys: Keys = None,
    root_keys: Annotated[int, typer.Option(help="How many root keys.")] = 3,
    root_threshold: Annotated[int, typer.Option(help="How many of them must sign.")] = 2,
) -> None:
    """Make the signing keys and an empty repository."""
    with _exits():
        core = load_core_config(config)
        root = _repository(core, keys).init(KeyPlan(root=(root_keys, root_threshold)))
        folder = keys or keys_folder(core)
        out.print(f"Keys are in {folder}. Take root-*.pem and targets-*.pem offline; the model server needs the others.")
        out.print(f"Devices need {root}: it is what they trust.")


@model_app.command("publish")
def model_publish(
    name: str,
    file: Annotated[Path, typer.Argument(help="The ONNX file.")],
    config: Core = _CORE,
    keys: Keys = None,
    labels: Annotated[str, typer.Option(help="What the answers mean: a,b,c or @file with one a line.")] = "",
    width: Annotated[int, typer.Option(help="Input width, px; 0: as the model says.")] = 0,
    height: Annotated[int, typer.Option(help="Input height, px; 0: as the model says.")] = 0,
    colour: Annotated[str, typer.Option(help="rgb, bgr or grey; empty: as the model says.")] = "",
    layout: Annotated[str, typer.Option(help="nchw, nhwc or flat; empty: as the model says.")] = "",
    scale: Annotated[float, typer.Option(help="Each pixel 0..255 is multiplied by this.")] = 1 / 255,
    softmax: Annotated[bool, typer.Option(help="The answers are logits.")] = False,
) -> None:
    """Try a model here, then sign it as its next version."""
    with _exits():
        core = load_core_config(config)
        onnx = file.read_bytes()
        image = _image(onnx, width, height, colour, layout, scale)
        trial = try_model(onnx, image)
        published = _repository(core, keys).publish(
            name, onnx, image, labels=_labels(labels), softmax=softmax, golden=trial.golden
        )
        out.print(f"{name} version {published.spec.version}: {published.size} bytes, sha256 {published.digest}")


def _image(onnx: bytes, width: int, height: int, colour: str, layout: str, scale: float) -> ImageInput:
    if not width or not height:
        shape = try_model(onnx).image
        width, height, colour, layout = shape.width, shape.height, colour or shape.colour, layout or shape.layout
    return ImageInput(
        width,
        height,
        cast("Literal['rgb', 'bgr', 'grey']", _one_of("colour", colour or "rgb", ("rgb", "bgr", "grey"))),
        cast("Literal['nchw', 'nhwc', 'flat']", _one_of("layout", layout or "nchw", ("nchw", "nhwc", "flat"))),
        scale,
    )


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"--{option} {value[:40]!r} is none of {', '.join(known)}")
    return value


def _labels(text: str) -> tuple[str, ...]:
    if text.startswith("@"):
        return tuple(line.strip() for line in Path(text[1:]).read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(label.strip() for label in text.split(",")) if text else ()


@model_app.command("ls")
def model_ls(config: Core = _CORE, as_json: AsJson = False) -> None:
    """List the published models."""
    with _exits():
        models = _repository(load_core_config(config)).models()
        if as_json:
            typer.echo(json.dumps([_plain(model) for model in models]))
            return
        table = Table("model", "version", "bytes", "sha256")
        for model in models:
            table.add_row(model.spec.name, str(model.spec.version), str(model.size), model.digest[:16])
        out.print(table)


@model_app.command("show")
def model_show(name: str, version: int | None = None, config: Core = _CORE, as_json: AsJson = False) -> None:
    """Show one version of a model; the newest if none is named."""
    with _exits():
        plain = _plain(_repository(load_core_config(config)).model(name, version))
        if as_json:
            typer.echo(json.dumps(plain))
            return
        for key, value in plain.items():
            out.print(f"{key}: {value}")


@rollout_app.command("start")
def rollout_start(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    config: Core = _CORE,
    cohort: Annotated[str, typer.Option(help="all, 10%, device names, patterns like line-*; several with commas.")] = "all",
    version: Annotated[int | None, typer.Option(help="The model's version; default: the newest.")] = None,
    name: Annotated[str, typer.Option(help="The rollout's name; default: <model>-<version>.")] = "",
    halt_ratio: Annotated[float, typer.Option(help="Stop when more than this share of answers are failures.")] = 0.2,
) -> None:
    """Start a rollout, or widen it: the same name with a larger cohort."""
    with _exits():
        core = load_core_config(config)
        found = _repository(core).model(model, version)
        text = str(parse_cohort(cohort))
        rollout = Rollout(
            name or f"{model}-{found.spec.version}", model, found.spec.version, found.target, text,
            SystemClock().now_ms(), halt_ratio=halt_ratio,
        )  # fmt: skip
        RolloutStore(models_folder(core) / "rollouts").save(rollout)
        told = publish_desired(core, rollout)
        out.print(f"rollout {rollout.name}: {model} version {rollout.version} to {text}; {len(told)} devices told")


@rollout_app.command("halt")
def rollout_halt(name: str, config: Core = _CORE) -> None:
    """Stop a rollout: devices that run its version well keep it, others are told what came before."""
    with _exits():
        store = RolloutStore(models_folder(load_core_config(config)) / "rollouts")
        store.save(msgspec.structs.replace(store.get(name), state="halted", reason="halted by hand"))
        out.print(f"rollout {name} is halted; the model server tells the devices")


@rollout_app.command("status")
def rollout_status(config: Core = _CORE, as_json: AsJson = False) -> None:
    """Show every rollout and how far its devices are, as they report it."""
    with _exits():
        core = load_core_config(config)
        reports = reported_models(core)
        rows: list[dict[str, object]] = []
        for rollout in RolloutStore(models_folder(core) / "rollouts").all():
            done = progress(rollout, reports)
            rows.append({"rollout": rollout.name, "model": rollout.model, "version": rollout.version, "cohort": rollout.cohort,
                         "state": rollout.state, "active": list(done.active), "failed": list(done.failed),
                         "waiting": list(done.waiting), "reason": rollout.reason})  # fmt: skip
        devices = {device: [msgspec.to_builtins(item) for item in models] for device, models in sorted(reports.items())}
        if as_json:
            typer.echo(json.dumps({"rollouts": rows, "devices": devices}))
            return
        _print_status(rows, reports)


def _print_status(rows: list[dict[str, object]], reports: dict[str, tuple[ModelReport, ...]]) -> None:
    table = Table("rollout", "model", "cohort", "state", "active", "failed", "waiting")
    for row in rows:
        counts = [str(len(cast("list[str]", row[key]))) for key in ("active", "failed", "waiting")]
        table.add_row(str(row["rollout"]), f"{row['model']} {row['version']}", str(row["cohort"]), str(row["state"]), *counts)
    out.print(table)
    devices = Table("device", "model", "version", "state", "reason")
    for device, models in sorted(reports.items()):
        for item in models:
            devices.add_row(device, item.name, str(item.version), item.state, item.reason)
    out.print(devices)


@rollout_app.command("serve")
def rollout_serve(config: Core = _CORE) -> None:
    """Serve models to devices until stopped."""
    with _exits():
        core = load_core_config(config)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        serve(core, stop)


def reported_models(config: CoreConfig, quiet_s: float = _QUIET_S) -> dict[str, tuple[ModelReport, ...]]:
    """What every device last reported of its models, from the broker's retained messages.

    Raises:
        RetryLaterError: the broker cannot be reached.
    """
    topics = Topics(config.broker.namespace)
    reports: dict[str, tuple[ModelReport, ...]] = {}
    last = [time.monotonic()]

    def take(message: MQTTMessage) -> None:
        last[0] = time.monotonic()
        try:
            reports[topics.parse(message.topic).device] = decode_reported(message.payload).models
        except SchemaError:
            typer.echo(f"a report on {message.topic[:200]!r} is unreadable and left out", err=True)

    link = BrokerLink(config.broker, "", (topics.reported_filter(),), take)
    link.open()
    try:
        began = last[0] = time.monotonic()
        # Retained messages come in one burst after the subscription: silence means that was all.
        while time.monotonic() - last[0] < quiet_s and time.monotonic() - began < _LONGEST_S:
            time.sleep(0.02)
    finally:
        link.close()
    return dict(reports)


def publish_desired(config: CoreConfig, rollout: Rollout) -> list[str]:
    """Tell the rollout's devices: those that have reported, and those named in full. Later ones are told by the server.

    Raises:
        RetryLaterError: the broker cannot be reached or does not acknowledge; the rollout's document stands, the server goes on.
    """
    cohort = rollout.devices
    devices = sorted({*cohort.among(rollout.name, reported_models(config)), *cohort.named_devices})
    topics = Topics(config.broker.namespace)
    link = BrokerLink(config.broker, "", (), lambda _message: None)
    link.open()
    try:
        body = encode_desired(rollout.desired)
        infos = [link.publish(topics.desired(DeviceId(device)), body, retain=True) for device in devices]
        link.wait_published(infos, _LONGEST_S)
    finally:
        link.close()
    return devices
