"""Hostile text through every command and every page. A new command is either driven here, or in a list with its reason."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import click
import msgspec
import numpy as np
import pyarrow as pa
import pytest
import typer
from deltalake import write_deltalake
from typer.testing import CliRunner

import pipelines.cli as core_program
import pipelines.commands.root as core_cli
from edge_agent import cli as agent_cli
from edge_agent.checking import Fault
from edge_agent.commands import status_reader
from edge_agent.commands.doctor import examine
from edge_agent.commands.doctor.findings import Diagnosis
from edge_agent.commands.root import app as agent_app
from edge_agent.spool import inspection
from pipelines.commands import contract as contract_cli
from pipelines.commands import label as label_cli
from pipelines.commands import maintenance as maintenance_cli
from pipelines.commands import mining as mining_cli
from pipelines.commands import model as model_cli
from pipelines.commands import policy as policy_cli
from pipelines.commands import policy_lake as lake_cli
from pipelines.commands import policy_lake as policy_lake_cli
from pipelines.commands import rollout as rollout_cli
from pipelines.commands import status as status_cli
from pipelines.commands import training_set as set_cli
from pipelines.commands import training_set_care as set_care_cli
from pipelines.errors import RefusedError
from pipelines.labels.agreement import LabelAgreement
from pipelines.labels.exchange import LabelImport
from pipelines.labels.table import SCHEMA as LABEL_SCHEMA
from pipelines.lake import view
from pipelines.lake.compact import Compacted
from pipelines.lake.lake import lake_at
from pipelines.lake.ledger import Gap
from pipelines.mining import picks as mining_picks
from pipelines.mining.index import IndexState
from pipelines.mining.picks import Pick, Picked
from pipelines.mining.rows import NO_PLACES
from pipelines.open_lake import LakeView
from pipelines.policy import notebook
from pipelines.policy.contact_sheet import Sheet
from pipelines.policy.explain import Explained
from pipelines.policy.preview import Conflict, ExampleRow, PreviewTagCount
from pipelines.policy.retag import Retagged
from pipelines.rollout.evaluation import RightShare, SliceFigures
from pipelines.rollout.rollouts import Rollout
from pipelines.status.health import HealthResult
from pipelines.status.server import exposition
from pipelines.status.survey import Survey
from pipelines.training.array_rules import ArrayPart
from pipelines.training.card import CardFacts, render_card
from pipelines.training.compare import SetDifference
from pipelines.training.export.run import ExportRecord
from pipelines.training.leaks import Leak, LeakReport
from pipelines.training.manifest import ClassCount, LeftOut, Manifest, Source
from pipelines.training.open import TrainingSet
from schemas.model_tally import ModelTally
from schemas.reported import ModelReport
from tests.fakes.hostile import MARK, TEXT, acts, forged, hostile

RUN = CliRunner(env={"COLUMNS": "200"})
Place = Callable[[Path, pytest.MonkeyPatch], list[str]]
_SHOWN = TEXT.replace("\0", "")

# Commands that print nothing that came from outside, each with the reason.
QUIET = {
    "catchment": {
        "up": "starts processes; speaks through the log",
        "run": "speaks through the log; --from-landing prints the table that `streams` does",
        "version": "prints our version",
        "bridge": "speaks through the log and the error line",
        "watch": "prints its own address; its pages are tried below",
        "vacuum": "prints our own kinds of files and their counts",
        "maintain": "speaks through the log",
        "demo": "simulates; its lines go through `styled`, which is tried alone",
        "quarantine replay": "prints counts and run numbers",
        "quarantine discard": "prints counts and run numbers",
        "policy keygen": "prints a public key",
        "policy schema": "prints our own JSON Schema",
        "set schema": "prints our own JSON Schema",
        "bench au": "prints our own names of workloads and figures",
        "chips cut": "prints names that were typed or are checked, and counts",
        "chips zarr": "prints the path and names that were typed, and a count",
        "chips sheet": "prints the path and names that were typed, and a count; the page is tried alone",
        "label export": "prints the path that was typed, counts and our own words for losses",
        "label queue": "prints the path that was typed, counts and our own words for losses",
        "set card": "prints the path that was typed and a name, which is checked; the page is tried alone",
        "set pin": "prints a name, which is checked",
        "set rm": "prints a name, which is checked, and a size",
        "set export": "prints the path that was typed, and a recipient, which is checked",
        "set gc": "prints names, which are checked, and sizes",
        "policy withdraw": "prints the id that was typed",
        "policy apply": "prints ids, which are checked, and change numbers",
        "model init": "prints the folders that were typed",
        "model publish": "prints the name that was typed, sizes and hashes",
        "model withdraw": "prints the name that was typed",
        "model expiry": "prints roles, made plain, and dates",
        "model sign": "prints a count",
        "model rotate": "prints a path of ours and counts",
        "model key new": "prints a hash and the paths that were typed",
        "model root draft": "prints the path that was typed and a number",
        "model root sign": "prints the path that was typed and a count",
        "model root verify": "prints roles and keys of the file, made plain",
        "model root install": "prints a path of ours and a count",
        "model serve": "speaks through the log",
        "rollout start": "prints names that were typed and counts",
        "rollout halt": "prints the name that was typed",
        "rollout plan": "prints counts",
        "rollout pause": "prints the name that was typed",
        "rollout resume": "prints the name that was typed",
        "rollout rollback": "prints the name that was typed and a number",
        "rollout judge": "prints the name that was typed and counts",
        "rollout serve": "speaks through the log",
        "director init": "prints public keys and the folder of the configuration",
        "director add": "prints public keys and the folder of the configuration",
        "director retire": "prints public keys and the name of a key",
        "director show": "prints public keys",
    },
    "edge-agent": {
        "run": "becomes the agent, which speaks through the log",
        "version": "prints our version",
        "enrol": "prints paths that were typed",
        "park replay": "prints counts",
    },
}


def commands(app: typer.Typer) -> set[str]:
    """Every command of an app by its words."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[str]:
        if isinstance(command, click.Group) or hasattr(command, "list_commands"):
            context = click.Context(command)
            for name in command.list_commands(context):
                yield from walk(command.resolve_command(context, [name])[1], (*words, name))
        else:
            yield " ".join(words)

    return set(walk(typer.main.get_command(app), ()))


@pytest.fixture
def core_toml(tmp_path: Path) -> Path:
    (tmp_path / "lake").mkdir()
    path = tmp_path / "core.toml"
    path.write_text(f'lake = "{tmp_path}/lake"\ncontracts = "{tmp_path}/contracts"\n')
    (tmp_path / "contracts").mkdir()
    return path


def contract_text(version: str = "1.0.0") -> str:
    """An ODCS document with hostile text wherever text is free."""
    quoted = json.dumps(_SHOWN)
    return f"""apiVersion: v3.1.0
kind: DataContract
id: urn:catchment:contract:probe
name: probe
version: {version}
status: active
description:
  purpose: {quoted}
team:
  name: {quoted}
schema:
- name: probe
  logicalType: object
  physicalType: stream
  properties:
  - name: label
    logicalType: string
    description: {quoted}
    customProperties:
    - property: unit
      value: {quoted}
    - property: allowedValues
      value: [{quoted}]
"""


POLICY = f"""id: driving
owner: {json.dumps(_SHOWN)}
description: {json.dumps(_SHOWN)}
streams: [vehicle_telemetry]
rules:
  - tag: fast
    when: speed_mps > 5
    description: {json.dumps(_SHOWN)}
"""


def _manifest() -> Manifest:
    split = SimpleNamespace(group=(TEXT,), fractions=(("train", 1.0),))
    arrays = hostile(ArrayPart, windows=None, pictures=None)
    files = {"shards": (), "indexes": (), "groups": None, "array_files": (), "arrays": arrays}
    return cast("Manifest", hostile(Manifest, split=split, format="catchment.training-set/1", has_payload=False, **files))


def _draft() -> Any:
    counts = (ClassCount("train", TEXT, 1),)
    return SimpleNamespace(
        rule=SimpleNamespace(fractions=((TEXT, 1.0),)),
        coverage=counts,
        sources=(Source(TEXT, 1, 1),),
        split_rows={TEXT: 1},
        neighbours=lambda _within_s: {TEXT: 1},
        left_out=(LeftOut(TEXT, 1),),
        notes=(TEXT,),
    )


def _survey() -> Survey:
    return cast("Survey", hostile(Survey))


def _preview() -> Any:
    row = {"device": TEXT, "epoch": 1, "seq": 2, "label": TEXT}
    return SimpleNamespace(
        policy=SimpleNamespace(label=TEXT),
        rows=2,
        tagged=1,
        before=True,
        tags=(TEXT, "b"),
        overlap=np.ones((2, 2), np.int64),
        counts={TEXT: PreviewTagCount(TEXT, 1, 1, 1, 1)},
        conflicts={(TEXT, "b"): Conflict(TEXT, TEXT, 1, row)},
        examples=lambda: [ExampleRow(row, (TEXT,))],
    )


def ledger(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(view, "books", lambda _root: SimpleNamespace(rows=[{"stream": TEXT, "received": 1}], is_balanced=True))
    return ["books"]


def streams(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(view, "streams", lambda _root: [{TEXT: TEXT, "columns": [TEXT]}])
    return ["streams"]


def status(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(status_cli, "survey", lambda *_args: _survey())
    to.setattr(status_cli, "assess", lambda *_args: hostile(HealthResult))
    return ["status"]


def gaps(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(status_cli, "find_gaps", lambda *_args: [hostile(Gap)])
    return ["gaps"]


def compact(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(maintenance_cli, "compact_all", lambda _root: [hostile(Compacted)])
    return ["compact"]


def _quarantine(folder: Path) -> None:
    words = {name: [_SHOWN] for name in ("id", "stage", "reason", "device", "content_type", "body_format")}
    rows = {**words, "stream": ["probe"], "run": [1], "epoch": [1], "seq": [1], "count": [1], "spans": ["[]"]}
    write_deltalake(folder / "lake/quarantine", pa.table(rows))


def quarantine_ls(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    _quarantine(folder)
    return ["quarantine", "ls"]


def quarantine_show(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    _quarantine(folder)
    return ["quarantine", "show", "probe"]


def _contract(folder: Path, version: str = "1.0.0") -> Path:
    path = folder / "contracts" / "probe.odcs.yaml"
    path.write_text(contract_text(version))
    return path


def contract_check(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    bad = folder / "contracts" / f"{MARK}\x1b[2J[red].odcs.yaml"
    bad.write_text(contract_text().replace("logicalType: string", f"logicalType: {json.dumps(_SHOWN)}"))
    return ["contract", "check", str(_contract(folder)), str(bad)]


def contract_ls(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    _contract(folder)
    return ["contract", "ls", "--contracts", str(folder / "contracts")]


def contract_show(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    return ["contract", "show", str(_contract(folder))]


def contract_diff(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    other = folder / "other.odcs.yaml"
    other.write_text(contract_text("2.0.0").replace(MARK, f"{MARK}2"))
    return ["contract", "diff", str(_contract(folder)), str(other)]


def contract_infer(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"label": _SHOWN, _SHOWN: 1}) + "\n" for _ in range(3)))
    return ["contract", "infer", str(rows), "--bounds"]


def contract_quality(folder: Path, to: pytest.MonkeyPatch) -> list[str]:
    _contract(folder)
    to.setattr(contract_cli, "keep_quality", lambda *_args: None)
    to.setattr(contract_cli, "read_quality", lambda *_args: None)
    to.setattr(contract_cli, "compare", lambda *_args: ([replace(hostile(contract_cli.Line), reading="drifted")], [1], [1]))
    return ["contract", "quality", "probe", "-c", str(folder / "core.toml")]


def _policy(folder: Path, text: str = POLICY) -> str:
    path = folder / "driving.yaml"
    path.write_text(text)
    return str(path)


def policy_check(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    return ["policy", "check", _policy(folder, POLICY.replace("tag: fast", f"tag: {json.dumps(_SHOWN)}"))]


def policy_test(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    return ["policy", "test", _policy(folder, POLICY.replace("tag: fast", f"tag: {json.dumps(_SHOWN)}"))]


def _applied(folder: Path) -> None:
    words = ["policy", "apply", _policy(folder), "--who", _SHOWN, "-m", _SHOWN, "-c", str(folder / "core.toml")]
    assert RUN.invoke(core_cli.app, words).exit_code == 0


def policy_active(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    _applied(folder)
    return ["policy", "active"]


def policy_history(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    _applied(folder)
    return ["policy", "history"]


def policy_diff(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    _applied(folder)
    (folder / "new.yaml").write_text(POLICY.replace(MARK, f"{MARK}2"))
    return ["policy", "diff", str(folder / "new.yaml")]


def policy_push(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    rule = SimpleNamespace(id=TEXT, action=TEXT)
    to.setattr(policy_lake_cli, "edge_rules", lambda *_args: {TEXT: [rule]})
    to.setattr(policy_lake_cli, "edge_inspectors", lambda *_args: {TEXT: [SimpleNamespace(use=TEXT)]})
    return ["policy", "push", "--dry-run"]


def policy_import(folder: Path, _: pytest.MonkeyPatch) -> list[str]:
    theirs = {"pol_id": _SHOWN, "pol_filter": f"x = '{_SHOWN}'", "action_id": _SHOWN, "action_params": {_SHOWN: _SHOWN}}
    (folder / "theirs.json").write_text(json.dumps([theirs]))
    return ["policy", "import", str(folder / "theirs.json"), "-s", "vehicle_telemetry", "-o", str(folder / "out")]


def policy_preview(folder: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(policy_cli, "made_preview", lambda *_args: _preview())
    to.setattr(policy_cli, "row_count", lambda *_args: 2)
    return ["policy", "preview", _policy(folder)]


def policy_explain(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    row = pa.table({"tags": [[TEXT.replace("\ud800", "")]], "tag_rules": [[TEXT]]})
    to.setattr(policy_cli, "sample_row", lambda *_args: row)
    to.setattr(policy_cli, "explain", lambda *_args: (hostile(Explained),))
    to.setattr(policy_cli, "StoredInspector", lambda *_args: SimpleNamespace(fill=lambda found: found))
    return ["policy", "explain", "car-1/1/1", "-s", "vehicle_telemetry"]


def policy_retag(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(lake_cli, "undo_retag", lambda *_args: hostile(Retagged, before=1, after=2))
    return ["policy", "retag", "vehicle_telemetry", "--undo"]


def set_build(folder: Path, to: pytest.MonkeyPatch) -> list[str]:
    def built(*_args: object, notice: Callable[[Any], None], **_more: object) -> Manifest:
        notice(_draft())
        return _manifest()

    to.setattr(set_cli, "build_version", built)
    return ["set", "build", "views", "--from", "x", "--lake", str(folder / "lake")]


def set_plan(folder: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(set_cli, "planned", lambda *_args: nullcontext(_draft()))
    return ["set", "plan", "views", "--from", "x", "--lake", str(folder / "lake")]


def set_ls(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(set_cli, "list_sets", lambda _root: [_manifest()])
    return ["set", "ls"]


def _one_set(to: pytest.MonkeyPatch) -> None:
    to.setattr(set_cli, "set_folder", lambda *_args: Path(_SHOWN))
    to.setattr(set_cli, "load_manifest", lambda _path: _manifest())


def set_show(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    _one_set(to)
    return ["set", "show", "views"]


def set_verify(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    _one_set(to)
    to.setattr(set_cli, "bring_set", lambda *_args: None)
    to.setattr(set_cli, "open_set", lambda *_args: SimpleNamespace(verify=lambda: 1))
    return ["set", "verify", "views"]


def label_import(folder: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(label_cli, "import_labels", lambda *_args, **_more: hostile(LabelImport))
    to.setattr(label_cli, "read_samples", lambda *_args, **_more: None)
    words = ["label", "import", str(folder), "--task", "t", "--from", "x", "--as", "csv"]
    return [*words, "--lake", str(folder / "lake")]


def _hostile_labels(to: pytest.MonkeyPatch) -> None:
    """A table of labels in which classes, authors and kinds are hostile."""
    when = datetime(2026, 1, 1, tzinfo=UTC)
    fixed = {
        "stream": "s",
        "device": "d",
        "epoch": 1,
        "made_at": when,
        "imported_at": when,
        "supersedes": [],
        "state": "submitted",
    }
    rows = [
        {**fixed, "label_id": str(at), "seq": at // 2, "kind": kind, "value": TEXT, "author": f"{TEXT}{at % 2}", "geometry": []}
        for kind in ("class", TEXT)
        for at in range(4)
    ]
    to.setattr(label_cli, "read_labels", lambda *_args: (pa.Table.from_pylist(rows, LABEL_SCHEMA), 1))


def label_agreement(folder: Path, to: pytest.MonkeyPatch) -> list[str]:
    _hostile_labels(to)
    return ["label", "agreement", "--task", "t", "--lake", str(folder / "lake")]


def label_resolve(folder: Path, to: pytest.MonkeyPatch) -> list[str]:
    _hostile_labels(to)
    return ["label", "resolve", "--task", "t", "--lake", str(folder / "lake")]


def _mined(to: pytest.MonkeyPatch, command: str) -> list[str]:
    rows = SimpleNamespace(stream=TEXT, version=1, schema=pa.schema([("a_embedding", pa.binary())]))
    site = SimpleNamespace(rows=rows, only=None, private=frozenset())
    to.setattr(mining_cli, "MiningSite", SimpleNamespace(open=lambda *_args: site))
    to.setattr(mining_cli, "EmbeddingIndex", lambda *_args: SimpleNamespace(sync=lambda: hostile(IndexState)))
    to.setattr(mining_cli, "KeyIndex", lambda *_args: SimpleNamespace(sync=lambda: None))
    to.setattr(mining_picks, command, lambda *_args, **_more: Picked(NO_PLACES, "score", ()))
    to.setattr(mining_picks, "describe", lambda *_args: ([Pick(TEXT, 1.0, {TEXT: TEXT})], pa.table({})))
    return [command, *(["car-1/1/1"] if command == "similar" else []), "--from", "x"]


def similar(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    return _mined(to, "similar")


def rare(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    return _mined(to, "rare")


def uncertain(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    return _mined(to, "uncertain")


def disagreeing(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    return _mined(to, "disagreeing")


def set_diff(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(set_care_cli, "set_folder", lambda *_args: Path(_SHOWN))
    to.setattr(set_care_cli, "load_manifest", lambda _path: _manifest())
    to.setattr(set_care_cli, "difference", lambda *_args: hostile(SetDifference))
    return ["set", "diff", "views/1", "views/2"]


def set_check(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(set_care_cli, "set_folder", lambda *_args: Path(_SHOWN))
    to.setattr(set_care_cli, "load_manifest", lambda _path: _manifest())
    to.setattr(set_care_cli, "find_leaks", lambda *_args, **_more: hostile(LeakReport))
    return ["set", "check", "views"]


def set_exports(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(set_care_cli, "set_folder", lambda *_args: Path(_SHOWN))
    to.setattr(set_care_cli, "load_manifest", lambda _path: _manifest())
    to.setattr(set_care_cli, "exports_of", lambda *_args: [hostile(ExportRecord, expires=None)])
    return ["set", "exports", "views"]


def _models(to: pytest.MonkeyPatch) -> None:
    model = SimpleNamespace(spec=_spec(), target=TEXT, size=1, digest=TEXT)
    shelf = SimpleNamespace(models=lambda: [model], model=lambda *_args: model)
    to.setattr(model_cli, "_repository", lambda *_args: shelf)


def _spec() -> Any:
    described = {"image": {TEXT: TEXT}, "rows": None, "task": {"type": TEXT}}
    return SimpleNamespace(name=TEXT, version=1, labels=(TEXT,), origin=None, **described)


def model_ls(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    _models(to)
    return ["model", "ls"]


def model_show(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    _models(to)
    return ["model", "show", "views"]


def model_evaluate(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    to.setattr(model_cli, "evaluate", lambda *_args: [SliceFigures(TEXT, TEXT, RightShare(1, 1.0, 0.5, 1.0), 0.5)])
    return ["model", "evaluate", "m", "--from", "views", "--task", "t"]


def rollout_status(_: Path, to: pytest.MonkeyPatch) -> list[str]:
    one = hostile(Rollout, name="views-1", halt_ratio=0.5, state="running", cohort="all")
    to.setattr(rollout_cli, "RolloutStore", lambda _folder: SimpleNamespace(all=lambda: [one]))
    tally = hostile(ModelTally, pairs=((TEXT[:64], TEXT[-64:], 1),), latency=())
    to.setattr(rollout_cli, "reported_models", lambda _core: {TEXT: (hostile(ModelReport, tallies=(tally,)),)})
    return ["rollout", "status"]


CORE: dict[str, Place] = {
    "books": ledger,
    "streams": streams,
    "status": status,
    "gaps": gaps,
    "compact": compact,
    "quarantine ls": quarantine_ls,
    "quarantine show": quarantine_show,
    "contract check": contract_check,
    "contract ls": contract_ls,
    "contract show": contract_show,
    "contract diff": contract_diff,
    "contract infer": contract_infer,
    "contract quality": contract_quality,
    "policy check": policy_check,
    "policy test": policy_test,
    "policy active": policy_active,
    "policy history": policy_history,
    "policy diff": policy_diff,
    "policy push": policy_push,
    "policy import": policy_import,
    "policy preview": policy_preview,
    "policy explain": policy_explain,
    "policy retag": policy_retag,
    "set build": set_build,
    "set plan": set_plan,
    "set ls": set_ls,
    "set show": set_show,
    "set verify": set_verify,
    "set diff": set_diff,
    "label import": label_import,
    "label agreement": label_agreement,
    "label resolve": label_resolve,
    "similar": similar,
    "rare": rare,
    "uncertain": uncertain,
    "disagreeing": disagreeing,
    "set check": set_check,
    "set exports": set_exports,
    "model ls": model_ls,
    "model show": model_show,
    "model evaluate": model_evaluate,
    "rollout status": rollout_status,
}
TAKES_CONFIG = {
    *("books", "streams", "status", "gaps", "compact", "quarantine ls", "quarantine show", "policy active", "policy history"),
    *("policy diff", "policy push", "policy preview", "policy explain", "policy retag", "set ls", "set show", "set verify"),
    *("set diff", "set check", "set exports", "similar", "rare", "uncertain", "disagreeing"),
    *("model ls", "model show", "model evaluate", "rollout status"),
}
TAKES_JSON = {
    *("books", "streams", "status", "gaps", "compact", "quarantine ls", "quarantine show", "contract quality"),
    *(
        "contract check",
        "contract ls",
        "contract diff",
        "policy check",
        "policy test",
        "set verify",
        "policy active",
        "policy history",
        "policy preview",
        "policy explain",
        "set ls",
        "set plan",
        "set diff",
        "set check",
        "set exports",
        "label import",
        "label agreement",
        "label resolve",
        "similar",
        "rare",
        "uncertain",
        "disagreeing",
        "model ls",
        "model show",
        "model evaluate",
        "rollout status",
    ),
}
# Their messages quote what they refuse, as Python writes a text.
QUOTES = {"policy check", "policy test"}
# Of what is driven here, what prints a document or lines and no table.
WITHOUT_JSON = {
    "contract show": "--json is tried with the other forms",
    "contract infer": "writes a document",
    "policy diff": "prints the lines that differ",
    "policy push": "prints a line a rule",
    "policy import": "prints a line a file",
    "policy retag": "prints a line a stream",
    "set build": "its manifest is tried with `set show`",
    "set show": "its manifest is not text alone, and is tried as a file",
}
# What these print of a hostile document is checked names and counts: that it comes through unharmed is what is tried.
SAYS_LITTLE = {"contract infer", "policy retag"}
AGENT: dict[str, Callable[[pytest.MonkeyPatch], list[str]]] = {
    "status": lambda to: _agent(to, status_reader, "read_status", hostile(status_reader.Status), "status"),
    "books": lambda to: _agent(to, status_reader, "read_ledger", hostile(status_reader.AgentBooks), "books"),
    "doctor": lambda to: _agent(to, examine, "diagnose", hostile(Diagnosis), "doctor"),
    "try": lambda to: _tried(to),  # noqa: PLW0108  # likewise
    "check": lambda to: _checked(to),  # noqa: PLW0108  # it is defined below
    "spool ls": lambda to: _spooled(to, "spool", "ls"),
    "park ls": lambda to: _spooled(to, "park", "ls"),
    "spool show": lambda to: _spooled(to, "spool", "show", "1"),
    "spool verify": lambda to: _spooled(to, "spool", "verify"),
}


def _agent(to: pytest.MonkeyPatch, module: Any, name: str, found: Any, *words: str) -> list[str]:
    to.setattr(module, name, lambda *_args, **_more: found)
    return list(words)


def _checked(to: pytest.MonkeyPatch) -> list[str]:
    from edge_agent import checking

    found = SimpleNamespace(report_lines=[], faults=[hostile(Fault)])
    to.setattr(checking, "check_file", lambda _path: found)
    return ["check"]


def _tried(to: pytest.MonkeyPatch) -> list[str]:
    from edge_agent.commands import try_sources
    from edge_agent.trial.result import Trial

    to.setattr(try_sources, "try_sources", lambda *_args: (hostile(Trial),))
    to.setattr(try_sources, "exit_code", lambda _found: 0)
    return ["try"]


def _spooled(to: pytest.MonkeyPatch, *words: str) -> list[str]:
    from edge_agent.commands import spool as spool_cli
    from edge_agent.spool import database

    to.setattr(spool_cli, "opened_spool", lambda _path: nullcontext((None, Path())))
    to.setattr(inspection, "entries", lambda *_args, **_more: [hostile(inspection.SpoolEntry)])
    to.setattr(inspection, "entry", lambda *_args: hostile(inspection.SpoolEntry))
    to.setattr(inspection, "count", lambda _db: {TEXT: 1})
    to.setattr(inspection, "verify", lambda *_args: hostile(inspection.SpoolCheck))

    def rotten(*_args: Any) -> None:
        raise database.RottenEnvelopeError(TEXT)

    to.setattr(database, "load", rotten)
    return list(words)


def invoke(app: typer.Typer, words: list[str], *, coloured: bool = False) -> str:
    env = {"COLUMNS": "200", "FORCE_COLOR": "1"} if coloured else {"COLUMNS": "200", "NO_COLOR": "1"}
    done = RUN.invoke(app, words, env=env, color=coloured)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_every_command_is_driven_here_or_has_its_reason() -> None:
    """Each new command is added to one of the two."""
    assert commands(core_cli.app) == set(CORE) | set(QUIET["catchment"])
    assert commands(agent_app) == set(AGENT) | set(QUIET["edge-agent"])
    assert all(len(reason) > 10 for reasons in QUIET.values() for reason in reasons.values())


@pytest.mark.parametrize("coloured", [False, True], ids=["kept", "on a terminal"])
@pytest.mark.parametrize("name", CORE)
def test_no_command_of_the_core_obeys_what_it_shows(
    core_toml: Path, monkeypatch: pytest.MonkeyPatch, name: str, coloured: bool
) -> None:
    words = CORE[name](core_toml.parent, monkeypatch)
    config = ["-c", str(core_toml)] if name in TAKES_CONFIG else []
    _check(invoke(core_cli.app, [*words, *config], coloured=coloured), name)


def test_every_command_that_prints_a_table_takes_json() -> None:
    assert set(CORE) - TAKES_JSON == set(WITHOUT_JSON)
    takes = {name for app in (core_cli.app, agent_app) for name in _with_json(app)}
    assert takes >= TAKES_JSON | {"contract show", "set build", "set show", "run", "vacuum"} | set(AGENT)


def _with_json(app: typer.Typer) -> Iterator[str]:
    for name in commands(app):
        command: Any = typer.main.get_command(app)
        for word in name.split():
            command = command.resolve_command(click.Context(command), [word])[1]
        if any("--json" in parameter.opts for parameter in command.params):
            yield name


@pytest.mark.parametrize("name", sorted(TAKES_JSON))
def test_json_of_the_core_is_faithful_and_holds_no_raw_control(
    core_toml: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    words = CORE[name](core_toml.parent, monkeypatch)
    config = ["-c", str(core_toml)] if name in TAKES_CONFIG else []
    output = invoke(core_cli.app, [*words, *config, "--json"])
    assert acts(output) == ""
    assert any(MARK in text and ("\x1b" in text or name in QUOTES) for text in _texts(json.loads(output)))


@pytest.mark.parametrize("form", ["table", "odcs", "json-schema", "arrow", "agent"])
def test_a_contract_is_shown_in_every_form_without_obeying_it(core_toml: Path, form: str) -> None:
    output = invoke(core_cli.app, ["contract", "show", str(_contract(core_toml.parent)), "--as", form])
    assert acts(output) == ""


@pytest.mark.parametrize("coloured", [False, True], ids=["kept", "on a terminal"])
@pytest.mark.parametrize("name", AGENT)
def test_no_command_of_the_agent_obeys_what_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, coloured: bool
) -> None:
    words = AGENT[name](monkeypatch)
    _check(invoke(agent_app, [*words, "-c", str(tmp_path / "agent.toml")], coloured=coloured), name)


@pytest.mark.parametrize("name", sorted(set(AGENT) - {"check"}))
def test_json_of_the_agent_is_faithful_and_holds_no_raw_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    output = invoke(agent_app, [*AGENT[name](monkeypatch), "-c", str(tmp_path / "agent.toml"), "--json"])
    assert acts(output) == ""
    assert TEXT in _texts(json.loads(output))


def _texts(found: Any) -> set[str]:
    if isinstance(found, dict):
        return set().union(*(_texts(each) for each in (*found.keys(), *found.values())), set())
    if isinstance(found, list):
        return set().union(*map(_texts, found), set())
    return {found} if isinstance(found, str) else set()


def _check(output: str, name: str) -> None:
    assert acts(output) == "", name
    assert not forged(output), name
    assert name in SAYS_LITTLE or MARK in output, name


def test_an_error_is_shown_by_both_commands_and_not_obeyed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RefusedError(TEXT)

    monkeypatch.setattr(core_program, "app", refuse)
    assert core_program.run_command() == 3
    from edge_agent.errors import AgentError, ConfigError

    for kind in (AgentError, ConfigError, OSError):

        def fail(kind: type[Exception] = kind) -> None:
            raise kind(TEXT)

        monkeypatch.setattr(agent_cli, "app", fail)
        with patch.object(agent_cli, "plain_tracebacks"), pytest.raises(SystemExit):
            agent_cli.main()
    output = capsys.readouterr().err
    assert output.count(MARK) == 4
    assert acts(output) == ""
    assert not forged(output)


def pages(folder: Path) -> dict[str, str]:
    """Every page that is made for people, of hostile text."""
    rule = {"group": (TEXT,), "fractions": ((TEXT, 1.0),), "stratify": (TEXT,), "block_s": 1.0, "gap_s": 1.0, "method": TEXT}
    manifest = msgspec.structs.replace(_manifest(), split=SimpleNamespace(**rule))
    facts = CardFacts(LeakReport((Leak(TEXT, TEXT, 1, 1.0),), (TEXT,)), TEXT, None, hostile(LabelAgreement))
    row = {"device": TEXT, "epoch": 1, "seq": 2, TEXT: TEXT}
    Sheet(lake_at(folder), TEXT, [ExampleRow(row, (TEXT,))]).write(folder / "sheet.html")
    shown = SimpleNamespace(manifest=manifest, split=TEXT, _count=1)
    return {
        "card": render_card(manifest, folder, facts),
        "contact sheet": (folder / "sheet.html").read_text(),
        "set in a notebook": TrainingSet._repr_html_(shown),  # type: ignore[arg-type]
        "policy in a notebook": notebook.Policy._repr_html_(_policy_shown()),
        "lake in a notebook": LakeView._repr_html_(SimpleNamespace(_lake=SimpleNamespace(root=TEXT), streams=lambda: [TEXT])),  # type: ignore[arg-type]
        "finding in a notebook": notebook.Found(_preview())._repr_html_(),
    }


def _policy_shown() -> Any:
    rule = SimpleNamespace(tag=TEXT, when=TEXT, description=TEXT)
    return SimpleNamespace(
        document=SimpleNamespace(label=TEXT, streams=(TEXT,), rules=(rule,)), check=lambda: [TEXT], id=TEXT, name=TEXT
    )


def test_what_a_notebook_or_a_shell_shows_of_an_object_acts_on_nothing() -> None:
    shown = SimpleNamespace(manifest=_manifest(), split=TEXT, _count=1)
    lake = SimpleNamespace(_lake=SimpleNamespace(root=TEXT), streams=lambda: [TEXT])
    texts = (
        notebook.Policy.__repr__(_policy_shown()),
        repr(notebook.Found(_preview())),
        TrainingSet.__repr__(shown),  # type: ignore[arg-type]
        LakeView.__repr__(lake),  # type: ignore[arg-type]
    )
    for text in texts:
        assert acts(text) == ""
        assert MARK in text


def test_every_module_that_makes_a_page_is_tried(repository_root: Path) -> None:
    making = re.compile(r"<!doctype|<table|<html|_repr_html_")
    found = {
        str(path.relative_to(repository_root))
        for package in ("catchment", "edge_agent", "pipelines", "schemas")
        for path in (repository_root / package).rglob("*.py")
        if making.search(path.read_text())
    }
    ours = {"pipelines/training/card.py", "pipelines/training/open.py", "pipelines/policy/contact_sheet.py"}
    ours |= {"pipelines/policy/notebook.py", "pipelines/open_lake.py", "pipelines/training/card_charts.py"}
    ours |= {"pipelines/training/card_words.py"}
    assert found - {"pipelines/lake/files.py"} == ours  # the first only speaks of <table>


def test_nobody_prints_but_through_the_runtime(repository_root: Path) -> None:
    """`say`, `say_json`, `PlainConsole`, `PlainTable` make text from outside plain; other ways to print would not."""
    other = re.compile(
        r"\btyper\.s?echo|\btyper\.secho|\bclick\.s?echo|(?<![\w.\"'(])print\(|\bsys\.(stdout|stderr)\.write\(|\bhtml\.escape"
        r"|from rich\.(console|table|tree|markup|panel|pretty)|import rich|from rich import (print|inspect|get_console)"
    )
    allowed = {
        "catchment/runtime/output.py",
        "catchment/runtime/terminal.py",
        "catchment/runtime/plain.py",
        "pipelines/demo/devices.py",  # simulated devices that print samples for the agent's `exec` source
        "pipelines/commands/demo.py",  # a line of Python that a reader may try
        "pipelines/demo/view.py",  # rich's Group, which prints nothing by itself
    }
    strays = [
        f"{path.relative_to(repository_root)}:{number}"
        for package in ("catchment", "edge_agent", "pipelines", "schemas")
        for path in sorted((repository_root / package).rglob("*.py"))
        if str(path.relative_to(repository_root)) not in allowed
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if other.search(line)
    ]
    assert strays == [], "print by catchment.runtime.output or catchment.runtime.terminal"


def test_no_page_holds_markup_or_acting_characters_of_others(tmp_path: Path) -> None:
    for name, page in pages(tmp_path).items():
        assert acts(page) == "", name
        assert MARK in page, name
        assert "<script" not in page, name
        assert not re.search(r"<[^>]*HOSTILE", page), name


def test_metrics_hold_no_acting_character() -> None:
    from catchment.runtime.metrics_text import MetricsPage
    from pipelines.config import AlarmConfig

    figures = MetricsPage()
    figures.add("refused", TEXT, [({"reason": TEXT}, 1)])
    assert acts(figures.text()) == ""

    page = exposition(_survey(), AlarmConfig())
    assert acts(page) == ""
    assert MARK in page
