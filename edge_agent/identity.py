"""The device's identity: its certificate is read, its key and the request for a certificate are made.

The TLS library judges certificates. `read_pem` reads just enough DER to find names and dates, without 8 MB of a library in a
process that runs for months. A private key that is encrypted is refused, because nobody is there to type its password.

A key never leaves the device. It is made by `cryptography` where the extra `enrol` is installed, else by openssl.
"""

import base64
import binascii
import datetime as dt
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from catchment.runtime.atomic_files import sync_folder, write_atomic
from edge_agent.errors import ConfigError, KeyEncryptedError
from schemas.errors import SchemaError
from schemas.ids import DeviceId, enrolled_id

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)\s+-----END CERTIFICATE-----")
_SEQUENCE, _OID, _VERSION = 0x30, 0x06, 0xA0
_UTC_TIME, _GENERAL_TIME = 0x17, 0x18
_CODECS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x14: "latin-1", 0x1E: "utf-16-be"}
_COMMON_NAME = bytes.fromhex("550403")
_SHORT = {_COMMON_NAME: "CN", bytes.fromhex("55040a"): "O", bytes.fromhex("55040b"): "OU", bytes.fromhex("550406"): "C"}
_LONG_FORM = 0x80
_MAX_LENGTH_BYTES = 4

MAX_CERTIFICATE_BYTES = 1024 * 1024


class DerError(ValueError):
    """The bytes are not a certificate."""


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """The facts in a certificate."""

    common_names: tuple[str, ...]
    issuer: str
    not_before: dt.datetime
    not_after: dt.datetime


@dataclass(frozen=True, slots=True)
class _Item:
    tag: int
    body: bytes


def read_pem(text: str) -> CertificateFacts:
    """The facts of the first certificate in a PEM file.

    Raises:
        DerError: no certificate found, or it is malformed.
    """
    found = _PEM.search(text)
    if found is None:
        raise DerError("it holds no -----BEGIN CERTIFICATE-----")
    try:
        return _read(base64.b64decode(re.sub(r"\s", "", found.group(1)), validate=True))
    except binascii.Error as error:
        raise DerError(f"not base64: {error}") from error


def _read(der: bytes) -> CertificateFacts:
    certificate = _only(_items(der), _SEQUENCE)
    signed = _only(_items(certificate.body)[:1], _SEQUENCE)
    fields = [item for item in _items(signed.body) if item.tag != _VERSION]
    if len(fields) < 5:
        raise DerError("it ends early")
    _serial, _algorithm, issuer, validity, subject = fields[:5]
    dates = _items(validity.body)
    if len(dates) != 2:
        raise DerError("it has no dates")
    names = tuple(value for oid, value in _names(subject) if oid == _COMMON_NAME)
    issuer_text = ", ".join(f"{_SHORT[oid]}={value}" for oid, value in _names(issuer) if oid in _SHORT)
    return CertificateFacts(names, issuer_text, _time(dates[0]), _time(dates[1]))


def _names(name: _Item) -> Iterator[tuple[bytes, str]]:
    for group in _items(name.body):
        for pair in _items(group.body):
            parts = _items(pair.body)
            if len(parts) != 2 or parts[0].tag != _OID:
                raise DerError("a name in it is malformed")
            yield parts[0].body, _text(parts[1])


def _text(item: _Item) -> str:
    try:
        return item.body.decode(_CODECS.get(item.tag, "latin-1"))
    except UnicodeDecodeError as error:
        raise DerError(f"a name in it is not text: {error}") from error


def _time(item: _Item) -> dt.datetime:
    text = item.body.decode("ascii", "replace")
    if item.tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif item.tag != _GENERAL_TIME:
        raise DerError("a date in it is no date")
    try:
        return dt.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC)
    except ValueError as error:
        raise DerError(f"a date in it is malformed: {error}") from error


def _only(items: list[_Item], tag: int) -> _Item:
    if len(items) != 1 or items[0].tag != tag:
        raise DerError("it is no X.509 certificate")
    return items[0]


def _items(data: bytes) -> list[_Item]:
    """The items that stand one after another."""
    items = []
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise DerError("it ends early")
        tag, length, at = data[at], data[at + 1], at + 2
        if length >= _LONG_FORM:
            width = length - _LONG_FORM
            if not 1 <= width <= _MAX_LENGTH_BYTES:
                raise DerError("a length in it is malformed")
            length, at = int.from_bytes(data[at : at + width], "big"), at + width
        if at + length > len(data):
            raise DerError("it ends early")
        items.append(_Item(tag, data[at : at + length]))
        at += length
    return items


@dataclass(frozen=True, slots=True)
class Certificate:
    """The facts of a device's certificate."""

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


def refuse_password() -> str:
    """For `load_cert_chain`. Without it OpenSSL asks the terminal, and the caller waits for an answer permanently.

    Raises:
        KeyEncryptedError: always.
    """
    raise KeyEncryptedError(
        "the private key is encrypted, and nobody is there to type its password; write it in clear, to a file of mode 0600:"
        " openssl pkey -in KEY -out PLAIN"
    )


class LibraryKeysmith:
    """Makes P-256 keys and requests by `cryptography`, which the running agent never loads.

    Raises:
        ImportError: the extra `enrol` is not installed.
    """

    def __init__(self) -> None:
        import cryptography.x509  # noqa: F401, PLC0415 # the extra `enrol`

    def new_key(self) -> bytes:
        """A new key, as PEM."""
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

        key = ec.generate_private_key(ec.SECP256R1())
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def request(self, key: bytes, device: DeviceId) -> bytes:
        """A request to sign, in this device's name, as PEM.

        Raises:
            ConfigError: not a private key, or of another kind.
        """
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
        from cryptography.x509.oid import NameOID  # noqa: PLC0415

        try:
            loaded = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the existing key is not a private key in PEM: {error}; give another path with --key") from error
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ConfigError("the existing key is not of an elliptic curve; give another path with --key")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(device))])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(loaded, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM)


KEY_NAME = "device.key"
REQUEST_NAME = "device.csr"
_MAX_KEY_BYTES = 64 * 1024
_OPENSSL_WITHIN_S = 60.0
# The command reads a configuration file whatever it is asked; the machine's own must not decide what is in a request.
_PLAIN_CONFIG = "[req]\ndistinguished_name = name\n[name]\n"
_PRIVATE_MODE = 0o600


class Keysmith(Protocol):
    """Makes keys and requests, as PEM."""

    def new_key(self) -> bytes:
        """A new P-256 key."""
        ...

    def request(self, key: bytes, device: DeviceId) -> bytes:
        """A request to sign, in this device's name.

        Raises:
            ConfigError: not a private key.
        """
        ...


def enrol(device: DeviceId, key_path: Path, request_path: Path, smith: Keysmith | None = None) -> bool:
    """Make a key and a request. A key that is there is used again: a lost request, or a renewal, needs no new one.

    Returns:
        Whether the key is new.

    Raises:
        ConfigError: the existing key is not a private key, or others can read it; or nothing here can make one.
        IdError: the id is the name of one of the core's roles.
        OSError: the files cannot be written.
    """
    device = enrolled_id(device)
    smith = smith or find_keysmith()
    key, is_new = _read_key(key_path), False
    if key is None:
        key, is_new = smith.new_key(), True
        _write_key(key_path, key)
    write_atomic(request_path, smith.request(key, device), mode=0o644)
    return is_new


def find_keysmith() -> Keysmith:
    """Find a way to make keys on this machine.

    Raises:
        ConfigError: neither `cryptography` nor openssl is there.
    """
    try:
        return LibraryKeysmith()
    except ImportError:
        return CommandKeysmith()


class CommandKeysmith:
    """By the openssl command. The key goes through a pipe: it stands in no file but its own, and on no command line."""

    def new_key(self) -> bytes:
        """A new P-256 key."""
        return _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")

    def request(self, key: bytes, device: DeviceId) -> bytes:
        """A request to sign, in this device's name."""
        reading, writing = os.pipe()
        try:
            os.write(writing, _PLAIN_CONFIG.encode())
            os.close(writing)
            config = f"/dev/fd/{reading}"
            made = ("req", "-new", "-config", config, "-key", "/dev/stdin", "-sha256", "-subj", f"/CN={device}")
            return _openssl(*made, stdin=key, keep=reading)
        finally:
            os.close(reading)


def _openssl(*arguments: str, stdin: bytes = b"", keep: int | None = None) -> bytes:
    kept = () if keep is None else (keep,)
    try:
        done = subprocess.run(
            ["openssl", *arguments], input=stdin, capture_output=True, timeout=_OPENSSL_WITHIN_S, pass_fds=kept, check=False
        )
    except FileNotFoundError as error:
        raise ConfigError("keys need the openssl command, or the `enrol` extra: pip install 'catchment[enrol]'") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"openssl did not end within {_OPENSSL_WITHIN_S:.0f} s") from error
    if done.returncode != 0:
        first_line = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise ConfigError(f"openssl {arguments[0]} failed: {first_line[:300]}; is the key a private key in PEM?")
    return done.stdout


def _read_key(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            body = file.read(_MAX_KEY_BYTES)
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise ConfigError(
            f"{path} can be read by others (mode {mode:04o}): chmod 600 it; if it may have been, delete it for a new one"
        )
    if b"PRIVATE KEY-----" not in body:
        raise ConfigError(f"{path} is there and is no private key in PEM; give another path with --key")
    return body


def _write_key(path: Path, body: bytes) -> None:
    # Never readable by others, not even for a moment, and never over a file that appeared meanwhile.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
