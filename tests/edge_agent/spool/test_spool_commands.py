"""`edge-agent spool` and `edge-agent park`, as an operator types them."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.cli import main
from edge_agent.health.file import Health, write_health
from edge_agent.health.monitor import _by_source
from edge_agent.spool import payload_files
from edge_agent.spool.inspection import serve_replays
from edge_agent.spool.records import Append, NewEnvelope
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName

Run = Callable[..., tuple[int, str]]
BODIES = [b"first" * 100, b"second" * 50_000, b"third" * 10]


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """A stopped agent with three envelopes, the last one parked."""
    config = tmp_path / "agent.toml"
    config.write_text('device = "pi-7"\nstate_dir = "state"\n')
    with_spool(config, lambda spool: None)
    return config


def with_spool(config: Path, act: Callable[[Spool], object]) -> None:
    folder = config.parent / "state" / "spool"
    is_new = not folder.exists()
    spool = Spool(folder, max_bytes=64 * 1024 * 1024, linger_ms=0, clock=SystemClock())
    if is_new:
        for n, body in enumerate(BODIES):
            stream = StreamName("alpha" if n < 2 else "beta")
            spool.append(Append(stream, (NewEnvelope(n + 1, body, "1.0.0", created_us=1_700_000_000_000_000),))).result()
        leased = spool.next_unsent(10**9)
        spool.park(leased[2].id, "above the broker's packet limit")
    act(spool)
    spool.close()


@pytest.fixture
def run(agent: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["edge-agent", *words, *(() if "--help" in words else ("-c", str(agent)))])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        sys.stdout.flush()
        return code, "".join(capfd.readouterr())

    return call


def json_of(run: Run, *words: str) -> Any:
    code, text = run(*words, "--json")
    assert code == 0, text
    return json.loads(text)


def test_ls_tells_every_envelope_and_filters_by_stream_and_state(run: Run) -> None:
    found = json_of(run, "spool", "ls")
    assert [(e["id"], e["stream"], e["count"], e["state"]) for e in found["envelopes"]] == [
        (1, "alpha", 1, "ready"), (2, "alpha", 2, "ready"), (3, "beta", 3, "parked")
    ]  # fmt: skip
    assert found["in_all"] == {"ready": 2, "parked": 1}
    assert [e["file"] > 0 for e in found["envelopes"]] == [False, True, False]
    assert [e["body_bytes"] for e in found["envelopes"]] == [len(body) for body in BODIES]
    assert [e["id"] for e in json_of(run, "spool", "ls", "--stream", "beta")["envelopes"]] == [3]
    assert [e["id"] for e in json_of(run, "spool", "ls", "--state", "ready", "--limit", "1")["envelopes"]] == [1]
    code, text = run("spool", "ls")
    assert code == 0
    assert "packet" in text
    assert run("spool", "ls", "--state", "lost")[0] == 2


def test_show_tells_one_envelope_and_writes_its_body(run: Run, tmp_path: Path) -> None:
    assert json_of(run, "spool", "show", "2", "--body", str(tmp_path / "out"))["verdict"] == "as it was stored"
    assert (tmp_path / "out").read_bytes() == BODIES[1]
    code, text = run("spool", "show", "99")
    assert code == 3
    assert "there is no envelope 99" in text


def test_verify_finds_what_a_disk_changed(run: Run, agent: Path) -> None:
    assert json_of(run, "spool", "verify")["is_sound"] is True
    file = next((agent.parent / "state" / "spool" / payload_files.FOLDER_NAME).iterdir())
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    code, text = run("spool", "verify", "--json")
    assert code == 1
    assert [(f["id"], f["stream"], f["count"]) for f in json.loads(text)["findings"]] == [(2, "alpha", 2)]
    assert "1 DAMAGED" in run("spool", "verify")[1]


@pytest.mark.slow
def test_what_is_parked_is_listed_with_its_reason_and_replayed_by_the_agent(run: Run, agent: Path) -> None:
    assert [e["reason"] for e in json_of(run, "park", "ls")["envelopes"]] == ["above the broker's packet limit"]
    assert run("park", "replay")[0] == 2
    assert run("park", "replay", "1")[0] == 3
    assert json_of(run, "park", "replay", "3") == {"envelopes": 1, "is_taken": False}
    folder = agent.parent / "state" / "spool"
    (folder / "replay-0-broken.json").write_text("{")
    with_spool(agent, lambda spool: serve_replays(folder, spool.replay))
    assert json_of(run, "park", "ls")["envelopes"] == []
    assert list(folder.glob("replay-*")) == []


def test_every_command_explains_itself(run: Run) -> None:
    for words in (("spool",), ("park",), ("spool", "ls"), ("spool", "show"), ("spool", "verify"), ("park", "replay")):
        code, text = run(*words, "--help")
        assert code == 0
        assert len(text.splitlines()) > 8


def test_a_folder_without_a_spool_is_reported(run: Run, agent: Path) -> None:
    agent.write_text('device = "pi-7"\nstate_dir = "none"\n')
    code, text = run("spool", "ls")
    assert code == 75
    assert "has `edge-agent run` been started" in text


def test_status_tells_what_was_refused_and_how_old_the_look_is(run: Run, agent: Path) -> None:
    counts = {"replay:telemetry": {"cell speed: not a [number]": 3}}
    at_ms = int(time.time() * 1000) - 90_000
    write_health(agent.parent / "state", Health(at_ms, 0, False, 1, 0, 0, 0, 0, None, 0, 1, 0, rejected=counts))
    code, text = run("status")
    assert code == 0
    output = " ".join(text.replace("│", " ").split())
    assert "refused 3 replay:telemetry: cell speed: not a [number]" in output
    assert "sources running 0" in output, "nothing runs"
    assert any(f"last look {seconds} s ago" in output for seconds in range(90, 200))


def test_two_sources_of_one_kind_and_stream_are_counted_together() -> None:
    counts = [("directory:frames", {"file: a": 1}), ("directory:frames", {"file: a": 2, "file: b": 1})]
    assert _by_source(counts) == {"directory:frames": {"file: a": 3, "file: b": 1}}


def test_a_list_says_that_there_is_more_only_where_there_is(run: Run) -> None:
    assert "--limit" not in run("park", "ls")[1]
    assert "--limit" in run("spool", "ls", "--limit", "1")[1]
