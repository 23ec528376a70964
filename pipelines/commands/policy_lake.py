"""`catchment policy apply | withdraw | active | history | diff | retag`: which rules are in force, and for which past."""

import getpass
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.syntax import Syntax

from catchment.runtime.exits import STOP
from catchment.runtime.output import say, say_json
from catchment.runtime.plain import plain, plain_lines
from catchment.runtime.terminal import PlainConsole, PlainTable, joined, styled
from pipelines.commands.options import AsJson, Config, Lake
from pipelines.commands.policy_edge import give_out, policy_signer
from pipelines.commands.site import LakeSite
from pipelines.config import load_core_config
from pipelines.errors import NotFoundError
from pipelines.inspect.code import store_code
from pipelines.inspect.columns import steps_of
from pipelines.inspect.stored import StoredInspector
from pipelines.inspect.suspended import HINT, SuspensionBook
from pipelines.labels.rule_columns import LabelColumns, pin_labels
from pipelines.policy.active import active_policies, apply_policy, history, known_versions, read_document, withdraw_policy
from pipelines.policy.documents import difference, load_policy
from pipelines.policy.edge import edge_rules
from pipelines.policy.guard import SandboxedTagger
from pipelines.policy.retag import Retagged, retag_stream, undo_retag
from pipelines.policy.tag_file import RuleTagger
from pipelines.policy.trial import require_sound
from schemas.policy import Policy

Note = Annotated[str, typer.Option("-m", "--note", help="Why; kept in the history.")]
Who = Annotated[str, typer.Option("--who", help="By whom; default: the user of this process.")]


def apply(
    files: Annotated[list[Path], typer.Argument(help="Policy files (YAML).")],
    config: Config = None,
    lake: Lake = None,
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
    lake: Lake = None,
    note: Note = "",
    who: Who = "",
) -> None:
    """Take a policy out of force; what it tagged stays tagged until a retag."""
    site = LakeSite.open(config, lake)
    before = [each for each in active_policies(site.lake) if each.id == policy_id]
    entry = withdraw_policy(site.lake, policy_id, who or getpass.getuser(), time.time_ns() // 1_000, note)
    _console().print(f"withdrawn {policy_id}, change {entry.number}")
    _lift(site, before)


def active(config: Config = None, lake: Lake = None, as_json: AsJson = False) -> None:
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


def changes(config: Config = None, lake: Lake = None, as_json: AsJson = False) -> None:
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
    lake: Lake = None,
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
    lake: Lake = None,
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
                tagger = RuleTagger(rules, LabelColumns(site.lake, stream, rules.columns, pins, fill))
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
