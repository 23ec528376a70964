"""`catchment policy schema | import`: what editors check policies by, and policies of others."""

from pathlib import Path
from typing import Annotated

import typer

from catchment.runtime.output import say, say_document
from pipelines.commands.options import Config, Contracts, contract_folder, require_files
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError, PipelineError
from pipelines.policy.json_schema import schema_text
from pipelines.policy.pol_filter import import_policies
from pipelines.policy.trial import compile_policy
from pipelines.policy.yaml_text import to_yaml


def schema() -> None:
    """Print the JSON Schema of policy files, for an editor that completes YAML."""
    say_document(schema_text().removesuffix("\n"))


def import_json(
    file: Annotated[Path, typer.Argument(help="JSON with pol_id, pol_filter, action_id and action_params; one or a list.")],
    stream: Annotated[str, typer.Option("--stream", "-s", help="The stream that they shall be for.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the YAML files.")] = Path(),
    renamed: Annotated[list[str] | None, typer.Option("--map", help="theirs=ours, for a column; may be given again.")] = None,
    contracts: Contracts = "",
    config: Config = None,
) -> None:
    """Turn policies of IBM Spectrum Discover into ours; what does not fit is told."""
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
