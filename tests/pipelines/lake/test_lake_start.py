"""A start looks at every table and opens those alone that somebody has written to since; many tables are committed at once."""

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from deltalake import DeltaTable

from pipelines.contracts.odcs import to_odcs
from pipelines.errors import ConfigError, CorruptLakeError
from pipelines.lake import table
from pipelines.lake.lake import Lake, lake_at
from pipelines.lake.layout import table_states_path
from pipelines.lake.table import TableState, TableStates, open_table
from schemas.contract import Column, ColumnType, Contract
from tests.faults.deaths import Deaths
from tests.plant.core import Core, MakeEnvelope

MANY = [f"stream_{number}" for number in range(12)]


def rest(root: Path) -> None:
    """Make every log's folder look as if nothing had been written to it for a while."""
    for log in root.rglob("_delta_log"):
        at_s = log.stat().st_mtime - 60
        os.utime(log, (at_s, at_s))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables that a start opens, next to the pointer."""
    found: list[str] = []

    def watched(root: Lake, name: str) -> DeltaTable | None:
        found.append(name)
        return open_table(root, name)

    monkeypatch.setattr(table, "open_table", watched)
    return found


@pytest.fixture
def many(core: Core, envelope: MakeEnvelope) -> Any:
    """A lake of twelve streams, each with one run's rows."""
    folder = core.root.with_name("contracts")
    folder.mkdir()
    for name in MANY:
        contract = Contract(name, "1.0.0", (Column("speed_mps", ColumnType.FLOAT64),))
        (folder / f"{name}.odcs.yaml").write_text(to_odcs(contract))
    core.config = msgspec.structs.replace(core.config, contracts=str(folder))
    core.landing.seal([envelope(0, 10, stream=name) for name in MANY])
    core.run()
    return core


def there(names: list[str]) -> list[str]:
    return sorted(name for name in names if name.startswith("streams/stream_"))


def test_a_start_opens_no_table_that_was_not_written_to_since_the_last(
    many: Core, envelope: MakeEnvelope, opened: list[str]
) -> None:
    rest(many.root)
    many.loop()
    opened.clear()
    many.loop()
    assert there(opened) == []
    many.landing.seal([envelope(10, 10, stream=MANY[3])])
    loop = many.run()
    assert loop.ledger.run == 2
    opened.clear()
    many.loop()
    assert set(there(opened)) == {f"streams/{MANY[3]}"}


def test_a_table_written_to_a_moment_ago_is_not_remembered(many: Core) -> None:
    many.loop()
    states = table_states_path(many.root)
    kept = msgspec.json.decode(states.read_bytes()) if states.exists() else {}
    assert not [name for name in kept if name.startswith("streams/")]


def test_a_table_that_another_lake_s_was_put_in_place_of_is_opened(many: Core, opened: list[str]) -> None:
    rest(many.root)
    many.loop()
    shutil.copytree(many.root / "streams" / MANY[0], many.root.parent / "copy")
    shutil.rmtree(many.root / "streams" / MANY[0])
    shutil.copytree(many.root.parent / "copy", many.root / "streams" / MANY[0])
    opened.clear()
    many.loop()
    assert set(there(opened)) == {f"streams/{MANY[0]}"}


def test_what_is_remembered_still_tells_that_the_pointer_was_put_back(many: Core, opened: list[str]) -> None:
    rest(many.root)
    many.loop()
    shutil.rmtree(many.root / "commits")
    kept = {
        name: msgspec.structs.replace(state, transactions={"ingest": 7})
        for name, state in TableStates(lake_at(many.root))._kept.items()
    }
    table_states_path(many.root).write_bytes(msgspec.json.encode(kept))
    opened.clear()
    with pytest.raises(CorruptLakeError, match="holds run 7 already"):
        many.loop()
    assert there(opened) == []


def test_a_contract_that_does_not_fit_is_refused_by_what_is_remembered_too(many: Core, opened: list[str]) -> None:
    rest(many.root)
    many.loop()
    contract = Contract(MANY[0], "2.0.0", (Column("speed_mps", ColumnType.STRING),))
    Path(many.config.contracts, f"{MANY[0]}.odcs.yaml").write_text(to_odcs(contract))
    opened.clear()
    with pytest.raises(ConfigError, match="speed_mps is"):
        many.loop()
    assert there(opened) == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"streams/stream_0": 3}'])
def test_a_cache_that_cannot_be_read_is_made_anew(many: Core, body: bytes) -> None:
    rest(many.root)
    many.loop()
    table_states_path(many.root).write_bytes(body)
    rest(many.root)
    many.loop()
    assert isinstance(TableStates(lake_at(many.root), "ingest")._known(f"streams/{MANY[0]}"), TableState)


@pytest.mark.slow
def test_runs_of_many_streams_that_are_killed_end_with_every_sample_once(
    many: Core, envelope: MakeEnvelope, deaths: Deaths
) -> None:
    many.landing.seal([envelope(10, 10, stream=name) for name in MANY])
    pristine = many.root.with_name("before")
    shutil.copytree(many.root, pristine)
    names = deaths.steps("run", many.root, Path(many.config.contracts))
    first = next(place for place, name in enumerate(names) if "commit streams/" in name)
    for step in range(first, first + 4 * len(MANY), 11):
        shutil.rmtree(many.root)
        shutil.copytree(pristine, many.root)
        deaths.kill("run", many.root, step, Path(many.config.contracts))
        loop = many.run()
        assert loop.ledger.run == 2
        assert not loop.ledger.unbalanced()
        for name in MANY:
            assert sorted(row["seq"] for row in many.rows(f"streams/{name}")) == list(range(20))
