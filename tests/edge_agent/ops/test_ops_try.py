"""`edge-agent try` shows what the first samples become, and leaves everything as it was."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from typer.testing import CliRunner

from catchment.runtime.clock import SystemClock
from edge_agent.commands.exits import EXIT_CONFIG, EXIT_RETRY, EXIT_UNHEALTHY
from edge_agent.commands.root import app
from edge_agent.sources.registry import build_source
from schemas.contract import builtin_contract
from tests.plant.broker import RunningBroker

HEAD = 'device = "d1"\nstate_dir = "state"\n'


def configured(folder: Path, kind: str, stream: str, options: str, head: str = HEAD) -> Path:
    path = folder / "agent.toml"
    before = path.read_text() if path.exists() else head
    path.write_text(f'{before}[[source]]\nkind = "{kind}"\nstream = "{stream}"\n[source.options]\n{options}\n')
    return path


def tried(path: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    done = CliRunner().invoke(app, ["try", "--json", "-c", str(path), *arguments])
    return done.exit_code, json.loads(done.stdout) if done.stdout.startswith("[") else []


def test_each_column_each_refusal_and_what_is_left_out_is_shown(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("time,speed_mps,Gear,frame\n1714521600,1.5,a,x\n1714521601,900,b,2\nnever,3,c,3\n")
    path = configured(tmp_path, "replay", "vehicle_telemetry", f'path = "{tmp_path / "t.csv"}"')
    code, (trial,) = tried(path)
    assert code == EXIT_UNHEALTHY
    columns = {column["name"]: column for column in trial["columns"]}
    assert (columns["speed_mps"]["filled"], columns["speed_mps"]["values"], columns["frame"]["filled"]) == (2, [1.5, 900.0], 1)
    assert [sample["refusal"] for sample in trial["samples"]] == ["", "speed_mps: above the maximum of 150"]
    assert trial["samples"][0]["event_time"] == "2024-05-01T00:00:00Z"
    assert trial["rejected"] == {"row: event time is not a number": 1, "cell frame: not an integer": 1}
    assert trial["left_out_names"] == ["Gear"]
    done = CliRunner().invoke(app, ["try", "-c", str(path)])
    for words in ("above the maximum of 150", "the core would refuse 1 of 2", "Gear", "event time is not a number"):
        assert words in done.output
    assert not (tmp_path / "state").exists()


def test_the_exit_code_tells_good_from_bad_from_nothing_yet(tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text("time,speed_mps\n1714521600,1.5\n")
    good = configured(tmp_path, "replay", "vehicle_telemetry", f'path = "{tmp_path / "good.csv"}"\nrate_hz = 0.001')
    assert tried(good)[0] == 0
    configured(tmp_path, "syslog", "log_line", 'listen = ["udp://127.0.0.1:0"]')
    assert tried(good, "--source", "syslog", "--wait-s", "0.3")[0] == EXIT_RETRY
    assert tried(good, "--source", "2", "--wait-s", "0.3")[0] == EXIT_RETRY
    assert tried(good, "--source", "vehicle_telemetry")[0] == 0
    assert tried(good, "--source", "replay:vehicle_telemetry")[0] == 0
    with pytest.raises(Exception, match="1 replay:vehicle_telemetry"):
        CliRunner().invoke(app, ["try", "-c", str(good), "--source", "nope"], catch_exceptions=False)
    configured(tmp_path, "replay", "vehicle_telemetry", f'path = "{tmp_path / "none.csv"}"')
    code, trials = tried(good, "--source", "3")
    assert (code, "cannot be read" in trials[0]["failure"]) == (EXIT_UNHEALTHY, True)
    assert EXIT_CONFIG == 2


def test_no_file_of_a_watched_folder_is_deleted_or_moved(tmp_path: Path) -> None:
    for done in ("delete", "move"):
        folder = tmp_path / done
        folder.mkdir()
        for number in range(3):
            (folder / f"{number}.jpg").write_bytes(b"\xff\xd8\xff\xd9")
            (folder / f"{number}.json").write_text('{"label": "x"}')
        before = sorted(found.name for found in folder.iterdir())
        (tmp_path / "agent.toml").unlink(missing_ok=True)
        path = configured(tmp_path, "directory", "camera_frame", f'path = "{folder}"\ndone = "{done}"\nsettle_ms = 10')
        _, (trial,) = tried(path, "-n", "2")
        assert [sample["payload_bytes"] for sample in trial["samples"]] == [4, 4]
        assert [sample["columns"]["label"] for sample in trial["samples"]] == ["x", "x"]
        assert sorted(found.name for found in folder.iterdir()) == before


def test_a_program_is_ended_when_enough_was_seen(tmp_path: Path) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        "import json, os, pathlib, time\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "while True:\n    print(json.dumps({'speed_mps': 1.0}), flush=True)\n    time.sleep(0.001)\n"
    )
    path = configured(tmp_path, "exec", "vehicle_telemetry", f'command = ["{sys.executable}", "{script}"]')
    code, (trial,) = tried(path, "-n", "5")
    assert (code, len(trial["samples"])) == (0, 5)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_trial_that_is_ended_ends_the_program_it_started(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "s.py"
    script.write_text(
        f"import os, pathlib, time\npathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\ntime.sleep(1000)\n"
    )
    path = configured(tmp_path, "exec", "vehicle_telemetry", f'command = ["{sys.executable}", "{script}"]')
    # A shell that starts the suite in the background lets it ignore SIGINT, and every child of it.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from edge_agent.cli import main; main()"
    trial = subprocess.Popen(
        [sys.executable, "-c", heeding, "try", "-c", str(path), "--wait-s", "600"], stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    trial.send_signal(number)
    assert trial.wait(60) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_hostile_text_reaches_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(
        json.dumps({"time": 1714521600, "uid": "\x1b]8;;http://x\x07[red]", "src_ip": "a", "dst_ip": "b", "proto": "[/nope]",
                    "x\x1b[2J[bold]": 1}) + "\n"
    )  # fmt: skip
    path = configured(tmp_path, "replay", "network_flow", f'path = "{tmp_path / "t.jsonl"}"')
    done = CliRunner().invoke(app, ["try", "-c", str(path)])
    assert done.exit_code == 0
    assert "\x1b" not in done.output.replace("\x1b[0m", "").replace("\x1b[1m", "") or "\x1b]8" not in done.output
    assert "\x1b[2J" not in done.output
    assert "[/nope]" in done.output


@pytest.mark.broker
def test_messages_are_seen_and_the_agent_still_gets_every_one(broker: RunningBroker, tmp_path: Path) -> None:
    contract, options = builtin_contract("vehicle_telemetry"), {"port": broker.port, "topics": ["sensors/#"]}
    agent = build_source("mqtt-local", options, contract, SystemClock(), None)
    assert agent.read(10) is None
    agent.close()  # its session is kept by the broker
    path = configured(
        tmp_path, "mqtt-local", "vehicle_telemetry", f'port = {broker.port}\ntopics = ["sensors/#", "$share/group/sensors/#"]'
    )
    command = [str(Path(sys.executable).with_name("edge-agent"))]
    trial = subprocess.Popen([*command, "try", "--json", "-c", str(path), "-n", "3"], stdout=subprocess.PIPE)
    publisher = mqtt.Client(CallbackAPIVersion.VERSION2, "publisher", protocol=mqtt.MQTTv5)
    publisher.connect("127.0.0.1", broker.port)
    publisher.loop_start()
    sent = 0
    while trial.poll() is None:
        publisher.publish("sensors/a", json.dumps({"speed_mps": sent}), 1).wait_for_publish(20)
        sent += 1
        time.sleep(0.05)
    (found,) = json.loads(trial.communicate()[0])
    assert len(found["samples"]) == 3
    publisher.disconnect()
    publisher.loop_stop()
    again = build_source("mqtt-local", options, contract, SystemClock(), None)
    speeds: list[float] = []
    until = time.monotonic() + 20
    while len(speeds) < sent and time.monotonic() < until:
        batch = again.read(1_000)
        speeds += [] if batch is None else batch.columns["speed_mps"]  # type: ignore[arg-type]
        if batch is not None:
            again.stored(batch)
    again.close()
    assert speeds == list(range(sent))


@pytest.fixture
def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@pytest.mark.slow
def test_a_port_that_the_running_agent_holds_is_tried_through_it(tmp_path: Path, free_port: int) -> None:
    path = configured(tmp_path, "syslog", "log_line", f'listen = ["udp://127.0.0.1:{free_port}"]')
    program = str(Path(sys.executable).with_name("edge-agent"))
    agent = subprocess.Popen([program, "run", "-c", str(path)], stderr=subprocess.DEVNULL)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        until = time.monotonic() + 60
        while not (tmp_path / "state/health.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        trial = subprocess.Popen([program, "try", "--json", "-c", str(path), "-n", "2", "--wait-s", "60"], stdout=subprocess.PIPE)
        while trial.poll() is None:
            sender.sendto(b"<13>May  1 00:00:00 host app: hello", ("127.0.0.1", free_port))
            time.sleep(0.05)
        (found,) = json.loads(trial.communicate()[0])
        assert (trial.returncode, len(found["samples"])) == (0, 2)
        assert found["samples"][0]["columns"]["message"] == "hello"
        assert "running agent" in found["notes"][0]
        assert not list((tmp_path / "state").glob("try-*"))
        path.write_text(path.read_text().replace("udp://", "tcp://"))
        code, (other,) = tried(path, "--wait-s", "1")
        assert (code, "does not have this source" in other["failure"]) == (EXIT_UNHEALTHY, True)
    finally:
        sender.close()
        agent.send_signal(signal.SIGTERM)
        agent.wait(60)
