"""A broker that believes certificates alone, and a device enrolled as the operator's page says."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_agent.identity import enrol
from schemas.ids import DeviceId
from tests.fakes.small_authority import ROOT, SmallAuthority
from tests.plant.broker import free_port


@dataclass
class Site:
    """A broker with its authority, and where one device's files are."""

    authority: SmallAuthority
    broker: Any
    folder: Path
    secure_port: int

    def device_files(self, device: str) -> dict[str, Path]:
        """Key, certificate and CA of a device, made again."""
        folder = self.folder / device
        folder.mkdir()
        key, request = folder / "device.key", folder / "device.csr"
        enrol(DeviceId(device), key, request)
        certificate = folder / "device.pem"
        shutil.copy(self.authority.sign(device, request), certificate)
        shutil.copy(self.authority.folder / "ca.pem", folder / "ca.pem")
        return {"ca": folder / "ca.pem", "cert": certificate, "key": key}

    def write_config(self, device: str, more: str = "", **tls: Path) -> Path:
        """A configuration that names no device: the certificate does."""
        files = self.device_files(device) | tls
        config = self.folder / device / "agent.toml"
        named = "".join(f'{name} = "{path}"\n' for name, path in files.items())
        config.write_text(
            f'state_dir = "state"\n[broker]\nhost = "localhost"\nport = {self.secure_port}\n[broker.tls]\n{named}'
            f"[uplink]\nreport_interval_s = 0.2\n[spool]\nmax_bytes = 16777216\n{more}"
        )
        return config


@pytest.fixture
def site(make_broker: Callable[..., Any], tmp_path: Path) -> Site:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    authority = SmallAuthority(tmp_path / "authority")
    folder, port = authority.folder, free_port()
    # The tests' own core speaks without a certificate on the broker's first listener, and may do everything there.
    acl = tmp_path / "acl"
    acl.write_text("topic readwrite catchment/#\n" + (ROOT / "deploy/broker/acl").read_text())
    acl.chmod(0o600)
    extra = (
        f"acl_file {acl}\nlistener {port} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/server.pem\n"
        f"keyfile {folder}/server.key\ncrlfile {folder}/crl.pem\ntls_version tlsv1.3\nrequire_certificate true\n"
        "use_identity_as_username true\nuse_username_as_clientid true"
    )
    return Site(authority, make_broker(extra=extra), tmp_path, port)
