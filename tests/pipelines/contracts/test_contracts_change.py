"""Comparing contracts, and drafting them from files."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import polars as pl
import pytest
from typer.testing import CliRunner

from pipelines.commands.contract import contract_app
from pipelines.contracts.diff import diff_contracts
from pipelines.contracts.infer import infer_contract
from pipelines.contracts.odcs import load_odcs, to_odcs
from pipelines.errors import ConfigError
from schemas.contract import Column, ColumnType, Contract, PayloadSpec, PiiClass, QualityRule
from tests.fakes.run_core import RunCore

SPEED = Column("speed", ColumnType.FLOAT64, unit="m/s", minimum=0, maximum=90)
LABEL = Column("label", ColumnType.STRING, allowed=("a", "b"), max_length=10)
PLACE = Column("place", ColumnType.STRUCT, fields=(Column("lat", ColumnType.FLOAT64),))
PAYLOAD = PayloadSpec(("image/png", "image/jpeg"), 1000)
RULE = QualityRule("q", "speed > 0")
OLD = Contract("probe", "1.4.2", (SPEED, LABEL, PLACE), payload=PAYLOAD, quality=(RULE,), retention_days=10)


def with_column(old: Column, **changes: object) -> Contract:
    columns = tuple(msgspec.structs.replace(each, **changes) if each is old else each for each in OLD.columns)
    return msgspec.structs.replace(OLD, columns=columns)


BREAKS = {
    "removed": msgspec.structs.replace(OLD, columns=(SPEED, PLACE)),
    "required but new": msgspec.structs.replace(OLD, columns=(*OLD.columns, Column("x", ColumnType.BOOL, required=True))),
    "type": with_column(SPEED, type=ColumnType.FLOAT32),
    "unit": with_column(SPEED, unit="km/h"),
    "required": with_column(SPEED, required=True),
    "maximum lower": with_column(SPEED, maximum=80),
    "minimum higher": with_column(SPEED, minimum=1),
    "value gone": with_column(LABEL, allowed=("a",)),
    "values listed": with_column(PLACE, fields=(Column("lat", ColumnType.FLOAT64, maximum=1),)),
    "shorter": with_column(LABEL, max_length=9),
    "field gone": with_column(PLACE, fields=(Column("lon", ColumnType.FLOAT64),)),
    "payload gone": msgspec.structs.replace(OLD, payload=None),
    "media type gone": msgspec.structs.replace(OLD, payload=PayloadSpec(("image/png",), 1000)),
    "smaller payload": msgspec.structs.replace(OLD, payload=PayloadSpec(PAYLOAD.media_types, 999)),
    "rule changed": msgspec.structs.replace(OLD, quality=(QualityRule("q", "speed > 1"),)),
    "rule added": msgspec.structs.replace(OLD, quality=(RULE, QualityRule("r", "speed > 1"))),
    "other stream": msgspec.structs.replace(OLD, name="other"),
}
FITS = {
    "column added": (msgspec.structs.replace(OLD, columns=(*OLD.columns, Column("x", ColumnType.BOOL))), "1.5.0"),
    "wider": (with_column(SPEED, minimum=None, maximum=100), "1.4.3"),
    "value more": (with_column(LABEL, allowed=("a", "b", "c"), max_length=None), "1.4.3"),
    "any value": (with_column(LABEL, allowed=()), "1.4.3"),
    "field added": (with_column(PLACE, fields=(*PLACE.fields, Column("lon", ColumnType.FLOAT64))), "1.5.0"),
    "rule gone": (msgspec.structs.replace(OLD, quality=()), "1.4.3"),
    "larger payload": (msgspec.structs.replace(OLD, payload=PayloadSpec((*PAYLOAD.media_types, "x/y"), 2000)), "1.4.3"),
    "told": (msgspec.structs.replace(with_column(SPEED, pii=PiiClass.LOCATION), retention_days=5, owner="b"), "1.4.3"),
    "nothing": (OLD, "1.4.2"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_change_that_disturbs_a_device_or_reader_is_reported_with_the_reason(name: str) -> None:
    found = diff_contracts(OLD, BREAKS[name])
    assert not found.is_compatible
    assert any(change.why for change in found.changes)
    assert found.version_wanted == "2.0.0"
    assert not found.is_version_right


@pytest.mark.parametrize("name", FITS)
def test_a_change_that_disturbs_nobody_is_compatible_and_asks_for_a_small_step(name: str) -> None:
    new, version = FITS[name]
    found = diff_contracts(OLD, new)
    assert found.is_compatible, found.changes
    assert bool(found.changes) == (name != "nothing")
    assert found.version_wanted == version


def test_the_command_says_what_breaks_and_exits_with_1(tmp_path: Path, run_core: RunCore) -> None:
    old, new = tmp_path / "old.odcs.yaml", tmp_path / "new.odcs.yaml"
    old.write_text(to_odcs(OLD))
    new.write_text(to_odcs(msgspec.structs.replace(BREAKS["unit"], version="1.5.0")))
    result = CliRunner().invoke(contract_app, ["diff", str(old), str(new)])
    assert (result.exit_code, "speed: unit m/s -> km/h" in result.output, "2.0.0 or higher" in result.output) == (1, True, True)
    new.write_text(to_odcs(msgspec.structs.replace(FITS["wider"][0], version="1.5.0")))
    assert CliRunner().invoke(contract_app, ["diff", str(old), str(new)]).exit_code == 0
    assert run_core("contract", "diff", "slide", "slide@9.9.9").code == 3


FRAME = pl.DataFrame({
    "eventTime": [datetime(2026, 1, 1, tzinfo=UTC)] * 40,
    "Speed (m/s)": [float(n) for n in range(40)],
    "gear": [n % 5 for n in range(40)],
    "mode": ["eco", "sport"] * 20,
    "latitude": [None, *[48.0] * 39],
    "is_on": [True, False] * 20,
    "device": ["x"] * 40,
})  # fmt: skip


def draft(path: Path) -> dict[str, Column]:
    return {column.name: column for column in infer_contract(path).columns}


def test_a_csv_file_gives_types_names_and_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "Test drive.csv"
    FRAME.write_csv(path)
    contract = infer_contract(path)
    columns = {column.name: column for column in contract.columns}
    assert (contract.name, contract.version) == ("test_drive", "0.1.0")
    assert list(columns) == ["speed_m_s", "gear", "mode", "latitude", "is_on", "device_value"]  # event_time is in every row
    assert [column.type for column in contract.columns] == ["float64", "int64", "string", "float64", "bool", "string"]
    assert (columns["speed_m_s"].description, columns["speed_m_s"].maximum) == ("'Speed (m/s)' in the file; seen 0 to 39", None)
    assert columns["mode"].description == "seen eco, sport"
    assert (columns["latitude"].required, columns["latitude"].pii) == (False, PiiClass.LOCATION)
    bounded = {column.name: column for column in infer_contract(path, "x", bounds=True).columns}
    assert (bounded["speed_m_s"].maximum, bounded["mode"].allowed) == (39, ("eco", "sport"))


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".arrow", ".csv.gz", ".jsonl.gz"])
def test_other_files_give_the_same_columns(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"drive{suffix}"
    packed: dict[str, Callable[[], str]] = {".csv.gz": FRAME.write_csv, ".jsonl.gz": FRAME.write_ndjson}
    plain: dict[str, Callable[[Path], object]] = {
        ".parquet": FRAME.write_parquet, ".jsonl": FRAME.write_ndjson, ".arrow": FRAME.write_ipc,
    }  # fmt: skip
    if suffix in packed:
        path.write_bytes(gzip.compress(packed[suffix]().encode()))
    else:
        plain[suffix](path)
    assert list(draft(path)) == ["speed_m_s", "gear", "mode", "latitude", "is_on", "device_value"]


def test_nested_parquet_gives_lists_vectors_and_structs(tmp_path: Path) -> None:
    path = tmp_path / "nested.parquet"
    values = {"labels": [["a"]], "v": [[1.0, 2.0]], "place": [{"lat": 1.0, "n": 1}]}
    pl.DataFrame(values, schema_overrides={"v": pl.Array(pl.Float32, 2)}).write_parquet(path)
    found = draft(path)
    assert found["labels"].type is ColumnType.LIST_STRING
    assert (found["v"].type, found["v"].length) == (ColumnType.VECTOR_FLOAT32, 2)
    assert [field.name for field in found["place"].fields] == ["lat", "n"]


ZEEK = """#separator \\x09
#set_separator\t,
#empty_field\t(empty)
#unset_field\t-
#path\tconn
#fields\tts\tuid\tid.orig_h\tid.orig_p\tduration\tlocal_orig\ttunnel_parents
#types\ttime\tstring\taddr\tport\tinterval\tbool\tset[string]
1700000000.123456\tC1\t10.0.0.1\t443\t-\tT\t(empty)
1700000001.5\tC2\t10.0.0.2\t80\t1.5\tF\ta,b
#close\t2026-01-01
"""


def test_a_zeek_log_gives_the_types_it_names(tmp_path: Path) -> None:
    path = tmp_path / "conn.log"
    path.write_text(ZEEK)
    found = draft(path)
    assert {name: str(column.type) for name, column in found.items()} == {
        "ts": "timestamp", "uid": "string", "id_orig_h": "string", "id_orig_p": "int32", "duration": "float64",
        "local_orig": "bool", "tunnel_parents": "list<string>",
    }  # fmt: skip
    assert (found["duration"].required, found["id_orig_h"].pii) == (False, PiiClass.DEVICE)


def test_the_labelled_logs_of_the_shared_data_give_a_contract_that_is_accepted(shared_data: Path, tmp_path: Path) -> None:
    path = next((shared_data / "network").rglob("conn.log.labeled.gz"))
    result = CliRunner().invoke(contract_app, ["infer", str(path), "--name", "flows"])
    assert result.exit_code == 0
    (tmp_path / "x.odcs.yaml").write_text(result.output)
    assert load_odcs(tmp_path / "x.odcs.yaml").column("id_resp_p") is not None


@pytest.mark.parametrize(
    ("name", "body"), [("x.csv", b""), ("x.parquet", b"no"), ("x.jsonl", b"{"), ("x.log", b"#separator \\x09\n")]
)
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str, body: bytes) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(ConfigError, match=name):
        infer_contract(tmp_path / name)


def test_a_draft_reads_what_other_programs_write(tmp_path: Path) -> None:
    (tmp_path / "excel.csv").write_text(
        "Zeit;Temp (°C);Art.-Nr.;a.b\n2024-01-01 00:00:00;1,5;00123;1\n2024-01-01 00:01:00;2,5;00124;2\n"
    )
    (tmp_path / "list.json").write_text(
        json.dumps([{"at": "2024-01-01T00:00:00Z", "n": 2**70}, {"at": "2024-01-01T00:00:00+02:00"}])
    )
    (tmp_path / "deep.jsonl").write_text('{"p": {"x": 1, "q": {"y": 2}}, "l": [{"a": 1}]}\n')
    found = draft(tmp_path / "excel.csv")
    assert [column.type for column in found.values()] == [
        ColumnType.TIMESTAMP, ColumnType.FLOAT64, ColumnType.STRING, ColumnType.INT64,
    ]  # fmt: skip
    assert found["temp_c"].description == "'Temp (°C)' in the file; seen 1.5 to 2.5"
    found = draft(tmp_path / "list.json")
    assert [column.type for column in found.values()] == [ColumnType.TIMESTAMP, ColumnType.FLOAT64]
    assert found["n"].description.endswith("beyond int64")
    found = draft(tmp_path / "deep.jsonl")
    assert [str(field.type) for field in found["p"].fields] == ["int64", "string"]
    assert (found["p"].description, found["l"].type) == ("q: objects, kept as JSON text", ColumnType.LIST_STRING)
    assert "each item is kept as JSON text" in found["l"].description
