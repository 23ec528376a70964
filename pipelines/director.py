"""The director: the online keys that sign orders, the counters of documents, and desired state as signed documents.

The keys are `director-<n>.pem` in one folder, which only their owner may read. All of them sign, at most four. They are online,
with the model server, and what they can order is bounded: a device installs no model that the offline keys did not sign, and
follows no document that is older than the newest one it took.

The counters are `<lake>/models/director/<kind>.counter`. A counter is at least the time in milliseconds: a lake that was restored
from an older copy, or whose counter was lost, still goes on above the counters that devices have seen. Desired state is one
document for each device, addressed to it alone.
"""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from catchment.runtime.atomic_files import sync_folder, write_atomic
from catchment.runtime.clock import Clock
from pipelines.config import CoreConfig
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from schemas.rollout import Desired, DesiredModels, encode_desired, encode_signed_desired
from schemas.signed_document import (
    MAX_NUMBER,
    MAX_SIGNATURES,
    Addressees,
    Document,
    DocumentKind,
    DocumentSignature,
    SignedMessage,
    encode_body,
    encode_document,
    signing_bytes,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


_MAX_KEY_BYTES = 64 * 1024

_MAX_BYTES = 100

_HOUR_MS = 3_600_000


class DocumentSigner:
    """Signs documents with one key, or with two while keys are being changed.

    Args:
        keys: Ed25519 private keys; every one of them signs.

    Attributes:
        public_keys: their public halves, as devices are configured with them.
    """

    def __init__(self, keys: "Sequence[Ed25519PrivateKey]") -> None:
        self._keys = tuple(keys)
        self.public_keys = tuple(key.public_key().public_bytes_raw().hex() for key in keys)

    def sign(self, document: Document) -> SignedMessage:
        """The document with its signatures."""
        text = encode_document(document)
        signed = signing_bytes(document.kind, text)
        pairs = zip(self.public_keys, self._keys, strict=True)
        return SignedMessage(text, tuple(DocumentSignature(name, key.sign(signed).hex()) for name, key in pairs))

    def sign_bytes(self, signed: bytes) -> bytes:
        """The first key's signature over other bytes: the form of edge policies of the release before."""
        return self._keys[0].sign(signed)


def load_director(folder: Path) -> DocumentSigner | None:
    """The director's keys; None where there are none.

    Raises:
        RefusedError: a key is unreadable, not Ed25519, or others than its owner may read it; or there are too many.
    """
    paths = _paths(folder)
    return DocumentSigner([parse_key(_read(path), str(path)) for path in paths]) if paths else None


def require_director(folder: Path) -> DocumentSigner:
    """The director's keys.

    Raises:
        NotFoundError: there are none.
        RefusedError: as `load_director`.
    """
    director = load_director(folder)
    if director is None:
        raise NotFoundError(f"{folder} holds no director key; make one with: catchment director init")
    return director


def first_director(folder: Path) -> DocumentSigner:
    """The director's keys; a first one is made where there are none.

    Raises:
        RefusedError: as `load_director`.
    """
    if not _paths(folder):
        add_director_key(folder)
    return require_director(folder)


def add_director_key(folder: Path) -> Path:
    """Make one more key, which signs from then on.

    Raises:
        RefusedError: there are as many as a document may have signatures.
    """
    paths = _paths(folder)
    if len(paths) >= MAX_SIGNATURES:
        raise RefusedError(f"{folder} holds {len(paths)} keys, as many as a document may have; retire one first")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    numbers = [int(path.stem.partition("-")[2]) for path in paths]
    path = folder / f"director-{max(numbers, default=0) + 1}.pem"
    write_key(path)
    return path


def retire_director_key(folder: Path, public_key: str) -> Path:
    """Delete a key, so that it signs no more.

    Args:
        folder: of the keys.
        public_key: its public half, or the first digits of it.

    Raises:
        NotFoundError: no key, or not one alone, begins so.
        RefusedError: it is the only one, or as `load_director`.
    """
    paths = _paths(folder)
    named = {path: DocumentSigner([parse_key(_read(path), str(path))]).public_keys[0] for path in paths}
    found = [path for path, name in named.items() if public_key and name.startswith(public_key)]
    if len(found) != 1:
        raise NotFoundError(f"{len(found)} keys begin with {public_key[:80]!r}; `catchment director show` lists them")
    if len(paths) == 1:
        raise RefusedError("it is the only key, and without one nothing can be ordered; add the next one first")
    found[0].unlink()
    sync_folder(folder)
    return found[0]


def write_key(path: Path) -> str:
    """Write a new private key that only its owner may read; the public key, as devices are configured with it.

    Raises:
        RefusedError: there is a file already.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  # heavy only here
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415  # likewise
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    if path.exists():
        raise RefusedError(f"{path}: there is a file already; devices trust the key they have, so none is written over")
    key = Ed25519PrivateKey.generate()
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    return key.public_key().public_bytes_raw().hex()


def parse_key(body: bytes, name: str = "the key") -> "Ed25519PrivateKey":
    """Read a private key in PEM.

    Raises:
        RefusedError: not an Ed25519 private key without a passphrase.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # heavy only here
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  # likewise
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415  # likewise

    hint = "`catchment director init` and `catchment policy keygen` make one"
    try:
        key = load_pem_private_key(body, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RefusedError(f"{name}: not a PEM key without passphrase ({error}); {hint}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise RefusedError(f"{name}: documents are signed with Ed25519; {hint}")
    return key


def _paths(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("director-*.pem") if path.stem.partition("-")[2].isdecimal()]
    if len(found) > MAX_SIGNATURES:
        raise RefusedError(f"{folder} holds {len(found)} director keys; a document has at most {MAX_SIGNATURES} signatures")
    return sorted(found, key=lambda path: int(path.stem.partition("-")[2]))


def _read(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read ({error.strerror}); is it this user's, and not a link?") from error
    with os.fdopen(descriptor, "rb") as file:
        if os.fstat(descriptor).st_mode & 0o077:
            raise RefusedError(f"{path} may be read by others than its owner; chmod 600 it, and think whether it was")
        return file.read(_MAX_KEY_BYTES)


def counters_folder(config: CoreConfig) -> Path:
    """Return the folder of the counters."""
    return config.lake_root / "models" / "director"


def director_folder(config: CoreConfig) -> Path:
    """The director's keys: as configured, else `director` next to the models' signing keys. Never inside the lake."""
    if config.director.keys:
        return Path(config.director.keys)
    return (Path(config.models) if config.models else config.lake_root.parent / "model-keys") / "director"


def next_counter(folder: Path, kind: DocumentKind, now_ms: int) -> int:
    """Take the next counter of a kind; it was given to nobody before, and no lower one will be. Safe between processes.

    Raises:
        CorruptLakeError: the last one cannot be read.
        OSError: the disk refused.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind.value}.counter"
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        counter = max(_last(path) + 1, now_ms)
        write_atomic(path, f"{counter}\n".encode(), mode=0o644)
        return counter
    finally:
        os.close(descriptor)


def _last(path: Path) -> int:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("ascii", errors="replace").strip()
    except FileNotFoundError:
        return 0
    if not text.isdecimal() or not int(text) < MAX_NUMBER - 1:
        raise CorruptLakeError(f"{path}: not a counter; delete it, and the next one is the time in milliseconds")
    return int(text)


class DesiredOrders:
    """Makes the messages for `down/<device>/desired`. Without a director key they are unsigned, as in the release before.

    Args:
        signer: the director; None: there is no key.
        counters: the folder of the counters.
        clock: when a document is issued.
        lifetime_h: how long after that a device may take it.
    """

    def __init__(self, signer: DocumentSigner | None, counters: Path, clock: Clock, lifetime_h: float) -> None:
        self._signer = signer
        self._counters = counters
        self._clock = clock
        self._lifetime_ms = round(lifetime_h * _HOUR_MS)
        self._counter: int | None = None

    @classmethod
    def open(cls, config: CoreConfig, clock: Clock) -> Self:
        """With the keys that are there now.

        Raises:
            RefusedError: a key is unreadable, or others than its owner may read it.
        """
        return cls(load_director(director_folder(config)), counters_folder(config), clock, config.director.lifetime_h)

    @property
    def public_keys(self) -> tuple[str, ...]:
        """The keys that sign; none without a director."""
        return () if self._signer is None else self._signer.public_keys

    @property
    def renew_after_ms(self) -> int:
        """After so long a message is signed again, so that a device that was away finds one that has not expired."""
        return self._lifetime_ms // 2

    def take_counter(self) -> None:
        """Take the counter of the messages to come, before what they order is read. Unsigned ones have none.

        Raises:
            CorruptLakeError: the counter cannot be read.
            OSError: the counter cannot be kept.
        """
        if self._signer is not None:
            self._counter = next_counter(self._counters, DocumentKind.DESIRED, self._clock.now_ms())

    @property
    def expiry_s(self) -> int | None:
        """After so long the broker need not keep a message any more; None: it does not expire."""
        return None if self._signer is None else max(1, self._lifetime_ms // 1000)

    def message(self, device: str, desired: Desired | None) -> bytes:
        """Make the message with a device's model; None: no model. Unsigned, that is an empty message.

        All messages of one object share a counter: they are for different devices.

        Raises:
            CorruptLakeError: the counter cannot be read.
            OSError: the counter cannot be kept.
        """
        if self._signer is None:
            return b"" if desired is None else encode_desired(desired)
        now_ms = self._clock.now_ms()
        if self._counter is None:
            self._counter = next_counter(self._counters, DocumentKind.DESIRED, now_ms)
        models = DesiredModels(() if desired is None else (desired,))
        document = Document(
            kind=DocumentKind.DESIRED.value,
            counter=self._counter,
            issued_ms=now_ms,
            to=Addressees(devices=(str(device),)),
            body=encode_body(models),
            expires_ms=now_ms + self._lifetime_ms,
        )
        return encode_signed_desired(self._signer.sign(document), models)
