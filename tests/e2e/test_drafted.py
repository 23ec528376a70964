"""The documented way from a file to a table: infer, show --as agent, check, try, run; the core refuses no row."""

import json
from pathlib import Path

import pytest

from tests.plant.programs import CORE, EDGE, Plant

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.timeout(300)]

DRIVE = "Time;Speed (km/h);GPS.Lat;Größe\n" + "".join(f"2024-05-01 02:00:{n:02d};5{n % 10},5;52,{n};{n}\n" for n in range(40))
NESTED = "".join(
    json.dumps({"ts": 1_714_521_600_000 + n, "gps": {"Lat": 52.5, "raw": {"n": n}}, "labels": ["a", "b"][: n % 3]}) + "\n"
    for n in range(40)
)


def test_files_of_loggers_reach_the_lake_under_the_contracts_drafted_from_them(plant: Plant, shared_data: Path) -> None:
    contracts = plant.folder / "contracts"
    contracts.mkdir()
    (plant.folder / "drive.csv").write_text(DRIVE)
    (plant.folder / "nested.jsonl").write_text(NESTED)
    files = {
        "drive": (plant.folder / "drive.csv", {"decimal": ",", "time_zone": "Europe/Berlin"}, 40),
        "nested": (plant.folder / "nested.jsonl", {}, 40),
        "conn": (shared_data / "network/ctu_zeek/008-zeek-mixed/conn.log.labeled.gz", {}, 5_663),
        "notice": (shared_data / "network/wrccdc_zeek/notice.log.gz", {}, 207),
    }
    for stream, (path, _, _) in files.items():
        (contracts / f"{stream}.odcs.yaml").write_text(plant.run([*CORE, "contract", "infer", str(path), "--name", stream]))
        compiled = plant.run([*CORE, "contract", "show", str(contracts / f"{stream}.odcs.yaml"), "--as", "agent"])
        (plant.folder / f"{stream}.json").write_text(compiled)
    plant.core_config.write_text(f'contracts = "{contracts}"\n' + plant.core_config.read_text())
    sources = [
        {"kind": "replay", "stream": stream, "options": {"path": path, **options}} for stream, (path, options, _) in files.items()
    ]
    config = plant.write_agent("edge-a", sources)
    for stream in files:
        named = f'stream = "{stream}"\n'
        config.write_text(config.read_text().replace(named, f'{named}contract = "{stream}.json"\n'))
    plant.run([*EDGE, "check", "-c", str(config)])
    trials = json.loads(plant.run([*EDGE, "try", "--json", "-c", str(config)]))
    assert [len(trial["samples"]) for trial in trials] == [20] * 4
    plant.start_core()
    plant.start_agent("edge-a")
    plant.ended_well("edge-a")
    assert plant.rows("quarantine").height == 0
    for stream, (_, _, rows) in files.items():
        assert plant.rows(f"streams/{stream}").height == rows, stream
    drive = plant.rows("streams/drive").sort("event_time")
    assert drive["speed_km_h"].to_list() == [50.5 + n % 10 for n in range(40)]
    assert drive["event_time"][0].isoformat() == "2024-05-01T00:00:00+00:00"
    nested = plant.rows("streams/nested").sort("event_time")
    assert nested["gps"][1] == {"lat": 52.5, "raw": '{"n":1}'}
    assert nested["labels"].to_list()[:3] == [[], ["a"], ["a", "b"]]
