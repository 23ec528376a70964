"""Sources by name in status, and relative paths of their options: they start at the configuration's folder."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from edge_agent.capture.source_supervisor import source_labels
from edge_agent.commands.root import app
from edge_agent.config import AgentConfig, load_agent_config
from edge_agent.errors import ConfigError
from edge_agent.sources.options import is_same_path, resolve_paths

TWO = """\
device = "d1"
state_dir = "state"
[[source]]
kind = "tail"
stream = "network_flow"
options = { path = "logs/a.jsonl" }
[[source]]
kind = "tail"
stream = "network_flow"
options = { path = "logs/b.jsonl" }
[[source]]
kind = "replay"
stream = "vehicle_telemetry"
name = "last-drive"
options = { path = "none.csv" }
"""


def load(folder: Path, text: str) -> AgentConfig:
    (folder / "agent.toml").write_text(text)
    return load_agent_config(folder / "agent.toml")


def test_relative_paths_of_options_start_at_the_files_folder_and_the_position_stays_filed_as_before(tmp_path: Path) -> None:
    config = load(tmp_path, TWO)
    assert config.source[0].resolved["path"] == f"{tmp_path}/logs/a.jsonl"
    assert config.source[0].name == 'tail:network_flow:{"path":"logs/a.jsonl"}'
    assert config == load(tmp_path, TWO)


@pytest.mark.parametrize(
    ("kind", "options", "wanted"),
    [
        ("can", {"log": "x.log", "dbc": ["a.dbc", "/b.dbc"], "dbc_by_channel": {"c1": ["c.dbc"]}},
         {"log": "/etc/c/x.log", "dbc": ["/etc/c/a.dbc", "/b.dbc"], "dbc_by_channel": {"c1": ["/etc/c/c.dbc"]}}),
        ("directory", {"path": "in", "masks": "", "pattern": "*.x"}, {"path": "/etc/c/in", "masks": "", "pattern": "*.x"}),
        ("camera", {"source": "x.mp4"}, {"source": "/etc/c/x.mp4"}),
        ("camera", {"source": "rtsp://a/b"}, {"source": "rtsp://a/b"}),
        ("camera", {"source": "testsrc=rate=1", "format": "lavfi"}, {"source": "testsrc=rate=1", "format": "lavfi"}),
        ("exec", {"command": ["./read", "x"]}, {"command": ["/etc/c/read", "x"]}),
        ("exec", {"command": ["read", "./x"]}, {"command": ["read", "./x"]}),
        ("syslog", {"listen": ["udp://x:1"], "cert": "a.pem"}, {"listen": ["udp://x:1"], "cert": "/etc/c/a.pem"}),
        ("replay", {"path": 5}, {"path": 5}),
        ("of-a-plug-in", {"path": "x"}, {"path": "x"}),
    ],
)  # fmt: skip
def test_each_kinds_paths_are_resolved_and_nothing_else(kind: str, options: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert resolve_paths(kind, options, Path("/etc/c")) == wanted


def test_a_place_kept_under_a_relative_path_is_the_same_file() -> None:
    assert is_same_path("a/x.csv", "/etc/c/a/x.csv")
    assert is_same_path("./x.csv", "/etc/c/x.csv")
    assert not is_same_path("/a/x.csv", "/b/x.csv")
    assert not is_same_path("ax.csv", "/etc/c/x.csv")


def test_sources_that_share_kind_and_stream_are_distinguished(tmp_path: Path) -> None:
    labels = list(source_labels(load(tmp_path, TWO).source).values())
    assert labels == ["tail:network_flow:logs/a.jsonl", "tail:network_flow:logs/b.jsonl", "replay:vehicle_telemetry:last-drive"]
    first = TWO[: TWO.index("[[source]]", TWO.index("a.jsonl"))]
    alone = load(tmp_path, first)
    assert list(source_labels(alone.source).values()) == ["tail:network_flow"]


@pytest.mark.parametrize("name", ["two words", "a:b", "", "x" * 65])
def test_a_name_that_cannot_be_shown_plainly_or_is_given_twice_is_refused(tmp_path: Path, name: str) -> None:
    if name:
        with pytest.raises(ConfigError, match="name"):
            load(tmp_path, TWO.replace("last-drive", name))
    with pytest.raises(ConfigError, match="same name"):
        load(tmp_path, TWO.replace('options = { path = "logs/a.jsonl" }', 'options = { path = "a" }\nname = "last-drive"'))


def test_status_shows_each_of_two_sources_of_one_kind_and_stream(tmp_path: Path) -> None:
    load(tmp_path, TWO)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.jsonl").write_text('{"ts":1,"uid":"a"}\nno json\n')
    (tmp_path / "logs/b.jsonl").write_text('{"ts":1,"uid":"b"}\n[1]\n')
    command = [sys.executable, "-m", "edge_agent", "-c", str(tmp_path / "agent.toml")]
    process = subprocess.Popen(command, cwd="/", stderr=subprocess.DEVNULL)
    try:
        status = _until(tmp_path, lambda health: len(health["rejected"]) >= 2 and all(health["rejected"].values()))
        shown = CliRunner().invoke(app, ["status", "-c", str(tmp_path / "agent.toml")], env={"COLUMNS": "200"}).output
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert status["sources"] == {
        "tail:network_flow:logs/a.jsonl": "runs",
        "tail:network_flow:logs/b.jsonl": "runs",
        "replay:vehicle_telemetry:last-drive": "fails",
    }
    assert status["rejected"]["tail:network_flow:logs/a.jsonl"] == {"row: no JSON": 1}
    assert status["rejected"]["tail:network_flow:logs/b.jsonl"] == {"row: JSON, but no object": 1}
    assert "logs/a.jsonl" in shown
    assert "logs/b.jsonl" in shown
    assert "last-drive" in shown


def _until(folder: Path, is_there: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            health = json.loads((folder / "state/health.json").read_text())
        except (FileNotFoundError, msgspec.MsgspecError, ValueError):
            health = None
        if health is not None and "fails" in health["sources"].values():
            rejected = {name: reasons for name, reasons in health["rejected"].items() if name.startswith("tail")}
            if is_there({**health, "rejected": rejected}):
                return dict(health)
        time.sleep(0.1)
    raise AssertionError("the agent does not come so far")
