"""ODCS documents, the registry and the Arrow schemas."""

from pathlib import Path

import pyarrow as pa
import pytest
from open_data_contract_standard.model import OpenDataContractStandard
from typer.testing import CliRunner

from pipelines.commands.contract import contract_app
from pipelines.contracts.arrow import row_schema, table_schema
from pipelines.contracts.odcs import load_odcs, to_odcs
from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError
from schemas.contract import (
    LIST_TYPES,
    NAMES,
    STRUCT_TYPES,
    VECTOR_TYPES,
    Column,
    ColumnType,
    Contract,
    QualityRule,
    builtin_contract,
)
from tests.fakes.run_core import RunCore

ROOT = Path(__file__).parents[3]
AUTHORED = ROOT / "schemas" / "contracts"
EXAMPLE = ROOT / "deploy" / "contracts" / "cold_room.odcs.yaml"


@pytest.mark.parametrize("name", NAMES)
def test_the_authored_yaml_and_the_compiled_json_say_the_same(name: str) -> None:
    assert load_odcs(AUTHORED / f"{name}.odcs.yaml") == builtin_contract(name)


def test_every_compiled_contract_has_its_yaml_and_no_yaml_is_left_over() -> None:
    assert sorted(path.name.split(".")[0] for path in AUTHORED.glob("*.odcs.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("path", [*(AUTHORED / f"{name}.odcs.yaml" for name in NAMES), EXAMPLE], ids=lambda path: path.name)
def test_the_documents_are_valid_by_the_standards_own_package(path: Path) -> None:
    document = OpenDataContractStandard.from_file(str(path))
    assert document.kind == "DataContract"


@pytest.mark.parametrize("name", NAMES)
def test_writing_and_reading_gives_an_equal_contract(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.odcs.yaml"
    path.write_text(to_odcs(builtin_contract(name)))
    assert load_odcs(path) == builtin_contract(name)


def a_column(type_: ColumnType) -> Column:
    name = f"c_{type_}".translate(str.maketrans("<", "_", ">"))
    inner = (Column("x", ColumnType.FLOAT32, unit="m"), Column("labels", ColumnType.LIST_STRING))
    return Column(
        name,
        type_,
        length=4 if type_ in VECTOR_TYPES else None,
        fields=inner if type_ in STRUCT_TYPES else (),
        zone="Europe/Berlin" if type_ is ColumnType.TIMESTAMP else "",
        max_length=9 if type_ in LIST_TYPES else None,
    )


def test_every_type_and_a_quality_rule_survive_writing_and_reading(tmp_path: Path) -> None:
    columns = tuple(map(a_column, ColumnType))
    contract = Contract("all_types", "2.1.0", columns, quality=(QualityRule("q", "c_int64 > 3"),), retention_days=3)
    path = tmp_path / "x.odcs.yaml"
    path.write_text(to_odcs(contract))
    assert load_odcs(path) == contract
    assert OpenDataContractStandard.from_file(str(path)).schema_


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("logicalType: number", "logicalType: array", "is not in the subset"),
        ("kind: DataContract", "kind: Other", "needs kind: DataContract"),
        ("minimum: -80, maximum: 60", "minimum: -80, pattern: x", "'pattern' is not in the subset"),
        ("    required: true", "    primaryKey: true", "'primaryKey' is not in the subset"),
        ("engine: catchment", "engine: soda", "a quality rule must be type: custom"),
        ("abs(temperature_c - setpoint_c) < 40", "abs(temprature_c) < 40", "did you mean 'temperature_c'?"),
        ("name: temperature_c", "name: payload", "not one of the standard columns"),
        ("unit: d}", "unit: fortnight}", "retention is a whole number of days"),
        ("version: 1.0.0", "version: one", "must be major.minor.patch"),
        ("value: text}", "value: secret}", "Invalid enum value 'secret'"),
        ("name: setpoint_c", "name: temperature_c", "used twice"),
    ],
)
def test_what_is_outside_the_subset_is_refused_with_file_and_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "x.odcs.yaml"
    path.write_text(EXAMPLE.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_odcs(path)
    assert str(caught.value).startswith(f"{path}:")
    assert words in str(caught.value)


def test_the_registry_gives_the_newest_version_or_the_one_requested(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    for version in ("1.0.0", "1.2.0", "1.10.0"):
        (tmp_path / f"{version}.odcs.yaml").write_text(text.replace("version: 1.0.0", f"version: {version}"))
    found = ContractSet.load(str(tmp_path))
    newest = found.get("cold_room", None)
    older = found.get("cold_room", "1.2.0")
    assert newest is not None
    assert older is not None
    assert (newest.version, older.version) == ("1.10.0", "1.2.0")
    assert found.get("cold_room", "3.0.0") is None
    assert found.get("nothing", None) is None
    assert {each.name for each in found.all()} == {*NAMES, "cold_room"}


def test_two_documents_of_one_name_and_version_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.odcs.yaml").write_text(EXAMPLE.read_text())
    with pytest.raises(ConfigError, match="raise the version"):
        ContractSet.load(str(tmp_path))


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        ContractSet.load("/nonexistent")


def test_a_batch_starts_with_event_time_and_ends_with_the_payload() -> None:
    names = row_schema(builtin_contract("slide")).names
    assert (names[0], names[-2:]) == ("event_time", ["payload", "payload_sha256"])
    assert "payload" not in row_schema(builtin_contract("network_flow")).names


def test_a_lake_row_is_narrow_and_in_order() -> None:
    schema = table_schema(builtin_contract("camera_frame"))
    assert schema.names[:7] == ["device", "epoch", "seq", "event_time", "received_at", "run", "contract_version"]
    assert schema.names[-7:] == [
        "tags", "tag_rules", "payload_shard", "payload_row", "payload_offset", "payload_length", "payload_sha256",
    ]  # fmt: skip
    assert schema.field("tags").type == pa.list_(pa.string())
    assert table_schema(builtin_contract("network_flow")).names[-1] == "tag_rules"


def test_the_commands_check_show_and_list(tmp_path: Path, run_core: RunCore) -> None:
    run = CliRunner()
    assert run.invoke(contract_app, ["check", str(EXAMPLE)]).exit_code == 0
    bad = tmp_path / "x.odcs.yaml"
    bad.write_text("a: 1\n")
    refused = run.invoke(contract_app, ["check", str(bad)])
    assert (refused.exit_code, "kind: DataContract" in refused.output) == (1, True)
    assert "speed_mps" in run.invoke(contract_app, ["show", "vehicle_telemetry"]).output
    assert run_core("contract", "show", "nothing").code == 3
    assert "network_flow" in run.invoke(contract_app, ["ls"]).output
