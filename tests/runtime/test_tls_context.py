"""Every role of the core and every device speaks TLS 1.3 and nothing older, and says which file is wrong."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from catchment.runtime.mqtt_link import TlsFileError, client_context
from edge_agent.config import BrokerConfig as AgentBroker
from edge_agent.config import TlsConfig as AgentTls
from edge_agent.uplink.session import tls_context
from pipelines.bridge.subscriber import Subscriber
from pipelines.ingest.receipts import MqttPublisher
from pipelines.rollout.connection import BrokerLink
from tests.fakes.authority import Authority


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    authority = Authority(tmp_path_factory.mktemp("tls") / "ca")
    certificate, key = authority.issue("core")
    return authority.folder / "ca.crt", Path(certificate), Path(key)


def test_the_context_takes_nothing_below_1_3_and_checks_the_name(files: tuple[Path, Path, Path]) -> None:
    context = client_context(*files)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_the_device_uses_it(files: tuple[Path, Path, Path]) -> None:
    assert tls_context(AgentBroker(tls=AgentTls(*files))).minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize("module", [Subscriber, MqttPublisher, BrokerLink])
def test_every_role_of_the_core_uses_it(module: type, repository_root: Path) -> None:
    """By the source: no other context is made in the packages, but for peers that speak no 1.3."""
    text = Path(__import__(module.__module__, fromlist=["x"]).__file__ or "").read_text()
    assert "client_context(" in text
    # Switches, and brokers of small devices.
    older = {"edge_agent/sources/syslog/source.py", "edge_agent/sources/mqtt_local/session.py"}
    older.add("edge_agent/commands/doctor/examine.py")  # connects to nobody: it judges a certificate
    others = [
        str(path.relative_to(repository_root))
        for package in ("edge_agent", "pipelines")
        for path in (repository_root / package).rglob("*.py")
        if any(word in path.read_text() for word in ("create_default_context(", "ssl.SSLContext(", ".tls_set("))
    ]
    assert set(others) <= older


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda ca, cert, key: (ca / "none", cert, key), "tls.ca"),
        (lambda ca, cert, key: (ca, cert.parent / "none.crt", key), "tls.cert"),
        (lambda ca, cert, key: (ca, cert, key.parent / "none.key"), "tls.key"),
        (lambda ca, cert, key: (key, cert, key), "tls.ca"),
        (lambda ca, cert, key: (ca, ca, key), "tls.cert"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    files: tuple[Path, Path, Path], spoil: Callable[..., tuple[Path, Path, Path]], words: str
) -> None:
    with pytest.raises(TlsFileError, match=words):
        client_context(*spoil(*files))
