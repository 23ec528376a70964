"""`catchment model …`: models, keys and signatures."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, cast

import msgspec
import typer
from securesystemslib.signer import Key

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import SystemClock
from catchment.runtime.output import say_json
from catchment.runtime.plain import plain
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands.options import AsJson, Config, require_files
from pipelines.commands.rollout import order_again
from pipelines.config import CoreConfig, load_core_config
from pipelines.director import director_folder, first_director
from pipelines.errors import ConfigError, RefusedError
from pipelines.lake.lake import lake_of
from pipelines.rollout.description import ModelAbout, prepare_model, read_about, task_named
from pipelines.rollout.evaluation import evaluate
from pipelines.rollout.keys import ROLES, KeyFolder, KeyPlan, keys_folder, load_signer, models_folder, new_key
from pipelines.rollout.onnx_metadata import with_metadata
from pipelines.rollout.origin import check_origin, origin_entries, origin_in, origin_of_set
from pipelines.rollout.repository import ModelRepository, PublishedModel
from pipelines.rollout.role_files import check_draft, draft_root, draft_rotation, install_root, read_draft, sign_draft
from pipelines.rollout.rollouts import RolloutStore
from pipelines.rollout.server import serve
from pipelines.stopping import stop_on_signals
from schemas.model import MODEL_ANSWER_MS, MODEL_MEMORY_MIB, ImageInput
from schemas.model_origin import ModelOrigin
from schemas.rollout import MODEL_NAME

model_app = typer.Typer(help="The models that the signing keys vouch for.", no_args_is_help=True)
key_app = typer.Typer(help="The private keys that sign models.", no_args_is_help=True)
root_app = typer.Typer(help="Change keys, or extend the root, with keys on separate machines.", no_args_is_help=True)
model_app.add_typer(key_app, name="key")
model_app.add_typer(root_app, name="root")
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


@model_app.command("rotate")
def model_rotate(
    role: Annotated[str, typer.Argument(help="root, targets, snapshot or timestamp.")],
    config: Config = None,
    keys: Keys = None,
    draft: Annotated[Path, typer.Option(help="Where the next root goes if root keys elsewhere must sign it.")] = Path(
        "next.json"
    ),
) -> None:
    """Replace the keys of a role by new ones. The root keys that are here sign; others sign the draft where they are."""
    repository = _repository(load_core_config(config), keys)
    _one_of("role", role, ROLES)
    if draft.exists():
        raise RefusedError(f"{draft} exists already; install or remove it first, or name another file with --draft")
    document = draft_rotation(repository.files, repository.keys, role)
    _, lacks = check_draft(repository.files, document)
    if lacks:
        write_atomic(draft, document.to_bytes(), mode=0o644)
        out.print(
            f"{draft} lacks {'; '.join(lacks)}: catchment model root sign {draft} KEY.pem, then root verify and root install"
        )
        return
    path = install_root(repository.files, document)
    out.print(
        f"{path} is in force with new {role} keys; {repository.sign()} roles signed again; the old keys sign nothing any more"
    )


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
        **({"origin": "none"} if spec.origin is None else _origin_facts(spec.origin)),
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
    training_set: Annotated[str, typer.Option("--set", help="The set that it was trained on: name or name/version.")] = "",
    metrics: Annotated[Path | None, typer.Option(help="JSON object of numbers, signed with the model.")] = None,
    code: Annotated[str, typer.Option(help="Revision of the code that trained it.")] = "",
) -> None:
    """Try a model within a device's limits, then sign it as its next version."""
    core = load_core_config(config)
    described = _described(about, task, _labels(labels), softmax=softmax)
    complete = partial(_image, width=width, height=height, colour=colour, layout=layout, scale=scale)
    found = prepare_model(file, described, complete, memory_mib=memory_mib, answer_ms=answer_ms)
    onnx, origin = _with_origin(core, found.onnx, training_set, metrics, code)
    published = _repository(core, keys).publish(
        name, onnx, found.image, labels=found.labels, output=found.output, softmax=found.softmax, golden=found.golden,
        task=found.task, rows=found.rows, needs=msgspec.structs.replace(found.needs, bytes=len(onnx)), origin=origin,
    )  # fmt: skip
    out.print(f"{name} version {published.spec.version}: {published.size} bytes, sha256 {published.digest}")
    if origin is None or not origin.training_set:
        out.print("it has no origin: nobody can say what it was trained on; publish with --set NAME/VERSION")


def _with_origin(
    core: CoreConfig, onnx: bytes, training_set: str, metrics: Path | None, code: str
) -> tuple[bytes, ModelOrigin | None]:
    """The ONNX file with its origin in it; one that the file names already stands where the options name none."""
    if not training_set:
        if metrics is not None or code:
            raise RefusedError("--metrics and --code go with --set NAME/VERSION")
        return onnx, origin_in(onnx)
    origin, named = origin_of_set(lake_of(core), training_set, code, metrics), origin_in(onnx)
    if named is not None and named.manifest_sha256 not in {"", origin.manifest_sha256}:
        raise RefusedError(
            f"the file says that it was trained on {named.training_set}, and --set says {origin.training_set}; "
            "their manifests differ: give the set that it was trained on"
        )
    return with_metadata(onnx, origin_entries(origin)), origin


def _described(about: Path | None, task: str, labels: tuple[str, ...], *, softmax: bool) -> ModelAbout:
    """The description that the options give; what they leave out is as the file says."""
    described = ModelAbout() if about is None else read_about(about)
    if labels:
        described = msgspec.structs.replace(described, labels=labels)
    if task and described.task is None:
        described = msgspec.structs.replace(described, task=task_named(task))
    return msgspec.structs.replace(described, softmax=True) if softmax else described


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
def model_show(
    name: Annotated[str, typer.Argument(help="A published model, or the path of any ONNX file.")],
    version: int | None = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show one version of a model, the newest if none is named, or what a file says of its origin."""
    core = load_core_config(config)
    facts = _plain(_repository(core).model(name, version)) if MODEL_NAME.fullmatch(name) else _file_facts(core, Path(name))
    if as_json:
        say_json(json.dumps(facts))
        return
    for key, value in facts.items():
        out.print(f"{key}: {plain(value)}")


def _file_facts(core: CoreConfig, file: Path) -> dict[str, object]:
    """What is known of a file found anywhere: which version it is, and where it comes from."""
    require_files([file])
    onnx = file.read_bytes()
    digest = hashlib.sha256(onnx).hexdigest()
    known = _repository(core).version_of(digest)
    origin = origin_in(onnx) if known is None or known.spec.origin is None else known.spec.origin
    facts: dict[str, object] = {
        "file": str(file),
        "sha256": digest,
        "published": "no: nobody vouches for this file" if known is None else f"{known.spec.name} version {known.spec.version}",
    }
    if origin is None:
        return {**facts, "origin": "none: nobody said what it was trained on"}
    here = {"same": "this lake has it", "differs": "this lake has ANOTHER set of that name", "absent": "not in this lake"}
    found = check_origin(lake_of(core), origin).set_here
    signed = "signed" if known is not None and known.spec.origin is not None else "said by the file alone, not signed"
    return {**facts, **_origin_facts(origin), "origin": signed, "set here": "" if found is None else here[found]}


def _origin_facts(origin: ModelOrigin) -> dict[str, object]:
    return {
        "set": origin.training_set,
        "manifest_sha256": origin.manifest_sha256,
        "code": origin.code,
        "metrics": origin.metrics,
    }


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
    order_again(halted, core)


@model_app.command("evaluate")
def model_evaluate(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    stream: Annotated[str, typer.Option("--from", help="The stream with its predictions.")],
    task: Annotated[str, typer.Option(help="The task of the labels.")],
    by: Annotated[list[str] | None, typer.Option(help="Slices: a column, tag, day, hour or week; once for each.")] = None,
    version: Annotated[int | None, typer.Option(help="Only this version.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show how right a model is on labelled samples, by slice, with 95 % intervals; worse slices are marked."""
    found = evaluate(lake_of(load_core_config(config)), stream, name, task, by or (), version)
    if as_json:
        say_json(msgspec.json.encode(found).decode())
        return
    table = PlainTable("by", "slice", "labelled", "right", "95 %", "mean score", "")
    for each in found:
        right, score = each.right, "" if each.mean_score is None else f"{each.mean_score:.3f}"
        span = f"{right.low:.1%} to {right.high:.1%}"
        mark = "worse than the others" if each.is_worse else ""
        table.add_row(each.by, each.value, str(right.samples), f"{right.share:.1%}", span, score, mark)
    out.print(table)


@model_app.command("serve")
def model_serve(config: Config = None) -> None:
    """Serve models to devices until stopped."""
    serve(load_core_config(config), stop_on_signals())
