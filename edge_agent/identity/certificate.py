"""Read the device's certificate: whom it names, who signed it, how long it holds. Nothing is trusted because of it.

The TLS library judges certificates. This reads just enough DER to find names and dates, without 8 MB of a library in a
process that runs for months. A private key that is encrypted is refused, because nobody is there to type its password.
"""

import base64
import binascii
import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import ConfigError, KeyEncryptedError
from schemas.errors import SchemaError
from schemas.ids import DeviceId

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
    """The bytes are no certificate."""


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
        DerError: there is none, or it is damaged.
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
    """For `load_cert_chain`. Without it OpenSSL asks the terminal, and whoever called waits for an answer for ever.

    Raises:
        KeyEncryptedError: always.
    """
    raise KeyEncryptedError(
        "the private key is encrypted, and nobody is there to type its password; write it in clear, to a file of mode 0600:"
        " openssl pkey -in KEY -out PLAIN"
    )
