"""A device over its share loses nothing: it is told, waits, and everything becomes a row; another one never waits for it."""

import random
from pathlib import Path
from typing import Any

import pytest

from tests.plant.programs import Plant

pytestmark = [pytest.mark.slow, pytest.mark.broker, pytest.mark.timeout(300)]


def table(path: Any, rows: int) -> None:
    lines = (
        f"2024-05-01T{n // 3600:02}:{n // 60 % 60:02}:{n % 60:02}Z,{n},{random.random()},{random.random()},{random.random()}"
        for n in range(rows)
    )
    path.write_text("event_time,frame,t_s,speed_mps,acceleration_mps2\n" + "\n".join(lines) + "\n")


def test_an_agent_over_its_share_settles_all_of_it_later_and_another_at_once(plant: Plant, tmp_path: Path) -> None:
    plant.write_core("[shares]\nbytes_per_s = 40000\nburst_bytes = 100000\n")
    heavy, light = tmp_path / "heavy.csv", tmp_path / "light.csv"
    table(heavy, 8_000)
    table(light, 100)
    for device, path in (("heavy", heavy), ("light", light)):
        plant.write_agent(device, [{"kind": "replay", "stream": "vehicle_telemetry", "options": {"path": str(path)}}])
    plant.start_core()
    plant.start_agent("heavy")
    plant.eventually(lambda: "share_exceeded" in plant.tail("heavy"), "the heavy agent is told")
    plant.start_agent("light")
    plant.ended_well("light")
    assert "share_exceeded" not in plant.tail("light")
    plant.ended_well("heavy", 200)
    books = plant.agent_books("heavy")["books"][0]
    assert (books["settled"], books["spooled"], books["dropped"]) == (8_000, 0, {})
    assert plant.count("streams/vehicle_telemetry") == 8_100
