"""A device makes its own key, a small authority signs its request, and the broker knows the device by its certificate."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge_agent.commands.root import app
from edge_agent.errors import ConfigError
from edge_agent.identity import CommandKeysmith, DerError, LibraryKeysmith, enrol, find_keysmith, read_certificate, read_pem
from schemas.ids import DeviceId, StreamName
from tests.edge_agent.ops.conftest import Site
from tests.fakes.fake_core import FakeCore

SMITHS = (LibraryKeysmith(), CommandKeysmith())
DEVICE = DeviceId("line-3")


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("smith", SMITHS, ids=("library", "command"))
def test_the_key_is_the_devices_alone_and_the_request_names_the_device(
    tmp_path: Path, smith: CommandKeysmith | LibraryKeysmith
) -> None:
    key, request = tmp_path / "device.key", tmp_path / "device.csr"
    assert enrol(DEVICE, key, request, smith)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device.csr", "device.key"]
    request_text = openssl("req", "-in", str(request), "-noout", "-subject", "-verify", "-text")
    assert "CN" in request_text
    assert DEVICE in request_text
    assert "P-256" in request_text
    assert "CA:TRUE" not in request_text
    assert openssl("pkey", "-in", str(key), "-pubout") == openssl("req", "-in", str(request), "-noout", "-pubkey")


@pytest.mark.parametrize("again", SMITHS, ids=("library", "command"))
@pytest.mark.parametrize("first", SMITHS, ids=("library", "command"))
def test_enrolled_again_it_keeps_its_key(
    tmp_path: Path, first: CommandKeysmith | LibraryKeysmith, again: CommandKeysmith | LibraryKeysmith
) -> None:
    key, request = tmp_path / "device.key", tmp_path / "device.csr"
    enrol(DEVICE, key, request, first)
    before = key.read_bytes()
    request.unlink()
    assert not enrol(DEVICE, key, request, again)
    assert key.read_bytes() == before
    assert request.exists()


@pytest.mark.parametrize("smith", SMITHS, ids=("library", "command"))
def test_a_file_that_is_no_key_is_never_overwritten(tmp_path: Path, smith: CommandKeysmith | LibraryKeysmith) -> None:
    key = tmp_path / "device.key"
    for body in (b"my notes", b"-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n"):
        key.write_bytes(body)
        key.chmod(0o600)
        with pytest.raises(ConfigError, match="PEM"):
            enrol(DEVICE, key, tmp_path / "device.csr", smith)
        assert key.read_bytes() == body
    assert not (tmp_path / "device.csr").exists()


def test_a_key_that_others_can_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    key = tmp_path / "device.key"
    enrol(DEVICE, key, tmp_path / "device.csr")
    key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        enrol(DEVICE, key, tmp_path / "device.csr")


def test_without_library_and_command_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert isinstance(find_keysmith(), CommandKeysmith)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="openssl command"):
        enrol(DEVICE, tmp_path / "device.key", tmp_path / "device.csr")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_tells_where_things_are_and_what_comes_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["enrol", "line-3", "--folder", str(tmp_path)])
    assert done.exit_code == 0
    assert str(tmp_path / "device.csr") in done.output
    assert "stays here" in done.output
    wrong = CliRunner().invoke(app, ["enrol", "Line 3", "--folder", str(tmp_path)])
    assert isinstance(wrong.exception, ConfigError)


def test_a_device_enrolled_as_documented_delivers_under_the_name_in_its_certificate(site: Site, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("event_time,speed_mps\n" + "".join(f"2024-05-01T00:00:{n % 60:02}Z,{n}\n" for n in range(500)))
    config = site.write_config(
        DEVICE, f'[[source]]\nkind = "replay"\nstream = "vehicle_telemetry"\noptions = {{ path = "{table}" }}\n'
    )
    command = [sys.executable, "-m", "edge_agent", "-c", str(config), "--until-settled"]
    with FakeCore(site.broker.host, site.broker.port) as core:
        done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert [ranges.count for ranges in core.landed_seqs(StreamName("vehicle_telemetry")).values()] == [500]
        assert {head.device for head, _ in core.landed} == {DEVICE}


def test_a_revoked_device_is_shut_out_and_keeps_its_samples(site: Site, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("event_time,speed_mps\n2024-05-01T00:00:00Z,1\n")
    config = site.write_config(
        DEVICE, f'[[source]]\nkind = "replay"\nstream = "vehicle_telemetry"\noptions = {{ path = "{table}" }}\n'
    )
    site.authority.revoke(DEVICE)
    site.broker.restart()
    log = tmp_path / "agent.log"
    with FakeCore(site.broker.host, site.broker.port) as core, log.open("wb") as output:
        with subprocess.Popen([sys.executable, "-m", "edge_agent", "-c", str(config)], stderr=output) as process:
            deadline_s = time.monotonic() + 40
            while b"broker_unavailable" not in log.read_bytes():
                assert time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.05)
            process.terminate()
        assert core.landed == []
    done = CliRunner().invoke(app, ["books", "-c", str(config), "--json"])
    assert json.loads(done.output)["books"][0]["spooled"] == 1


def test_the_name_in_a_certificate_is_read_without_a_library(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    files = site.device_files(DEVICE)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    found = read_certificate(files["cert"])
    assert (found.device, found.issuer) == (DEVICE, "CN=Plant CA")
    end_date = openssl("x509", "-in", str(files["cert"]), "-noout", "-enddate").strip()
    assert end_date == f"notAfter={found.not_after:%b} {found.not_after.day:2} {found.not_after:%H:%M:%S %Y} GMT"
    assert 820 < (found.not_after - found.not_before).days < 830


def test_files_that_are_no_certificate_are_distinguished_from_ones_that_are(tmp_path: Path) -> None:
    path = tmp_path / "device.pem"
    key = tmp_path / "some.key"
    enrol(DEVICE, key, tmp_path / "some.csr")
    openssl(
        "req", "-x509", "-key", str(key), "-subj", "/O=Plant/CN=line-3/OU=Ümlaut", "-utf8", "-days", "9000", "-out", str(path)
    )
    assert read_certificate(path).not_after.year > 2049
    body = path.read_text()
    for broken in (
        "",
        "hello",
        body[:200],
        body.replace("MII", "AAA", 1),
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    ):
        with pytest.raises(DerError):
            read_pem(broken)
    openssl("req", "-x509", "-key", str(key), "-subj", "/CN=Line 3", "-days", "1", "-out", str(path))
    with pytest.raises(ConfigError, match="no device id"):
        read_certificate(path)
    assert os.access(path, os.R_OK)
