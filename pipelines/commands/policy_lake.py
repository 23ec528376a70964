"""`catchment policy apply | withdraw | active | history | diff | retag | keygen | push`: rules in force, here and on devices."""

import getpass
import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.syntax import Syntax

from catchment.runtime.exits import STOP
from catchment.runtime.output import say, say_document, say_json
from catchment.runtime.plain import plain, plain_lines
from catchment.runtime.terminal import PlainConsole, PlainTable, joined, styled
from pipelines.commands.options import AsJson, Config
from pipelines.commands.options import Lake as LakeFolder
from pipelines.config import CoreConfig, load_core_config, require_folder
from pipelines.contracts.registry import ContractSet
from pipelines.director import DocumentSigner, director_folder, parse_key, require_director, write_key
from pipelines.errors import ConfigError, NotFoundError
from pipelines.ingest.receipts import MqttPublisher
from pipelines.inspect.code import store_code
from pipelines.inspect.columns import inspected, steps_of
from pipelines.inspect.stored import StoredInspector
from pipelines.inspect.suspended import HINT, SuspensionBook
from pipelines.labels.rule_columns import pin_labels, row_filler
from pipelines.lake.lake import Lake, lake_at, lake_of
from pipelines.policy.documents import (
    active_policies,
    apply_policy,
    difference,
    history,
    known_versions,
    load_policy,
    policies_in_force,
    read_document,
    withdraw_policy,
)
from pipelines.policy.edge import edge_inspectors, edge_rules, edge_uploads, numbered_policy, signed_message
from pipelines.policy.guard import SandboxedTagger
from pipelines.policy.retag import Retagged, RuleTagger, retag_stream, undo_retag
from pipelines.policy.trial import require_sound
from pipelines.rollout.fleet import reported_models
from schemas.contract import Contract
from schemas.ids import DeviceId
from schemas.policy import Policy
from schemas.topics import Topics

Note = Annotated[str, typer.Option("-m", "--note", help="Why; kept in the history.")]
Who = Annotated[str, typer.Option("--who", help="By whom; default: the user of this process.")]


@dataclass(frozen=True, slots=True)
class LakeSite:
    """One core's lake and rules."""

    lake: Lake
    contracts: ContractSet
    folder: str

    @classmethod
    def open(cls, config: Path | None, lake: Path | None) -> Self:
        """The site that the options `-c` and `--lake` name.

        Raises:
            ConfigError: the configuration or a contract cannot be read.
            NotFoundError: there is no such lake.
        """
        core = load_core_config(config) if lake is None or config is not None else CoreConfig()
        require_folder(core.lake_root if lake is None else lake)
        found = lake_of(core) if lake is None else lake_at(lake)
        if not found.root.is_dir():
            raise NotFoundError(f"{found.root}: no such lake; give its folder with --lake, or the core's TOML file with -c")
        return cls(found, ContractSet.load(core.contracts), core.policies)

    def in_force(self) -> tuple[Policy, ...]:
        """The policies that the next run tags by."""
        return policies_in_force(self.lake, self.folder)

    def contract(self, stream: str, policies: tuple[Policy, ...]) -> Contract:
        """The newest contract of a stream, with the columns that the policies' inspect steps add.

        Raises:
            NotFoundError: there is none.
        """
        contract = self.contracts.get(stream, None)
        if contract is None:
            names = ", ".join(sorted({each.name for each in (*self.contracts.all(), *self.contracts.derived())}))
            raise NotFoundError(f"there is no contract for stream {stream!r}; there are {names}")
        return inspected(contract, policies)


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
    uploads = edge_uploads(site.in_force(), site.contracts)
    for stream, rules in streams.items():
        for rule in rules:
            say(f"{stream}: {rule.id}: {rule.action}")
    for stream, steps in inspect.items():
        say(f"{stream}: devices inspect {', '.join(step.use for step in steps)}")
    if signer is None:
        return
    policy = numbered_policy(site.lake, streams, time.time_ns() // 1_000_000, inspect, uploads)
    message = signed_message(policy, signer)
    devices = sorted({*(device or reported_models(core))})
    topics = Topics(core.broker.namespace)
    with MqttPublisher(core.broker, "catchment-policy-push") as publisher:
        publisher.publish({topics.policy(DeviceId(name)): message for name in devices})
    say(f"version {policy.version} of the device rules sent to {len(devices)} devices")


def apply(
    files: Annotated[list[Path], typer.Argument(help="Policy files (YAML).")],
    config: Config = None,
    lake: LakeFolder = None,
    note: Note = "",
    who: Who = "",
    key: Annotated[Path | None, typer.Option("--key", help="Sign the device rules by it and send them too.")] = None,
) -> None:
    """Put policies in force: the next run tags by them. Refused if a rule does not compile or an example fails."""
    site = LakeSite.open(config, lake)
    console = _console()
    # Both before anything is put in force: a wrong path must not leave half of it done.
    core = load_core_config(config) if key is not None else None
    signer = None if core is None else (core, policy_signer(core, key))
    policies = [load_policy(path) for path in files]
    for policy, path in zip(policies, files, strict=True):
        require_sound(policy, site.contracts, path.parent)
        edge_rules([policy], site.contracts)
        edge_uploads([policy], site.contracts)
        store_code(site.lake, [policy], path.parent)
    for policy in policies:
        before = {each.id: each for each in active_policies(site.lake)}.get(policy.id)
        entry = apply_policy(site.lake, policy, who or getpass.getuser(), time.time_ns() // 1_000, note)
        if before is None or before.version != policy.version:
            _lift(site, [policy, *filter(None, [before])])
        if before is not None and before.version == policy.version:
            console.print(f"{policy.label} is in force already, since change {entry.number} or before")
        else:
            was = f" in place of {before.label}" if before else ""
            console.print(joined(styled("in force", "green"), f" {policy.label}{was}, change {entry.number}"))
        if policy.has_edge_part and signer is None:
            console.print(f"{policy.id} has rules for devices: `catchment policy push --key KEY` gives them out")
    if signer is not None:
        give_out(site, *signer)


def withdraw(
    policy_id: Annotated[str, typer.Argument(help="The policy's id.")],
    config: Config = None,
    lake: LakeFolder = None,
    note: Note = "",
    who: Who = "",
) -> None:
    """Take a policy out of force; what it tagged stays tagged until a retag."""
    site = LakeSite.open(config, lake)
    before = [each for each in active_policies(site.lake) if each.id == policy_id]
    entry = withdraw_policy(site.lake, policy_id, who or getpass.getuser(), time.time_ns() // 1_000, note)
    _console().print(f"withdrawn {policy_id}, change {entry.number}")
    _lift(site, before)


def active(config: Config = None, lake: LakeFolder = None, as_json: AsJson = False) -> None:
    """The policies that the next run tags by."""
    site = LakeSite.open(config, lake)
    applied = {policy.id for policy in active_policies(site.lake)}
    book = SuspensionBook(site.lake)
    rows = [
        {
            "policy": policy.label,
            "streams": " ".join(policy.streams),
            "rules": len(policy.rules),
            "owner": policy.owner,
            "from": "apply" if policy.id in applied else "folder",
            "suspended": "; ".join(f"{each.kind} {each.name}: {each.reason}" for each in book.in_force([policy])),
        }
        for policy in site.in_force()
    ]
    _show(rows, as_json)
    if not as_json and any(row["suspended"] for row in rows):
        _console().print(joined(styled("suspended", "red"), f": {HINT}"))


def changes(config: Config = None, lake: LakeFolder = None, as_json: AsJson = False) -> None:
    """Who put which version in force or took it out, when and why."""
    site = LakeSite.open(config, lake)
    rows = [
        {
            "change": entry.number,
            "at": datetime.fromtimestamp(entry.at_us / 1_000_000, UTC).isoformat(timespec="seconds"),
            "who": entry.who,
            "action": entry.action,
            "policy": entry.policy,
            "note": entry.note,
        }
        for entry in history(site.lake)
    ]
    _show(rows, as_json)


def diff(
    old: Annotated[str, typer.Argument(help="A file, an id (its version in force) or id@version.")],
    new: Annotated[str, typer.Argument(help="The other one; default: with a file, the version in force.")] = "",
    config: Config = None,
    lake: LakeFolder = None,
) -> None:
    """How two versions of a policy differ, line by line; exit code 1 if they do."""
    site = LakeSite.open(config, lake)
    first, second = _named(site, old), _named(site, new) if new else None
    if second is None:
        first, second = _named(site, first.id), first
    lines = difference(first, second)
    if lines:
        _console().print(Syntax(plain_lines(lines), "diff", background_color="default"))
        raise typer.Exit(STOP)


def retag(
    streams: Annotated[list[str], typer.Argument(help="Streams whose committed rows are tagged again.")],
    config: Config = None,
    lake: LakeFolder = None,
    undo: Annotated[bool, typer.Option("--undo", help="Go back to the tags before the last retag.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Files at a time.")] = 2,
) -> None:
    """Tag history by the policies in force: narrow rows only, one new version; interrupt it and start again as you like."""
    site = LakeSite.open(config, lake)
    policies = site.in_force()
    for stream in streams:
        if undo:
            _tell(undo_retag(site.lake, stream), "undone")
            continue
        fill = StoredInspector(site.lake, site.contract(stream, ()), steps_of(policies, stream))
        book = SuspensionBook(site.lake)
        rules = SandboxedTagger.compile(policies, site.contract(stream, policies), book=book, is_strict=True)
        try:
            with _Bar(stream) as bar:
                pins = pin_labels(site.lake, rules.columns)
                tagger = RuleTagger(rules, row_filler(site.lake, rules.contract, rules.columns, pins, fill))
                done = retag_stream(site.lake, stream, policies, tagger, bar, workers, [pin.words for pin in pins])
        finally:
            rules.close()
        _tell(done, "tagged")


def _lift(site: LakeSite, policies: list[Policy]) -> None:
    for name in SuspensionBook(site.lake).lift(policies):
        _console().print(joined(styled("lifted", "green"), f" the suspension of {name}"))


class _Bar:
    """A progress bar on standard error."""

    def __init__(self, stream: str) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=PlainConsole(stderr=True), transient=True)
        self._task = self._bar.add_task(plain(stream), total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)


def _tell(done: Retagged, verb: str) -> None:
    if done.before == done.after:
        _console().print(f"{done.stream}: every row carries these rules' tags already, version {done.after}")
        return
    reused = f", {done.reused} of them found ready" if done.reused else ""
    what = f" {done.stream}: {done.rows:,} rows in {done.files} files{reused}; "
    _console().print(joined(styled(verb, "green"), what, f"version {done.before} -> {done.after}, no payload byte written"))


def _named(site: LakeSite, text: str) -> Policy:
    if text.endswith((".yaml", ".yml")):
        return load_policy(Path(text))
    policy_id, at, version = text.partition("@")
    if not at:
        found = {policy.id: policy for policy in site.in_force()}
        if policy_id not in found:
            raise NotFoundError(f"policy {policy_id!r} is not in force; there are {', '.join(found) or 'none'}")
        return found[policy_id]
    known = known_versions(site.lake, policy_id)
    fitting = [label for label in known if label.startswith(f"{policy_id}@{version}")]
    if len(fitting) != 1:
        raise NotFoundError(f"no such version was applied; there are {', '.join(known) or 'none'}")
    return read_document(site.lake, fitting[0])


def _show(rows: list[dict[str, str | int]] | list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        say_json(json.dumps(rows))
        return
    if not rows:
        say("none yet")
        return
    table = PlainTable()
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    _console().print(table)


def _console() -> PlainConsole:
    return PlainConsole(highlight=False, soft_wrap=True)
