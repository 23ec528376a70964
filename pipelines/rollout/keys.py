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
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Signer  # type: ignore[attr-defined]  # exported, but not in __all__

from catchment.runtime.atomic_files import write_atomic
from pipelines.config import CoreConfig
from pipelines.errors import RefusedError
from schemas.errors import SchemaError

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
                body = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
                write_atomic(self.folder / f"{role}-{number}.pem", body, mode=0o600)

    def signers(self, role: str) -> list[Signer]:
        """The role's keys that are here; none if they are offline.

        Raises:
            RefusedError: a key is unreadable, or others than its owner may read it.
        """
        return [self._load(path) for path in sorted(self.folder.glob(f"{role}-*.pem"))]

    def _load(self, path: Path) -> Signer:
        if path.stat().st_mode & 0o077:
            raise RefusedError(f"{path} may be read by others than its owner; chmod 600 it, and think whether it was")
        try:
            return CryptoSigner(load_pem_private_key(_read(path), None))
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise RefusedError(f"{path} is no usable private key: {error}") from error


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        return file.read(64 * 1024)


def models_folder(config: CoreConfig) -> Path:
    """The repository: `<lake>/models`."""
    return config.lake_root / "models"


def keys_folder(config: CoreConfig) -> Path:
    """The signing keys: `models` of the configuration, else `model-keys` beside the lake. Never inside the lake."""
    return Path(config.models) if config.models else config.lake_root.parent / "model-keys"
