"""Addresses written as URLs: udp://0.0.0.0:514, tls://[::]:6514."""

from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from edge_agent.errors import ConfigError


@dataclass(frozen=True, slots=True)
class HostPort:
    """How (udp, tcp, tls) and where."""

    scheme: str
    host: str
    port: int


def read_address(kind: str, text: str, schemes: Collection[str]) -> HostPort:
    """Read an address.

    Raises:
        ConfigError: it is none, or not one of these schemes; names the source's kind.
    """
    example = f"{min(schemes)}://127.0.0.1:5514"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"source {kind!r}: {text!r} is no address: {error}; write {example}") from error
    if parts.scheme not in schemes or not parts.hostname or port is None or parts.path or parts.query:
        raise ConfigError(f"source {kind!r}: {text!r} is no address like {example} ({', '.join(sorted(schemes))})")
    return HostPort(parts.scheme, parts.hostname, port)
