"""Keys of core.toml under their old names."""

from pathlib import Path

import pytest

from pipelines.config import load_core_config
from pipelines.errors import ConfigError

RENAMED = [
    ("run", "crew", "worker_processes", 5),
    ("run", "workers", "dask_workers", 3),
    ("run", "fault_stop_share", "fault_breaker_share", 0.5),
    ("run", "fault_stop_count", "fault_breaker_count", 7),
    ("alarms", "far_silent_s", "remote_silent_s", 30),
]


@pytest.mark.parametrize(("table", "old", "new", "value"), RENAMED)
def test_an_old_key_means_what_the_new_one_does_and_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, old: str, new: str, value: float
) -> None:
    path = tmp_path / "core.toml"
    path.write_text(f"[{table}]\n{new} = {value}\n")
    plain = load_core_config(path)
    assert capsys.readouterr().err == ""
    path.write_text(f"[{table}]\n{old} = {value}\n")
    assert load_core_config(path) == plain
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{table}.{old} is now {table}.{new}" in err


def test_an_old_key_beside_its_new_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "core.toml"
    path.write_text("[run]\ncrew = 1\nworker_processes = 2\n")
    with pytest.raises(ConfigError, match="both are given"):
        load_core_config(path)
