"""Contracts in languages that others read: ODCS by the standard's own schema, JSON Schema, Arrow."""

import json
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft201909Validator, Draft202012Validator

from pipelines.contracts.arrow import json_schema
from pipelines.contracts.check import reasons
from pipelines.contracts.json_rows import rows_from_json
from pipelines.contracts.odcs import load_odcs, to_odcs
from schemas.contract import NAMES, Column, ColumnType, Contract, PayloadSpec, QualityRule, builtin_contract
from scripts import contract_schemas

ROOT = Path(__file__).parents[3]
STANDARD = Draft201909Validator(json.loads(files("open_data_contract_standard").joinpath("schema.json").read_text()))
DOCUMENTS = [*(ROOT / "schemas" / "contracts").glob("*.odcs.yaml"), *(ROOT / "deploy" / "contracts").glob("*.odcs.yaml")]
RICH = Contract(
    "rich",
    "1.2.3",
    (
        Column("label", ColumnType.STRING, allowed=("a", "b"), required=True),
        Column("speed", ColumnType.FLOAT64, unit="m/s", minimum=0, maximum=90.5, unique=True),
        Column("count", ColumnType.INT32, maximum=10),
        Column("labels", ColumnType.LIST_STRING, max_length=2),
        Column("embedding", ColumnType.VECTOR_FLOAT32, length=2),
        Column("seen_at", ColumnType.TIMESTAMP, zone="Europe/Berlin"),
        Column("place", ColumnType.STRUCT, fields=(Column("lat", ColumnType.FLOAT64, required=True, minimum=-90),)),
        Column("raw", ColumnType.BINARY),
    ),
    quality=(QualityRule("some", "speed > 0 OR label = 'a'"),),
    retention_days=30,
    owner="vehicles",
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_document_is_valid_by_the_standards_json_schema(path: Path) -> None:
    assert [error.message for error in STANDARD.iter_errors(yaml.safe_load(path.read_text()))] == []


@pytest.mark.parametrize("contract", [*map(builtin_contract, NAMES), RICH], ids=lambda contract: contract.name)
def test_every_written_document_is_valid_by_the_standards_json_schema_and_reads_back(contract: Contract, tmp_path: Path) -> None:
    text = to_odcs(contract)
    assert [error.message for error in STANDARD.iter_errors(yaml.safe_load(text))] == []
    path = tmp_path / "x.odcs.yaml"
    path.write_text(text)
    assert load_odcs(path) == contract


def test_the_generated_schemas_in_docs_are_those_of_the_contracts() -> None:
    found = {path.name: path.read_text() for path in (ROOT / "docs" / "contracts").iterdir()}
    assert found == contract_schemas.written(), "run: python scripts/contract_schemas.py"


@pytest.mark.parametrize("contract", [*map(builtin_contract, NAMES), RICH], ids=lambda contract: contract.name)
def test_the_json_schema_is_one(contract: Contract) -> None:
    Draft202012Validator.check_schema(json_schema(contract))


NUMBERS = st.sampled_from([0, -1, 3, 12, 91, 2**31, 1.5, -90.5, None, "1", True])
CELLS = {
    "label": st.sampled_from(["a", "b", "c", None, 1]),
    "speed": NUMBERS,
    "count": NUMBERS,
    "labels": st.one_of(st.none(), st.lists(st.sampled_from(["x", None, 1]), max_size=3), st.just("x")),
    "embedding": st.one_of(st.none(), st.lists(NUMBERS, min_size=1, max_size=3)),
    "seen_at": st.sampled_from(["2026-01-01T00:00:00Z", None, 7]),
    "place": st.one_of(st.none(), st.fixed_dictionaries({}, optional={"lat": NUMBERS, "x": st.just(1)})),
    "unknown": st.just(1),
}


@given(st.fixed_dictionaries({}, optional=CELLS))
@settings(max_examples=400, deadline=None)
def test_a_row_is_valid_by_the_json_schema_exactly_if_the_core_accepts_it(row: dict[str, Any]) -> None:
    contract = Contract(RICH.name, RICH.version, RICH.columns)
    row = {"event_time": "2026-01-01T00:00:00Z", **row}
    read = rows_from_json(json.dumps(row).encode(), contract, int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6))
    found = [each.reason for each in read.rejected] or reasons(read.batch, contract).drop_null().to_pylist()
    errors = [error.message for error in Draft202012Validator(json_schema(contract)).iter_errors(row)]
    assert bool(found) == bool(errors), (row, found, errors)


def test_a_required_payload_is_requested() -> None:
    schema = json_schema(Contract("photo", "1.0.0", (), payload=PayloadSpec(("image/png",), 10)))
    validator = Draft202012Validator(schema)
    assert not validator.is_valid({})
    assert validator.is_valid({"payload_b64": "AA=="})


def test_a_contract_is_compiled_for_an_agent_by_the_command_that_the_pages_name(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from edge_agent.config import SourceConfig, load_contract
    from pipelines.commands.contract import contract_app

    document = ROOT / "deploy" / "contracts" / "cold_room.odcs.yaml"
    done = CliRunner().invoke(contract_app, ["show", str(document), "--as", "agent"])
    assert done.exit_code == 0
    path = tmp_path / "cold_room.json"
    path.write_text(done.stdout)
    contract = load_odcs(document)
    assert load_contract(SourceConfig(kind="exec", stream=contract.name, contract=path)) == contract
