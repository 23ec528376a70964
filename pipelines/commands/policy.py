"""`catchment policy check | test | schema | import`: check policies before they are merged, and take over policies of others."""

import json
from pathlib import Path
from typing import Annotated

import typer

from catchment.runtime.exits import DONE, STOP
from catchment.runtime.output import say, say_document, say_json
from catchment.runtime.terminal import PlainConsole, joined, styled
from pipelines.commands import policy_edge as edge_cli
from pipelines.commands import policy_lake as lake_cli
from pipelines.commands import policy_look as look_cli
from pipelines.commands.options import AsJson, Config, Contracts, contract_folder, require_files
from pipelines.contracts.registry import ContractSet
from pipelines.contracts.yaml_source import read_yaml
from pipelines.errors import ConfigError, PipelineError
from pipelines.inspect.run import check_step
from pipelines.policy.documents import load_policy, schema_text, to_yaml
from pipelines.policy.edge import edge_rules
from pipelines.policy.engine import RuleError
from pipelines.policy.pol_filter import import_policies
from pipelines.policy.trial import Trial, compile_policy, try_policy
from schemas.policy import Policy

policy_app = typer.Typer(help="Check, try, apply and look back on tagging policies.", no_args_is_help=True)
policy_app.command("apply")(lake_cli.apply)
policy_app.command("withdraw")(lake_cli.withdraw)
policy_app.command("active")(lake_cli.active)
policy_app.command("history")(lake_cli.changes)
policy_app.command("diff")(lake_cli.diff)
policy_app.command("keygen")(edge_cli.keygen)
policy_app.command("push")(edge_cli.push)
policy_app.command("preview")(look_cli.preview)
policy_app.command("explain")(look_cli.explain_sample)
policy_app.command("retag")(lake_cli.retag)

_REFUSED, _UNTESTED = styled("refused", "red"), styled("untested", "yellow")
Files = Annotated[list[Path], typer.Argument(help="Policy files (YAML).")]


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


def _tried(path: Path, trial: Trial) -> dict[str, object]:
    failures = [
        {"example": each.example + 1, "stream": each.stream, "wanted": each.wanted, "got": each.found} for each in trial.failures
    ]
    return {"file": str(path), "is_passed": trial.is_passed, "fault": "", "policy": _title(trial.policy),
            "examples": len(trial.policy.examples), "failures": failures, "unfired": list(trial.unfired),
            "untrue": list(trial.untrue)}  # fmt: skip


def _report(console: PlainConsole, path: Path, trial: Trial) -> None:
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
