"""`catchment policy check | test | schema | import | preview | explain`: policies before they are merged, and what they do."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from catchment.runtime.exits import DONE, STOP
from catchment.runtime.output import say, say_document, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable, PlainTree, joined, styled
from pipelines.commands import policy_lake as lake_cli
from pipelines.commands.options import AsJson, Config, Contracts, Lake, contract_folder, require_files
from pipelines.commands.policy_lake import LakeSite
from pipelines.contracts.registry import ContractSet
from pipelines.contracts.yaml_source import read_yaml
from pipelines.errors import ConfigError, PipelineError
from pipelines.inspect.code import store_code
from pipelines.inspect.columns import steps_of
from pipelines.inspect.run import check_step
from pipelines.inspect.stored import StoredInspector
from pipelines.labels.rule_columns import pin_labels, row_filler
from pipelines.policy.contact_sheet import Sheet
from pipelines.policy.documents import load_policy, schema_text, to_yaml
from pipelines.policy.edge import edge_rules, edge_uploads
from pipelines.policy.engine import RuleError, Tagger
from pipelines.policy.explain import Explained, RuleResult, explain
from pipelines.policy.guard import SandboxedTagger
from pipelines.policy.pol_filter import import_policies
from pipelines.policy.preview import CHIP, REFERENCES, Preview, blocks, row_count, sample_row
from pipelines.policy.trial import PolicyTrial, compile_policy, try_policy
from schemas.policy import Policy

SAMPLE_ROWS = 100_000
_OVERLAP_TAGS = 12
_COLOURS = {RuleResult.TRUE: "green", RuleResult.NEARLY: "yellow", RuleResult.FALSE: "dim", RuleResult.NULL: "dim"}
policy_app = typer.Typer(help="Check, try, apply and look back on tagging policies.", no_args_is_help=True)
policy_app.command("apply")(lake_cli.apply)
policy_app.command("withdraw")(lake_cli.withdraw)
policy_app.command("active")(lake_cli.active)
policy_app.command("history")(lake_cli.changes)
policy_app.command("diff")(lake_cli.diff)
policy_app.command("keygen")(lake_cli.keygen)
policy_app.command("push")(lake_cli.push)
policy_app.command("retag")(lake_cli.retag)

_REFUSED, _UNTESTED = styled("refused", "red"), styled("untested", "yellow")
Files = Annotated[list[Path], typer.Argument(help="Policy files (YAML).")]


@policy_app.command("preview")
def preview(
    file: Annotated[Path, typer.Argument(help="A policy file (YAML).")],
    config: Config = None,
    lake: Lake = None,
    stream: Annotated[str, typer.Option(help="Of the policy's streams, which; default: its first.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="About how many committed rows to try.")] = SAMPLE_ROWS,
    every: Annotated[bool, typer.Option("--all", help="Every row.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write the example samples as a contact sheet: .html or .png.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a policy would do: matches, overlaps, changes against the version in force, conflicts, twenty samples."""
    site, policy = LakeSite.open(config, lake), load_policy(file)
    name = stream or policy.streams[0]
    store_code(site.lake, [policy], file.parent)
    found = made_preview(site, policy, name, None if every else rows)
    if sheet is not None:
        Sheet(site.lake, f"{policy.label} on {name}", found.examples()).write(sheet)
    if as_json:
        say_json(json.dumps(_plain(found), default=str))
        return
    _print(found, name, row_count(site.lake, name), sheet)


def made_preview(site: LakeSite, policy: Policy, stream: str, limit: int | None) -> Preview:
    """Try a policy on committed rows, together with the others in force.

    Raises:
        NotFoundError: there is no such stream or contract.
        ExpressionError: a rule does not compile.
        RefusedError: a policy takes more than its budget.
    """
    others = tuple(each for each in site.in_force() if each.id != policy.id)
    before = next((each for each in site.in_force() if each.id == policy.id), None)
    contract = site.contract(stream, (*others, policy))
    with ExitStack() as closing:
        new = SandboxedTagger.compile([*others, policy], contract, is_strict=True)
        closing.callback(new.close)
        old = SandboxedTagger.compile([before], site.contract(stream, (before,)), is_strict=True) if before else None
        if old is not None:
            closing.callback(old.close)
        found = Preview(policy, new, old)
        stored = StoredInspector(site.lake, site.contract(stream, ()), steps_of((*others, policy), stream))
        fill = row_filler(site.lake, contract, found.columns, pin_labels(site.lake, found.columns), stored)
        for block in blocks(site.lake, stream, found.columns | fill.columns, limit):
            found.take(fill.fill(block))
    return found


@policy_app.command("explain")
def explain_sample(
    sample: Annotated[str, typer.Argument(help="device/epoch/seq, such as car-1/7/42; of a chip its spec and number besides.")],
    stream: Annotated[str, typer.Option("--stream", "-s", help="Its stream.")],
    config: Config = None,
    lake: Lake = None,
    file: Annotated[Path | None, typer.Option(help="A policy file to explain instead of the policies in force.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which rules gave a sample its tags, with the value of each part of their expressions, and which nearly did."""
    site = LakeSite.open(config, lake)
    policies = (load_policy(file),) if file else site.in_force()
    if file:
        store_code(site.lake, policies, file.parent)
    inspector = StoredInspector(site.lake, site.contract(stream, ()), steps_of(policies, stream))
    tagger = Tagger.compile(policies, site.contract(stream, policies))
    fill = row_filler(site.lake, tagger.contract, tagger.columns, pin_labels(site.lake, tagger.columns), inspector)
    row = fill.fill(sample_row(site.lake, stream, sample))
    found = explain(tagger, row)
    stored = [f"{tag} of {rule}" for tag, rule in zip(row["tags"][0].as_py(), row["tag_rules"][0].as_py(), strict=True)]
    if as_json:
        say_json(json.dumps({"sample": sample, "stored": stored, "rules": [_rule_json(each) for each in found]}, default=str))
        return
    console = PlainConsole(highlight=False, soft_wrap=True)
    console.print(f"{sample} carries {', '.join(stored) or 'no tags'}")
    for each in found:
        console.print(_tree(each))


def _tree(each: Explained) -> PlainTree:
    colour = _COLOURS[each.verdict]
    tree = PlainTree(joined(styled(each.verdict, colour), f" {each.tag} of {each.policy}: {each.text}"))
    if each.missing:
        tree.add(joined(styled("only this is missing:", colour), f" {each.missing}"))
    if each.verdict in (RuleResult.TRUE, RuleResult.NEARLY):
        for part in each.parts:
            tree.add(f"{part.text} = {'NULL' if part.value is None else part.value}")
    return tree


def _print(found: Preview, stream: str, total: int, sheet: Path | None) -> None:
    console = PlainConsole(highlight=False, soft_wrap=True)
    share = f"{found.tagged / found.rows:.1%}" if found.rows else "none"
    console.print(f"{found.policy.label} on {found.rows:,} of {total:,} rows of {stream}: {found.tagged:,} ({share}) get a tag")
    table = PlainTable("tag", "rows", "share", "before", "gained", "lost")
    for count in found.counts.values():
        part = f"{count.rows / found.rows:.2%}" if found.rows else ""
        numbers = (f"{count.rows:,}", part, f"{count.before:,}", f"{count.gained:,}", f"{count.lost:,}")
        table.add_row(count.tag, *(numbers if found.before else (*numbers[:2], "", "", "")))
    console.print(table)
    _print_overlap(console, found)
    for conflict in found.conflicts.values():
        both = f" {conflict.first} and {conflict.second} on {conflict.rows:,} rows, such as"
        console.print(joined(styled("conflict", "red"), both))
        console.print(joined(f"  {_shown(conflict.example)}"))
    for example in found.examples():
        console.print(joined(styled(" ".join(example.tags), "green"), f" {_shown(example.row)}"))
    if sheet is not None:
        console.print(f"contact sheet: {sheet}")


def _print_overlap(console: PlainConsole, found: Preview) -> None:
    tags = found.tags[:_OVERLAP_TAGS]
    if len(tags) < 2:
        return
    table = PlainTable("rows with both", *tags)
    for place, tag in enumerate(tags):
        table.add_row(tag, *(f"{found.overlap[place, other]:,}" for other in range(len(tags))))
    console.print(table)


def _plain(found: Preview) -> dict[str, Any]:
    return {
        "policy": found.policy.label,
        "rows": found.rows,
        "tagged": found.tagged,
        "tags": [
            {slot: getattr(count, slot) for slot in ("tag", "rows", "before", "gained", "lost")}
            for count in found.counts.values()
        ],
        "overlap": {"tags": found.tags, "rows": found.overlap.tolist()},
        "conflicts": [
            {"first": each.first, "second": each.second, "rows": each.rows, "example": each.example}
            for each in found.conflicts.values()
        ],
        "examples": [{"tags": each.tags, "row": each.row} for each in found.examples()],
    }


def _rule_json(each: Explained) -> dict[str, Any]:
    return {
        "tag": each.tag,
        "policy": each.policy,
        "when": each.text,
        "verdict": each.verdict,
        "missing": each.missing,
        "parts": {part.text: part.value for part in each.parts},
    }


def _shown(row: dict[str, Any]) -> str:
    names = ("device", "epoch", "seq", *(name for name in CHIP if name in row))
    key = "/".join(str(row.get(name)) for name in names)
    hidden = (*names, *REFERENCES)
    rest = (f"{name}={_short(value)}" for name, value in row.items() if value is not None and name not in hidden)
    return f"{key} {' '.join(rest)}"


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:80]


@policy_app.command()
def schema() -> None:
    """Print the JSON Schema of policy files, for an editor that completes YAML."""
    say_document(schema_text().removesuffix("\n"))


@policy_app.command("import")
def import_json(
    file: Annotated[Path, typer.Argument(help="JSON with pol_id, pol_filter, action_id and action_params; one or a list.")],
    stream: Annotated[str, typer.Option("--stream", "-s", help="The stream that they shall be for.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the YAML files.")] = Path(),
    renamed: Annotated[list[str] | None, typer.Option("--map", help="theirs=ours, for a column; may be given again.")] = None,
    contracts: Contracts = "",
    config: Config = None,
) -> None:
    """Convert policies of IBM Spectrum Discover, and list what cannot be converted."""
    known = ContractSet.load(contract_folder(config, contracts))
    names = dict(each.split("=", 1) for each in renamed or () if "=" in each)
    require_files([file])
    try:
        found = import_policies(file.read_bytes(), stream, names)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror})") from error
    out.mkdir(parents=True, exist_ok=True)
    for policy in found.policies:
        path = out / f"{policy.id}.yaml"
        if path.exists():
            say(f"{path} is there already; left as it is", err=True)
            continue
        path.write_text(to_yaml(policy), encoding="utf-8")
        try:
            compile_policy(policy, known)
            say(f"written {path}: {len(policy.rules)} rules")
        except PipelineError as error:
            say(f"written {path}, which does not compile yet: {error}")
    for note in found.notes:
        say(note, err=True)


@policy_app.command()
def check(files: Files, contracts: Contracts = "", config: Config = None, as_json: AsJson = False) -> None:
    """Compile every rule against the contracts of its streams; exit code 1 if one is not valid."""
    console = PlainConsole(highlight=False, soft_wrap=True)
    known = ContractSet.load(contract_folder(config, contracts))
    require_files(files)
    rows: list[dict[str, object]] = []
    for path in files:
        try:
            policy = load_policy(path)
            compile_policy(policy, known)
            edge_rules([policy], known)
            edge_uploads([policy], known)
            for step in policy.inspect:
                check_step(step, path.parent / step.file if step.file else None)
            rows.append({"file": str(path), "is_valid": True, "policy": _title(policy), "fault": ""})
            if not as_json:
                found = f" {path}: {_title(policy)}, {len(policy.rules)} rules for {', '.join(policy.streams)}"
                console.print(joined(styled("ok", "green"), found))
        except PipelineError as error:
            rows.append({"file": str(path), "is_valid": False, "policy": "", "fault": _located(path, error)})
            if not as_json:
                console.print(_REFUSED, _located(path, error))
    if as_json:
        say_json(json.dumps(rows))
    raise typer.Exit(DONE if all(row["is_valid"] for row in rows) else STOP)


@policy_app.command("test")
def run_examples(files: Files, contracts: Contracts = "", config: Config = None, as_json: AsJson = False) -> None:
    """Run every policy's examples, and name the rules that no example reaches; exit code 1 if one fails."""
    console = PlainConsole(highlight=False, soft_wrap=True)
    known = ContractSet.load(contract_folder(config, contracts))
    require_files(files)
    rows: list[dict[str, object]] = []
    for path in files:
        try:
            trial = try_policy(load_policy(path), known)
        except PipelineError as error:
            rows.append({"file": str(path), "is_passed": False, "fault": _located(path, error)})
            if not as_json:
                console.print(_REFUSED, _located(path, error))
            continue
        rows.append(_tried(path, trial))
        if not as_json:
            _report(console, path, trial)
    if as_json:
        say_json(json.dumps(rows))
    raise typer.Exit(DONE if all(row["is_passed"] for row in rows) else STOP)


def _tried(path: Path, trial: PolicyTrial) -> dict[str, object]:
    failures = [
        {"example": each.example + 1, "stream": each.stream, "wanted": each.wanted, "got": each.found} for each in trial.failures
    ]
    return {"file": str(path), "is_passed": trial.is_passed, "fault": "", "policy": _title(trial.policy),
            "examples": len(trial.policy.examples), "failures": failures, "unfired": list(trial.unfired),
            "untrue": list(trial.untrue)}  # fmt: skip


def _report(console: PlainConsole, path: Path, trial: PolicyTrial) -> None:
    policy = trial.policy
    for failure in trial.failures:
        wanted, got = _tags(failure.wanted), _tags(failure.found)
        summary = f" {path}: example {failure.example + 1} on {failure.stream}: wanted {wanted}, got {got}"
        console.print(joined(styled("failed", "red"), summary))
    if trial.is_passed:
        console.print(joined(styled("passed", "green"), f" {path}: {_title(policy)}, {len(policy.examples)} examples"))
    if trial.unfired:
        console.print(joined(_UNTESTED, f" {path}: no example gets {', '.join(trial.unfired)}"))
    for text in trial.untrue:
        console.print(joined(_UNTESTED, f" {path}: no example makes this true: {text}"))


def _title(policy: Policy) -> str:
    return f"{policy.id}@{policy.version}"


def _tags(tags: tuple[str, ...]) -> str:
    return "(" + (", ".join(tags) or "no tags") + ")"


def _located(path: Path, error: PipelineError) -> str:
    """The message, with the file before it unless it already begins with it."""
    message = str(error)
    if isinstance(error, RuleError):
        message = f"{read_yaml(path).where('rules', error.index, 'when')}: {message}"
    return message if message.startswith(str(path)) else f"{path}: {message}"
