"""Which authorities a device takes must not depend on its Python: an update of the system must not cut it off."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import load_agent_config
from edge_agent.uplink.session import tls_context
from tests.fakes.authority import Authority


def test_an_authority_that_says_little_of_itself_is_taken_where_python_would_mind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("device")
    path = tmp_path / "agent.toml"
    path.write_text(
        'device = "device"\nstate_dir = "state"\n[broker]\nhost = "localhost"\n[broker.tls]\n'
        f'ca = "{authority.folder}/ca.crt"\ncert = "{certificate}"\nkey = "{key}"\n'
    )
    default: Callable[..., ssl.SSLContext] = ssl.create_default_context

    def as_in_python_3_13(**named: Any) -> ssl.SSLContext:
        context = default(**named)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", as_in_python_3_13)
    context = tls_context(load_agent_config(path).broker)
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
