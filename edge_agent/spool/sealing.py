"""Encryption at rest: a stolen device tells nothing of what it captured. ChaCha20-Poly1305, by the `encrypt` extra.

What is sealed: every body (all columns of all samples and their payloads) and every large payload. What is not: stream
names, seqs, counts, sizes, times of capture, priorities, hashes of large payloads and where sources resume; without them
the spool could not be repaired, evicted or checked without the key.

A sealed body is `MAGIC`, 4 bytes that tell keys apart, a nonce of 12 random bytes, and the ciphertext with its tag. Neither
Arrow nor zstd begins like that, so what was captured before a key was configured is sent as it is.
"""

import hashlib
import hmac
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from edge_agent.errors import ConfigError, SpoolError
from edge_agent.spool.records import Append, Envelope, NewEnvelope

MAGIC = b"CSB1"
_ID_BYTES = 4
_NONCE_BYTES = 12
_TAG_BYTES = 16
KEY_BYTES = 32
_SALT_BYTES = 16
CHUNK_BYTES = 64 * 1024
_CREDENTIAL = "credential:"
_HINT = "it holds 32 bytes, raw or as 64 hexadecimal digits; make one: openssl rand -hex 32"


class SealBrokenError(Exception):
    """These bytes were not sealed with this key, or were changed since."""


class _Cipher(Protocol):
    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class Seal:
    """Seals with one key. Thread-safe.

    Args:
        key: 32 bytes.

    Raises:
        ConfigError: the `encrypt` extra is not installed, or the key has another length.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigError(f"spool.key has {len(key)} bytes; {_HINT}")
        self._key = key
        self._cipher = _cipher(_derived(key, b"body"))
        self._id = _derived(key, b"id")[:_ID_BYTES]

    @property
    def key_id(self) -> int:
        """Tells keys apart without telling the key: what the spool remembers."""
        return int.from_bytes(_derived(self._key, b"id")[:7], "big")

    def seal(self, body: bytes, bound: bytes) -> bytes:
        """Encrypt a body. `bound` is not hidden, but must be the same when it is opened."""
        nonce = os.urandom(_NONCE_BYTES)
        return MAGIC + self._id + nonce + self._cipher.encrypt(nonce, body, bound)

    def open(self, sealed: bytes, bound: bytes) -> bytes:
        """The body.

        Raises:
            SealBrokenError: it was sealed with other bounds, or was changed.
            SpoolError: it was sealed with another key.
        """
        at = len(MAGIC) + _ID_BYTES
        if sealed[len(MAGIC) : at] != self._id:
            raise SpoolError("a body was sealed with another key; start with the key that spool.key was then")
        return _opened(self._cipher, sealed[at : at + _NONCE_BYTES], sealed[at + _NONCE_BYTES :], bound)

    def seal_object(self, blocks: Iterator[bytes | memoryview]) -> Iterator[bytes]:
        """A sealed file: a salt from which its own key derives, then chunks, each with its number: any can be read alone."""
        salt = os.urandom(_SALT_BYTES)
        yield salt
        cipher = _cipher(_derived(self._key, b"object" + salt))
        held, number = b"", 0
        for block in blocks:
            held += block
            while len(held) >= CHUNK_BYTES:
                yield cipher.encrypt(_counter(number), held[:CHUNK_BYTES], None)
                held, number = held[CHUNK_BYTES:], number + 1
        if held:
            yield cipher.encrypt(_counter(number), held, None)

    def read_object(self, descriptor: int, offset: int, length: int) -> bytes:
        """Bytes `[offset, offset + length)` of a sealed file, as far as it has them.

        Raises:
            SealBrokenError: a chunk was changed, or the key is another.
        """
        cipher = _cipher(_derived(self._key, b"object" + os.pread(descriptor, _SALT_BYTES, 0)))
        first, last = offset // CHUNK_BYTES, (offset + max(length, 1) - 1) // CHUNK_BYTES
        opened = bytearray()
        for number in range(first, last + 1):
            place = _SALT_BYTES + number * (CHUNK_BYTES + _TAG_BYTES)
            chunk = os.pread(descriptor, CHUNK_BYTES + _TAG_BYTES, place)
            if not chunk:
                break
            opened += _opened(cipher, _counter(number), chunk, None)
        start = offset - first * CHUNK_BYTES
        return bytes(opened[start : start + length])


def seal_append(append: Append, seal: Seal | None) -> Append:
    """The append with its bodies sealed, where there is a key."""
    if seal is None:
        return append
    sealed = (replace(e, body=seal.seal(e.body, _bound(append.stream, e)), body_crc=-1) for e in append.envelopes)
    return replace(append, envelopes=tuple(sealed))


def open_envelope(envelope: Envelope | None, seal: Seal | None) -> Envelope | None:
    """The envelope as it was captured.

    Raises:
        SealBrokenError: it was changed.
        SpoolError: it is sealed and there is no key, or another one: it must neither be sent nor given up.
    """
    if envelope is None or not envelope.body.startswith(MAGIC):
        return envelope
    if seal is None:
        raise SpoolError("a body is sealed and there is no spool.key; start with the key it was sealed with")
    return replace(envelope, body=seal.open(envelope.body, _bound(envelope.stream, envelope)))


def _bound(stream: str, envelope: Envelope | NewEnvelope) -> bytes:
    return f"{stream}/{envelope.contract_version}/{envelope.encoding}/{envelope.created_us}".encode()


def sealed_bytes(size_bytes: int) -> int:
    """Return the size of a sealed file for a content of this size."""
    return _SALT_BYTES + size_bytes + -(-size_bytes // CHUNK_BYTES) * _TAG_BYTES


def read_seal(path: Path | None) -> Seal | None:
    """The seal of a key file, or of a systemd credential (`credential:NAME`); None without a path.

    Raises:
        ConfigError: there is no such key, it is malformed, or the `encrypt` extra is not installed.
    """
    if path is None:
        return None
    if path.name.startswith(_CREDENTIAL):
        folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
        if not folder:
            raise ConfigError(f"spool.key {path.name}: there are no credentials; add LoadCredential= to the unit")
        path = Path(folder) / path.name.removeprefix(_CREDENTIAL)
    try:
        with path.open("rb") as file:
            content = file.read(4 * KEY_BYTES)
    except OSError as error:
        raise ConfigError(f"spool.key {path}: {error.strerror}; {_HINT}") from error
    if len(content) == KEY_BYTES:
        return Seal(content)
    try:
        return Seal(bytes.fromhex(content.decode("ascii").strip()))
    except ValueError as error:
        raise ConfigError(f"spool.key {path} is malformed; {_HINT}") from error


def _derived(key: bytes, purpose: bytes) -> bytes:
    return hmac.new(key, b"catchment spool " + purpose, hashlib.sha256).digest()


def _counter(number: int) -> bytes:
    return number.to_bytes(_NONCE_BYTES, "big")


def _cipher(key: bytes) -> _Cipher:
    try:
        # Loaded only where a key is configured: it is memory that other devices need not spend.
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("spool.key needs the extra: pip install 'catchment[encrypt]'") from error
    return ChaCha20Poly1305(key)


def _opened(cipher: _Cipher, nonce: bytes, sealed: bytes, bound: bytes | None) -> bytes:
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415 # as above

    try:
        return cipher.decrypt(nonce, sealed, bound)
    except (InvalidTag, ValueError) as error:
        raise SealBrokenError("the seal is broken") from error
