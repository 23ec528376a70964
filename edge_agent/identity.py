"""Who this device is: the common name of its certificate; and the key and request from which it gets one.

`cryptography` is loaded by the commands that come and go; the process that runs for months is told its name by them.
"""

import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent.atomic import sync_folder
from edge_agent.errors import ConfigError
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
        found = x509.load_pem_x509_certificate(path.read_bytes()[:MAX_CERTIFICATE_BYTES])
        names = [str(attribute.value) for attribute in found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        issuer = found.issuer.rfc4514_string()
    except ValueError as error:
        raise ConfigError(f"{path} is no PEM certificate: {error}; ask who signs certificates for a new one") from error
    if len(names) != 1:
        raise ConfigError(f"certificate {path} has {len(names)} common names, and must have one: the device id")
    try:
        return Certificate(DeviceId(names[0]), issuer, found.not_valid_before_utc, found.not_valid_after_utc)
    except SchemaError as error:
        raise ConfigError(f"certificate {path}: its common name is no device id: {error}") from error


def enrol(device: DeviceId, key_path: Path, request_path: Path) -> None:
    """Make a key that never leaves the device, and a request to sign. What exists already is kept.

    A key that is there is used again, so that a lost request, or a renewal, needs no new key.

    Raises:
        ConfigError: the key that is there is none.
        OSError: the files cannot be written.
    """
    key = _read_key(key_path) if key_path.exists() else _make_key(key_path)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    request_path.write_bytes(request.public_bytes(serialization.Encoding.PEM))


def _make_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = ec.generate_private_key(ec.SECP256R1())
    body = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # Never readable by others, not even for a moment, and never over a file that appeared meanwhile.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return key


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is there and is no private key in PEM: {error}; give another path with --key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is a key of another kind; give another path with --key")
    return key
