"""All that is wrong with a configuration is told at once, each with its line."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from edge_agent.checking import check_file
from edge_agent.commands.exits import EXIT_CONFIG
from edge_agent.commands.root import app
from edge_agent.errors import ConfigError

GOOD = """\
device = "d1"
state_dir = "state"
[[source]]
kind = "replay"
stream = "vehicle_telemetry"
options = { path = "x.csv" }
"""
BAD = """\
devise = "d1"
state_dir = "state"

[broker]
port = "1883"
host = "broker.example"

[spool]
max_bytes = 5

[[source]]
kind = "replay"
stream = "vehicle_telemetry"
options = { path = "x.csv" }

[[source]]
kind = "directori"
stream = "camera_frame"
[source.options]
path = "/x"

[[source]]
kind = "directory"
stream = "camera_frame"
priority = -3
[source.options]
path = "/x"
don = "delete"

[[source]]
stream = "network_flow"

[[source]]
kind = "exec"
stream = "nope"
"""


SYSLOG = '[[source]]\nkind = "syslog"\nstream = "log_line"\n[source.options]\nlisten = ["{}"]\n'


def check(folder: Path, text: str) -> list[tuple[int | None, str]]:
    path = folder / "agent.toml"
    path.write_text(text)
    return [(fault.line, fault.message) for fault in check_file(path).faults]


def test_ten_faults_are_reported_at_once_each_on_its_line(tmp_path: Path) -> None:
    found = check(tmp_path, BAD)
    expected = [
        (None, "device is missing"), (1, "did you mean device"), (5, "broker.port"), (6, "add [broker.tls]"), (9, "max_bytes 5"),
        (17, "'directori' is not one of"), (25, "priority -3"), (28, "`don`"), (30, "field `kind`"),
        (35, "no built-in contract 'nope'"),
    ]  # fmt: skip
    assert [line for line, _ in found] == [line for line, _ in expected]
    assert all(words in message for (_, message), (_, words) in zip(found, expected, strict=True))


def test_what_is_right_tells_what_will_run(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD)
    done = CliRunner().invoke(app, ["check", "-c", str(path)])
    assert done.exit_code == 0
    assert "source replay -> vehicle_telemetry (contract" in done.output


def test_what_is_right_and_not_all_there_says_so(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    tls = '[broker.tls]\nca = "ca.pem"\ncert = "c.pem"\nkey = "k.pem"\n'
    path.write_text(GOOD[: GOOD.index("[[")] + tls)
    found = check_file(path)
    assert found.faults == ()
    assert "no [[source]]: nothing is captured" in found.report_lines[1]
    assert "not there yet" in found.report_lines[2]


def test_faults_stand_as_compilers_write_them_and_as_json(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(GOOD.replace("path =", "paht ="))
    done = CliRunner().invoke(app, ["check", "-c", str(path)])
    assert done.exit_code == EXIT_CONFIG
    assert re.match(rf"{path}:6: .*paht", done.output)
    as_json = CliRunner().invoke(app, ["check", "--json", "-c", str(path)])
    assert as_json.exit_code == EXIT_CONFIG
    assert json.loads(as_json.stdout)["faults"][0]["line"] == 6


@pytest.mark.parametrize(
    ("broken", "line", "fragment"),
    [
        (GOOD.replace('"state"', "state"), 2, "quotes"),
        (GOOD + "[broker\n", 7, "not TOML"),
        (GOOD + '[broker.tls]\nca = "ca.pem"\ncert = "c.pem"\n', 7, "field `key`"),
        (GOOD + '[policy]\npublic_key = "abc"\n', 8, "64 hexadecimal"),
        (GOOD + "[uplink]\nwindow_bytes = 1\n", 8, "window_bytes"),
        (GOOD + '[[uplink.schedule]]\nfrom = "22:00"\nto = "25:00"\n', 9, "to "),
        (GOOD + '[model]\nname = "x"\n', 7, "model"),
        (GOOD + GOOD[GOOD.index("[[") :], None, "same"),
        (GOOD.replace('"d1"', '"Dev_1"'), 1, "Dev_1"),
        (GOOD + SYSLOG.format("udp:/127.0.0.1:99999"), 11, "is no address"),
        (GOOD + SYSLOG.format("udp://127.0.0.1:99999"), 11, "Port out of range"),
        (GOOD.replace('"x.csv"', '"x.csv", max_line_bytes = 0'), 6, "max_line_bytes = 0 must be 1 or more"),
    ],
)
def test_each_kind_of_fault_is_found_on_its_line(tmp_path: Path, broken: str, line: int | None, fragment: str) -> None:
    found = check(tmp_path, broken)
    assert len(found) == 1, found
    assert fragment in found[0][1]
    assert found[0][0] == line


def test_a_file_that_cannot_be_read_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        check_file(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b'\ndevice = "\xff"')
    (fault,) = check_file(tmp_path / "latin.toml").faults
    assert (fault.line, "save it as UTF-8" in fault.message) == (2, True)


@given(st.text(max_size=60), st.lists(st.integers(0, 30), max_size=3), st.lists(st.integers(0, 30), max_size=3))
def test_no_damage_to_a_configuration_makes_the_check_itself_fail(
    tmp_path_factory: pytest.TempPathFactory, noise: str, cut: list[int], doubled: list[int]
) -> None:
    lines = BAD.splitlines()
    for number in sorted(cut, reverse=True):
        del lines[number % len(lines)]
    for number in doubled:
        lines.insert(number % len(lines), lines[number % len(lines)])
    path = tmp_path_factory.mktemp("noise") / "agent.toml"
    path.write_bytes("\n".join([*lines, noise]).encode(errors="ignore"))
    assert all(fault.message for fault in check_file(path).faults)
