"""The signing keys of the model repository, as PEM files that only their owner may read.

Root and targets keys are the ones that vouch for models: after `model init` they belong on media that are offline, and
are brought back for `model publish` alone. Snapshot and timestamp keys stay with the model server.

Where the repository and its keys are.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key, Signer

from catchment.runtime.atomic_files import write_atomic
from pipelines.config import CoreConfig
from pipelines.errors import RefusedError
from schemas.errors import SchemaError

PASSPHRASE = "CATCHMENT_KEY_PASSPHRASE"  # noqa: S105  # the name of a variable of the environment
ROLES = ("root", "targets", "snapshot", "timestamp")


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """How many keys each role has, and how many of them must sign. Snapshot and timestamp have one each."""

    root: tuple[int, int] = (3, 2)
    targets: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        for name, (keys, threshold) in (("root", self.root), ("targets", self.targets)):
            if not 1 <= threshold <= keys <= 16:
                raise SchemaError(f"{name}: {threshold} of {keys} keys is no threshold; 1 <= threshold <= keys <= 16")

    def of(self, role: str) -> tuple[int, int]:
        """Keys and threshold of a role."""
        return {"root": self.root, "targets": self.targets}.get(role, (1, 1))


class KeyFolder:
    """The PEM files `<role>-<n>.pem` of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def generate(self, plan: KeyPlan) -> None:
        """Make all keys of a plan.

        Raises:
            RefusedError: the folder already holds keys; they are never overwritten.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if any(self.folder.glob("*.pem")):
            raise RefusedError(f"{self.folder} already holds keys, which are never overwritten; give another folder with --keys")
        for role in ROLES:
            for number in range(1, plan.of(role)[0] + 1):
                private = Ed25519PrivateKey.generate()
                write_atomic(self.folder / f"{role}-{number}.pem", _pem(private), mode=0o600)

    def signers(self, role: str) -> list[Signer]:
        """The role's keys that are here; none if they are offline.

        Raises:
            RefusedError: a key is unreadable, or others than its owner may read it.
        """
        return [self._load(path) for path in sorted(self.folder.glob(f"{role}-*.pem"))]

    def add(self, role: str) -> Key:
        """Make one more key of a role, next to those that are here; its public half.

        Raises:
            RefusedError: it cannot be written.
        """
        taken = [
            int(number) for path in self.folder.glob(f"{role}-*.pem") if (number := path.stem.rpartition("-")[2]).isdecimal()
        ]
        return new_key(self.folder / f"{role}-{max(taken, default=0) + 1}.pem")

    def _load(self, path: Path) -> Signer:
        return load_signer(path)


def new_key(path: Path) -> Key:
    """Make a private key in a file, encrypted if there is a passphrase; its public half.

    Raises:
        RefusedError: there is a file already.
    """
    if path.exists():
        raise RefusedError(f"{path}: there is a file already, and keys are never overwritten")
    private = Ed25519PrivateKey.generate()
    write_atomic(path, _pem(private), mode=0o600)
    return CryptoSigner(private).public_key


def load_signer(path: Path) -> Signer:
    """Read a private key.

    Raises:
        RefusedError: it is unreadable, encrypted with another passphrase, or others than its owner may read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise RefusedError(f"{path} may be read by others than its owner; chmod 600 it, and think whether it was")
        body = _read(path)
        return CryptoSigner(load_pem_private_key(body, _passphrase() if b"ENCRYPTED" in body else None))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RefusedError(
            f"{path} is no usable private key: {error}; the passphrase of an encrypted one is ${PASSPHRASE}"
        ) from error


def _passphrase() -> bytes | None:
    found = os.environ.get(PASSPHRASE, "")
    return found.encode() if found else None


def _pem(private: Ed25519PrivateKey) -> bytes:
    passphrase = _passphrase()
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(64 * 1024)


def models_folder(config: CoreConfig) -> Path:
    """The repository: `<lake>/models`."""
    return config.lake_root / "models"


def keys_folder(config: CoreConfig) -> Path:
    """The signing keys: `models` of the configuration, else `model-keys` next to the lake. Never inside the lake."""
    return Path(config.models) if config.models else config.lake_root.parent / "model-keys"
