"""Who this device is: the common name of its certificate."""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import ConfigError
from edge_agent.identity.der import DerError, read_pem
from schemas.errors import SchemaError
from schemas.ids import DeviceId

MAX_CERTIFICATE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a device's certificate says."""

    device: DeviceId
    issuer: str
    not_before: dt.datetime
    not_after: dt.datetime


def read_certificate(path: Path) -> Certificate:
    """Read a PEM certificate: the first one, if the file holds a chain.

    Raises:
        OSError: it cannot be read.
        ConfigError: it is none, or its common name is no device id.
    """
    try:
        with path.open("rb") as file:
            facts = read_pem(file.read(MAX_CERTIFICATE_BYTES).decode("latin-1"))
    except DerError as error:
        raise ConfigError(f"{path} is no PEM certificate: {error}; ask who signs certificates for a new one") from error
    if len(facts.common_names) != 1:
        raise ConfigError(f"certificate {path} has {len(facts.common_names)} common names, and must have one: the device id")
    try:
        return Certificate(DeviceId(facts.common_names[0]), facts.issuer, facts.not_before, facts.not_after)
    except SchemaError as error:
        raise ConfigError(f"certificate {path}: its common name is no device id: {error}") from error
