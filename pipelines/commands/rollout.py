"""`catchment model …` and `catchment rollout …`: models, keys and signatures; rollouts and their devices."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import msgspec
import typer
from securesystemslib.signer import Key

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import SystemClock
from catchment.runtime.output import say, say_json
from catchment.runtime.plain import plain
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands.options import AsJson, Config, require_files
from pipelines.config import CoreConfig, load_core_config
from pipelines.director import DesiredOrders, director_folder, first_director
from pipelines.errors import ConfigError, RefusedError, RetryLaterError
from pipelines.rollout.cohorts import BUCKETS, parse_cohort
from pipelines.rollout.description import ModelAbout, read_about, task_named
from pipelines.rollout.fleet import publish_orders, reported_models
from pipelines.rollout.keys import ROLES, KeyFolder, KeyPlan, keys_folder, load_signer, models_folder, new_key
from pipelines.rollout.publishing import prepare_model
from pipelines.rollout.repository import ModelRepository, PublishedModel
from pipelines.rollout.role_files import check_draft, draft_root, install_root, read_draft, sign_draft
from pipelines.rollout.rollouts import Rollout, RolloutStore, progress
from pipelines.rollout.server import serve
from pipelines.stopping import stop_on_signals
from schemas.model import MODEL_ANSWER_MS, MODEL_MEMORY_MIB, ImageInput
from schemas.reported import ModelReport

__all__ = ["model_app", "rollout_app", "serve"]

model_app = typer.Typer(help="The models that the signing keys vouch for.", no_args_is_help=True)
key_app = typer.Typer(help="The private keys that sign models.", no_args_is_help=True)
root_app = typer.Typer(help="Change keys, or extend the root, with keys on separate machines.", no_args_is_help=True)
model_app.add_typer(key_app, name="key")
model_app.add_typer(root_app, name="root")
rollout_app = typer.Typer(help="Which devices run which model.", no_args_is_help=True)
out = PlainConsole()

Keys = Annotated[Path | None, typer.Option("--keys", help="Folder of the signing keys; default: as configured.")]


@model_app.command("expiry")
def model_expiry(config: Config = None, as_json: AsJson = False) -> None:
    """Show until when each signature of the repository holds, and who makes it again."""
    repository = _repository(load_core_config(config))
    now = repository.files.now()
    rows = [(each, each.state(now)) for each in repository.expiries()]
    if as_json:
        say_json(json.dumps([{"role": each.role, "expires": each.expires.isoformat(), "days_left": each.left(now).days,
                              "state": state} for each, state in rows]))  # fmt: skip
        return
    table = PlainTable("role", "expires", "days left", "state", "signed again by")
    for each, state in rows:
        table.add_row(plain(each.role), f"{each.expires:%Y-%m-%d}", str(each.left(now).days), state, each.remedy)
    out.print(table)


@model_app.command("sign")
def model_sign(config: Config = None, keys: Keys = None) -> None:
    """Sign everything that vouches for models again, without a new model."""
    out.print(f"{_repository(load_core_config(config), keys).sign()} roles signed again")


@key_app.command("new")
def key_new(file: Path) -> None:
    """Make a private key; encrypted where $CATCHMENT_KEY_PASSPHRASE is set. Its public half goes to `root draft`."""
    key = new_key(file)
    public = file.with_suffix(".pub.json")
    write_atomic(public, json.dumps({"keyid": key.keyid, **key.to_dict()}).encode(), mode=0o644)
    out.print(f"key {key.keyid}: {file} stays here; take {public} to the machine that drafts the root")


@root_app.command("draft")
def root_draft(
    file: Annotated[Path, typer.Argument(help="The draft to write.")],
    config: Config = None,
    role: Annotated[str, typer.Option(help="The role whose keys are replaced; empty: only the expiry changes.")] = "",
    public: Annotated[list[Path] | None, typer.Option(help="A public key of `model key new`; once for each key.")] = None,
) -> None:
    """Write the next root, unsigned."""
    if bool(role) != bool(public) or (role and role not in ROLES):
        raise RefusedError(f"--role is one of {', '.join(ROLES)}, together with --public")
    document = draft_root(
        _repository(load_core_config(config)).files, {role: [_public(path) for path in public or ()]} if role else {}
    )
    write_atomic(file, document.to_bytes(), mode=0o644)
    out.print(f"{file}: root version {document.signed.version}; sign it: catchment model root sign {file} KEY.pem")


@root_app.command("sign")
def root_sign(file: Path, key: Path) -> None:
    """Add a key's signature to a draft. Needs nothing else: it works on a machine of its own."""
    document = read_draft(file)
    count = sign_draft(document, [load_signer(key)])
    write_atomic(file, document.to_bytes(), mode=0o644)
    out.print(f"{file}: {count} signatures")


@root_app.command("verify")
def root_verify(file: Path, config: Config = None) -> None:
    """Print what a draft changes, to read aloud, and what it lacks."""
    changes, lacks = check_draft(_repository(load_core_config(config)).files, read_draft(file))
    for line in changes:
        out.print(plain(line))
    if lacks:
        raise RefusedError(f"it cannot be installed yet: {'; '.join(lacks)}")
    out.print("complete: catchment model root install puts it in force")


@root_app.command("install")
def root_install(file: Path, config: Config = None, keys: Keys = None) -> None:
    """Put a signed root in force, and sign everything below it again with the keys it names."""
    repository = _repository(load_core_config(config), keys)
    path = install_root(repository.files, read_draft(file))
    out.print(f"{path} is in force; {repository.sign()} roles signed again")


def _public(path: Path) -> Key:
    require_files([path])
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Key.from_dict(plain.pop("keyid"), plain)
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{path}: not a public key of `catchment model key new`: {error}") from error


def _repository(config: CoreConfig, keys: Path | None = None) -> ModelRepository:
    return ModelRepository(models_folder(config), KeyFolder(keys or keys_folder(config)), SystemClock())


def _plain(model: PublishedModel) -> dict[str, object]:
    spec = model.spec
    return {
        "name": spec.name,
        "version": spec.version,
        "target": model.target,
        "bytes": model.size,
        "sha256": model.digest,
        "labels": list(spec.labels),
        "task": msgspec.to_builtins(spec.task)["type"],
        "input": msgspec.to_builtins(spec.image or spec.rows),
    }


@model_app.command("init")
def model_init(
    config: Config = None,
    keys: Keys = None,
    root_keys: Annotated[int, typer.Option(help="How many root keys.")] = 3,
    root_threshold: Annotated[int, typer.Option(help="How many of them must sign.")] = 2,
) -> None:
    """Make the signing keys and an empty repository."""
    core = load_core_config(config)
    root = _repository(core, keys).init(KeyPlan(root=(root_keys, root_threshold)))
    folder = keys or keys_folder(core)
    out.print(f"Keys are in {folder}. Take root-*.pem and targets-*.pem offline; the model server needs the others.")
    out.print(f"Devices need {root}: it is what they trust.")
    signer = first_director(director_folder(core))
    out.print("Devices need the director's key, too: catchment director show prints it for agent.toml.")
    out.print(f"director key: {signer.public_keys[0]}")


@model_app.command("publish")
def model_publish(  # noqa: PLR0913, PLR0917  # each argument is an option of the command
    name: str,
    file: Annotated[str, typer.Argument(help="An ONNX file, a folder of an MLflow model, or runs:/RUN/PATH.")],
    config: Config = None,
    keys: Keys = None,
    task: Annotated[str, typer.Option(help="classify, detect, segment, regress or embed; empty: as the file says.")] = "",
    about: Annotated[Path | None, typer.Option(help="JSON with task, picture or rows, labels, output, softmax.")] = None,
    labels: Annotated[str, typer.Option(help="What the answers mean: a,b,c or @file with one a line.")] = "",
    width: Annotated[int, typer.Option(help="Input width, px; 0: as the model says.")] = 0,
    height: Annotated[int, typer.Option(help="Input height, px; 0: as the model says.")] = 0,
    colour: Annotated[str, typer.Option(help="rgb, bgr or grey; empty: as the model says.")] = "",
    layout: Annotated[str, typer.Option(help="nchw, nhwc or flat; empty: as the model says.")] = "",
    scale: Annotated[float, typer.Option(help="Each pixel 0..255 is multiplied by this.")] = 1 / 255,
    softmax: Annotated[bool, typer.Option(help="The answers are logits.")] = False,
    memory_mib: Annotated[int, typer.Option(help="Memory that your devices give a model (max_memory_mib).")] = MODEL_MEMORY_MIB,
    answer_ms: Annotated[int, typer.Option(help="Time that they give it for a picture (max_ms).")] = MODEL_ANSWER_MS,
) -> None:
    """Try a model within a device's limits, then sign it as its next version."""
    core = load_core_config(config)
    described = ModelAbout() if about is None else read_about(about)
    if names := _labels(labels):
        described = msgspec.structs.replace(described, labels=names)
    if task:
        described = msgspec.structs.replace(described, task=described.task or task_named(task))
    if softmax:
        described = msgspec.structs.replace(described, softmax=True)
    complete = partial(_image, width=width, height=height, colour=colour, layout=layout, scale=scale)
    found = prepare_model(file, described, complete, memory_mib=memory_mib, answer_ms=answer_ms)
    published = _repository(core, keys).publish(
        name, found.onnx, found.image, labels=found.labels, output=found.output, softmax=found.softmax, golden=found.golden,
        task=found.task, rows=found.rows, needs=found.needs,
    )  # fmt: skip
    out.print(f"{name} version {published.spec.version}: {published.size} bytes, sha256 {published.digest}")


def _image(
    found: ImageInput | None,
    read_shape: Callable[[], ImageInput | None],
    *,
    width: int,
    height: int,
    colour: str,
    layout: str,
    scale: float,
) -> ImageInput:
    """The input as the options say it; what they leave open is as the description says, or the model's own shape."""
    known = found or (None if width and height else read_shape()) or ImageInput(width or 1, height or 1)
    return msgspec.structs.replace(
        known,
        width=width or known.width,
        height=height or known.height,
        colour=cast("Literal['rgb', 'bgr', 'grey']", _one_of("colour", colour or known.colour, ("rgb", "bgr", "grey"))),
        layout=cast("Literal['nchw', 'nhwc', 'flat']", _one_of("layout", layout or known.layout, ("nchw", "nhwc", "flat"))),
        scale=known.scale if found is not None and scale == 1 / 255 else scale,
    )


def _one_of(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"--{option} {value[:40]!r} is not one of {', '.join(known)}")
    return value


def _labels(text: str) -> tuple[str, ...]:
    if text.startswith("@"):
        path = Path(text[1:])
        require_files([path])
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    return tuple(label.strip() for label in text.split(",")) if text else ()


@model_app.command("ls")
def model_ls(config: Config = None, as_json: AsJson = False) -> None:
    """List the published models."""
    models = _repository(load_core_config(config)).models()
    if as_json:
        say_json(json.dumps([_plain(model) for model in models]))
        return
    table = PlainTable("model", "version", "bytes", "sha256")
    for model in models:
        table.add_row(model.spec.name, str(model.spec.version), str(model.size), model.digest[:16])
    out.print(table)


@model_app.command("show")
def model_show(name: str, version: int | None = None, config: Config = None, as_json: AsJson = False) -> None:
    """Show one version of a model; the newest if none is named."""
    facts = _plain(_repository(load_core_config(config)).model(name, version))
    if as_json:
        say_json(json.dumps(facts))
        return
    for key, value in facts.items():
        out.print(f"{key}: {plain(value)}")


@model_app.command("withdraw")
def model_withdraw(name: str, version: int, config: Config = None, keys: Keys = None) -> None:
    """Vouch for a version no more, and halt its rollouts: no device installs it from then on."""
    core = load_core_config(config)
    gone = _repository(core, keys).withdraw(name, version)
    store = RolloutStore(models_folder(core) / "rollouts")
    running = [each for each in store.all() if (each.model, each.version, each.state) == (name, version, "running")]
    halted = [store.halt(rollout.name, "its version was withdrawn") for rollout in running]
    names = ", ".join(rollout.name for rollout in halted) or "none"
    out.print(f"{name} version {gone.spec.version} is withdrawn; rollouts halted: {names}")
    _order_again(halted, core)


@rollout_app.command("start")
def rollout_start(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    config: Config = None,
    cohort: Annotated[str, typer.Option(help="all, 10%, device names, patterns like line-*; several with commas.")] = "all",
    version: Annotated[int | None, typer.Option(help="The model's version; default: the newest.")] = None,
    name: Annotated[str, typer.Option(help="The rollout's name; default: <model>-<version>.")] = "",
    halt_ratio: Annotated[float, typer.Option(help="Stop when more than this share of answers are failures.")] = 0.2,
    force: Annotated[bool, typer.Option(help="Start although the cohort covers no device that is known.")] = False,
) -> None:
    """Start a rollout, or widen it: the same name with a larger cohort."""
    core = load_core_config(config)
    found = _repository(core).model(model, version)
    text = str(parse_cohort(cohort))
    rollout = Rollout(
        name or f"{model}-{found.spec.version}", model, found.spec.version, found.target, text,
        SystemClock().now_ms(), halt_ratio=halt_ratio,
    )  # fmt: skip
    reports = reported_models(core)
    _say_coverage(rollout, reports, is_forced=force)
    RolloutStore(models_folder(core) / "rollouts").save(rollout)
    orders = DesiredOrders.open(core, SystemClock())
    published = publish_orders(core, rollout, reports, orders)
    if not orders.public_keys:
        say("unsigned: there is no director key, and devices with [director] refuse it; catchment director init", err=True)
    out.print(f"rollout {rollout.name}: {model} version {rollout.version} to {text}; {len(published)} devices notified")


def _say_coverage(rollout: Rollout, reports: Mapping[str, tuple[ModelReport, ...]], *, is_forced: bool) -> None:
    """Say how many devices a cohort has, before anything is ordered.

    Raises:
        RefusedError: it has none, and that was not asked for.
    """
    cohort = rollout.devices
    covered = {*cohort.among(rollout.name, reports), *cohort.named_devices}
    known = f"{len(reports)} device{'' if len(reports) == 1 else 's'} known"
    if not covered and cohort.share < BUCKETS and not is_forced:
        raise RefusedError(
            f"cohort {cohort} covers 0 of {known}, so nobody would try the model; take a larger share, name a device, "
            "or give --force for devices that will report later; nothing was started"
        )
    out.print(f"cohort {cohort} covers {len(covered)} of {known}")


@rollout_app.command("halt")
def rollout_halt(name: str, config: Config = None) -> None:
    """Stop a rollout: devices that run its version well keep it, others are ordered what came before."""
    core = load_core_config(config)
    rollout = RolloutStore(models_folder(core) / "rollouts").halt(name, "halted by hand")
    out.print(f"rollout {name} is halted")
    _order_again([rollout], core)


def _order_again(halted: list[Rollout], core: CoreConfig) -> None:
    """Replace the orders of halted rollouts at the broker, whether or not a model server runs."""
    if not halted:
        return
    try:
        reports = reported_models(core)
        for rollout in halted:
            devices = publish_orders(core, rollout, reports, DesiredOrders.open(core, SystemClock()))
            out.print(f"rollout {rollout.name}: {len(devices)} devices notified")
    except RetryLaterError as error:
        raise RetryLaterError(
            f"it is halted, but its orders stand at the broker until the model server runs, or this is done again: {error}"
        ) from error


@rollout_app.command("status")
def rollout_status(config: Config = None, as_json: AsJson = False) -> None:
    """Show every rollout and how far its devices are, as they report it."""
    core = load_core_config(config)
    reports = reported_models(core)
    rows: list[dict[str, object]] = []
    for rollout in RolloutStore(models_folder(core) / "rollouts").all():
        done = progress(rollout, reports)
        rows.append({"rollout": rollout.name, "model": rollout.model, "version": rollout.version, "cohort": rollout.cohort,
                     "state": rollout.state, "active": list(done.active), "failed": list(done.failed),
                     "waiting": list(done.waiting), "on_probation": list(done.on_probation),
                     "blocked": list(done.blocked), "reason": rollout.reason})  # fmt: skip
    devices = {device: [msgspec.to_builtins(item) for item in models] for device, models in sorted(reports.items())}
    if as_json:
        say_json(json.dumps({"rollouts": rows, "devices": devices}))
        return
    _print_status(rows, reports)


def _print_status(rows: list[dict[str, object]], reports: dict[str, tuple[ModelReport, ...]]) -> None:
    table = PlainTable("rollout", "model", "cohort", "state", "active", "on probation", "failed", "blocked", "waiting")
    for row in rows:
        counts = [str(len(cast("list[str]", row[key]))) for key in ("active", "on_probation", "failed", "blocked", "waiting")]
        table.add_row(str(row["rollout"]), f"{row['model']} {row['version']}", str(row["cohort"]), str(row["state"]), *counts)
    out.print(table)
    devices = PlainTable("device", "model", "version", "state", "reason")
    for device, models in sorted(reports.items()):
        for item in models:
            devices.add_row(device, item.name, str(item.version), item.state, item.reason)
    out.print(devices)


@model_app.command("serve")
@rollout_app.command("serve")
def rollout_serve(config: Config = None) -> None:
    """Serve models to devices until stopped."""
    serve(load_core_config(config), stop_on_signals())
