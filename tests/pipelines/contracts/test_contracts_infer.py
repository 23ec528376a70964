"""A drafted contract is filled by the agent from the file it was drafted from: no row of it is refused by the core."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipelines.commands.contract import contract_app
from pipelines.contracts.arrow import json_schema
from pipelines.contracts.infer import draft_contract
from pipelines.errors import ConfigError
from schemas.contract import Column, ColumnType, Contract, decode_contract, encode_contract
from schemas.errors import ContractError
from schemas.source_names import header_names
from tests.fakes.draft_loop import Admitted, drafted, judged

LOGS = [
    ("network/ctu_zeek/008-zeek-mixed/conn.log.labeled.gz", 5_663),
    ("network/ctu_zeek/010-zeek-mixed/conn.log.labeled.gz", 5_347),
    ("network/wrccdc_zeek/notice.log.gz", 207), ("network/wrccdc_zeek/dns.log.gz", 53_615),
    ("network/wrccdc_zeek/syslog.log.gz", 2_378), ("network/apt29_zeek/day1_combined_zeek.log.gz", 2_140),
    ("vehicle/comma2k19/telemetry.csv", 1_200), ("vehicle/gopro_max-heromode/gps5.csv", 191), ("factory/bsdata/index.csv", 132),
]  # fmt: skip


def through(path: Path, **options: Any) -> Admitted:
    return judged(path, drafted(path, path.parent), **options)


@pytest.mark.parametrize(("name", "rows"), LOGS)
def test_no_row_of_a_real_log_is_refused_under_the_contract_drafted_from_it(
    shared_data: Path, tmp_path: Path, name: str, rows: int
) -> None:
    path = shared_data / name
    found = judged(path, drafted(path, tmp_path))
    assert (found.count, found.refused, found.rejected, found.left_out) == (rows, {}, {}, ())


def test_names_as_loggers_write_them_are_mapped_without_a_word_in_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "drive.csv"
    path.write_text(
        "Time, rpm ,GPS.Lat,Speed (km/h),Größe,温度,a b,a.b,a_b,1st,device,\n"
        "2024-05-01T00:00:00Z,1800,52.5,50.5,1,2,3,4,5,6,d,x\n2024-05-01T00:00:01Z,1900,52.6,51.5,1,2,3,4,5,6,d,y\n"
    )
    found = through(path)
    assert (found.count, found.refused, found.rejected, found.left_out, found.unfilled) == (2, {}, {}, (), ())
    assert [column.name for column in found.contract.columns] == [
        "time", "rpm", "gps_lat", "speed_km_h", "grosse", "column", "a_b", "a_b_2", "a_b_3", "c_1st", "device_value", "column_12",
    ]  # fmt: skip
    assert [found.column(name)[0] for name in ("speed_km_h", "column", "a_b", "a_b_2", "a_b_3", "column_12")] == [
        50.5,
        2,
        3,
        4,
        5,
        "x",
    ]
    assert found.column("event_time") == found.column("time")


def test_a_column_is_found_by_its_source_name_before_another_that_is_called_like_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,b,a\n1714521600,1,2\n")
    swapped = Contract(
        "x", "1.0.0", (Column("a", ColumnType.INT64, source_name="b"), Column("b", ColumnType.INT64, source_name="a"))
    )
    found = judged(path, swapped)
    assert (found.column("a"), found.column("b")) == ([1], [2])
    renamed = judged(path, swapped, rename={"b": "b"})
    assert (renamed.column("a"), renamed.column("b")) == ([2], [1])
    path.write_text("time,ID.orig,id_orig\n1714521600,1,2\n")
    one = Contract("x", "1.0.0", (Column("id_orig", ColumnType.INT64, source_name="ID.orig"),))
    assert judged(path, one).column("id_orig") == [1]
    path.write_text("time,id_orig\n1714521600,2\n")
    assert judged(path, one).column("id_orig") == [2]


def test_lists_objects_and_what_lies_deeper_arrive_as_drafted(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    rows = [
        {"ts": "2024-05-01T00:00:00Z", "gps": {"Lat": 52.5, "fix.type": "3d", "raw": {"x": 1}}, "labels": ["a", None],
         "n": [1, 2], "boxes": [{"x": 1}], "any": 1, "grid": [[1, 2], [3]], "empty": {}},
        {"ts": "2024-05-01T00:00:01Z", "gps": None, "labels": [], "n": None, "boxes": [], "any": "x", "grid": [], "empty": {}},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = through(path)
    assert (found.count, found.refused, found.rejected, found.left_out) == (2, {}, {}, ())
    assert found.column("gps") == [{"lat": 52.5, "fix_type": "3d", "raw": '{"x":1}'}, None]
    assert (found.column("labels"), found.column("n")) == ([["a", None], []], [[1, 2], None])
    assert (found.column("boxes"), found.column("any")) == ([['{"x":1}'], []], ["1", "x"])
    assert (found.column("grid"), found.column("empty")) == ([["[1,2]", "[3]"], []], ["{}", "{}"])


def test_sets_and_vectors_of_zeek_become_lists(tmp_path: Path) -> None:
    path = tmp_path / "dns.log"
    path.write_text(
        "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tdns\n"
        "#fields\tts\tid.orig_h\tanswers\tTTLs\tflags\tnobody\n"
        "#types\ttime\taddr\tvector[string]\tvector[interval]\tset[bool]\tcount\n"
        "1700000000.5\t10.0.0.1\ta\\x2cb,c\t1.5,-\tT,F\t-\n1700000001.5\t10.0.0.1\t(empty)\t-\t(empty)\t-\n"
    )
    found = through(path)
    assert (found.count, found.refused, found.rejected) == (2, {}, {})
    assert found.column("answers") == [["a,b", "c"], []]
    assert (found.column("ttls"), found.column("flags")) == ([[1.5, None], None], [[True, False], []])


@pytest.mark.parametrize(
    ("body", "options", "values"),
    [
        ("timestamp,v\n1714521600000,1.5\n", {}, [1.5]),
        ("timestamp;v\n2024-05-01T00:00:00Z;12,5\n", {"decimal": ","}, [12.5]),
        ("timestamp;v\n2024-05-01T00:00:00Z;1.234.567,5\n", {"decimal": ",", "thousands": "."}, [1_234_567.5]),
        ("timestamp,v\n2024-05-01 02:00:00,1.5\n", {"time_zone": "Europe/Berlin"}, [1.5]),
        ("Datum;v\n01.05.2024 02:00:00;1\n", {"time_column": "Datum", "time_format": "%d.%m.%Y %H:%M:%S",
                                             "time_zone": "Europe/Berlin"}, [1]),
        ("Datum;v\n2024-05-01 00:00:00 UTC;1\n", {"time_column": "Datum"}, [1]),
    ],
)  # fmt: skip
def test_the_draft_names_the_options_that_its_file_needs(
    tmp_path: Path, body: str, options: dict[str, str], values: list[float]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(body)
    hints = draft_contract(path).hints
    assert set(hints.options) == set(options)
    found = through(path, **options)
    assert (found.count, found.refused, found.rejected) == (1, {}, {})
    assert found.column("v") == values
    assert found.column("event_time")[0].isoformat() == "2024-05-01T00:00:00+00:00"


def test_the_draft_is_a_document_with_the_source_that_fills_it_in_comments(tmp_path: Path) -> None:
    path = tmp_path / "drive.csv"
    path.write_text("Time;Speed (km/h)\n2024-05-01 00:00:00;50,5\n")
    done = CliRunner().invoke(contract_app, ["infer", str(path)])
    assert done.exit_code == 0
    assert "physicalName: Speed (km/h)" in done.stdout
    assert '#   decimal = ","' in done.stdout
    assert "# Times without a zone: Time." in done.stdout
    (tmp_path / "x.odcs.yaml").write_text(done.stdout)
    shown = CliRunner().invoke(contract_app, ["show", str(tmp_path / "x.odcs.yaml"), "--as", "agent"])
    assert [column.source_name for column in decode_contract(shown.stdout.encode()).columns] == ["Time", "Speed (km/h)"]


@pytest.mark.parametrize(
    "name", ["Sp\u00adeed", "Sp\u200beed", "\u202edeepS", "S\u0085peed", "S\x1bp", 'S"p\\e:d #1', "S\U000e0041"]
)
def test_names_with_characters_that_nobody_sees_survive_being_printed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"time": 1714521600, name: 1}) + "\n")
    (tmp_path / "x.odcs.yaml").write_text(CliRunner().invoke(contract_app, ["infer", str(path), "--name", "x"]).stdout)
    shown = CliRunner().invoke(contract_app, ["show", str(tmp_path / "x.odcs.yaml"), "--as", "agent"])
    contract = decode_contract(shown.stdout.encode())
    assert contract.columns[1].source_name == name
    assert judged(path, contract).column(contract.columns[1].name) == [1]


def test_what_the_agent_would_refuse_as_a_whole_is_refused_by_the_draft(tmp_path: Path) -> None:
    for name, body, words in (("a.csv", "a,a\n1,2\n", "twice"), ("b.csv", "", "empty"), ("c.jsonl", "[1, 2]", "no JSON objects")):
        (tmp_path / name).write_text(body)
        with pytest.raises(ConfigError, match=words):
            draft_contract(tmp_path / name)


def test_a_file_of_which_only_the_head_was_read_gives_no_required_column(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text("time,v\n" + "1714521600,1\n" * 30)
    assert [column.required for column in draft_contract(path, max_rows=30).contract.columns] == [True, True]
    assert [column.required for column in draft_contract(path, max_rows=29).contract.columns] == [False, False]


def test_source_names_stand_in_every_form_of_a_contract(tmp_path: Path) -> None:
    contract = Contract("x", "1.0.0", (Column("id_orig_h", ColumnType.STRING, source_name="id.orig_h"),))
    assert decode_contract(encode_contract(contract)) == contract
    assert json_schema(contract)["properties"]["id_orig_h"]["x-physicalName"] == "id.orig_h"
    for wrong in (" x", "x" * 2_000):
        with pytest.raises(ContractError, match="source name"):
            Column("a", ColumnType.STRING, source_name=wrong)
    with pytest.raises(ContractError, match="two columns"):
        Contract("x", "1.0.0", tuple(Column(name, ColumnType.STRING, source_name="s") for name in "ab"))


CELLS = st.one_of(
    st.just(""), st.text(max_size=6), st.integers(-(2**70), 2**70).map(str), st.booleans().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr), st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.sampled_from(["1,5", "1.234,5", "00123", "NA", "-"]),
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    names=st.lists(st.text(max_size=8), min_size=1, max_size=5, unique_by=lambda name: name.strip()),
    rows=st.lists(st.lists(CELLS, min_size=5, max_size=5), min_size=1, max_size=6),
    separator=st.sampled_from(",;\t|"),
)
def test_any_table_is_filled_whole_under_the_contract_drafted_from_it(
    tmp_path: Path, names: list[str], rows: list[list[str]], separator: str
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerow(["when", *names])
    writer.writerows(["1714521600", *row[: len(names)]] for row in rows)
    path = tmp_path / "any.csv"
    path.write_bytes(out.getvalue().encode(errors="replace"))
    assume(len(set(header_names(["when", *names]))) == len(names) + 1)
    draft = draft_contract(path, "drafted")
    options = {name: value.strip('"') for name, value in draft.hints.options.items() if name in ("decimal", "thousands")}
    found = judged(path, drafted(path, tmp_path), time_column="when", time_zone="UTC", **options)
    assert (found.refused, found.left_out, found.unfilled) == ({}, (), ())
    assert not [reason for reason in found.rejected if reason.startswith("cell") and "UTF-8" not in reason], found.rejected
