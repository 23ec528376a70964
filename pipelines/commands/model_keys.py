"""`catchment model expiry|sign`, `model key …` and `model root …`: signatures that end, and who signs again."""

import json
from pathlib import Path
from typing import Annotated

import typer
from securesystemslib.signer import Key

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import SystemClock
from catchment.runtime.output import say_json
from catchment.runtime.plain import plain
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands.options import AsJson, Config, require_files
from pipelines.config import load_core_config
from pipelines.errors import RefusedError
from pipelines.rollout.ceremony import check_draft, draft_root, install_root, read_draft, sign_draft
from pipelines.rollout.keys import ROLES, KeyFolder, keys_folder, load_signer, models_folder, new_key
from pipelines.rollout.repository import ModelRepository

key_app = typer.Typer(help="The private keys that sign models.", no_args_is_help=True)
root_app = typer.Typer(help="Change keys, or extend the root, with keys on separate machines.", no_args_is_help=True)
out = PlainConsole()

Keys = Annotated[Path | None, typer.Option("--keys", help="Folder of the signing keys; default: as configured.")]


def _repository(config: Path | None, keys: Path | None = None) -> ModelRepository:
    core = load_core_config(config)
    return ModelRepository(models_folder(core), KeyFolder(keys or keys_folder(core)), SystemClock())


def model_expiry(config: Config = None, as_json: AsJson = False) -> None:
    """Show until when each signature of the repository holds, and who makes it again."""
    repository = _repository(config)
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


def model_sign(config: Config = None, keys: Keys = None) -> None:
    """Sign everything that vouches for models again, without a new model."""
    out.print(f"{_repository(config, keys).sign()} roles signed again")


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
    document = draft_root(_repository(config).files, {role: [_public(path) for path in public or ()]} if role else {})
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
    changes, lacks = check_draft(_repository(config).files, read_draft(file))
    for line in changes:
        out.print(plain(line))
    if lacks:
        raise RefusedError(f"it cannot be installed yet: {'; '.join(lacks)}")
    out.print("complete: catchment model root install puts it in force")


@root_app.command("install")
def root_install(file: Path, config: Config = None, keys: Keys = None) -> None:
    """Put a signed root in force, and sign everything below it again with the keys it names."""
    repository = _repository(config, keys)
    path = install_root(repository.files, read_draft(file))
    out.print(f"{path} is in force; {repository.sign()} roles signed again")


def _public(path: Path) -> Key:
    require_files([path])
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        return Key.from_dict(plain.pop("keyid"), plain)
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{path}: not a public key of `catchment model key new`: {error}") from error
