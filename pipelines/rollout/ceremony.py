"""The key ceremony: a new root is drafted, signed on one machine after the other, read aloud, and installed.

A root that has expired is replaced the same way: devices follow any chain of roots, and judge the last one's expiry alone.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root
from tuf.api.serialization import DeserializationError

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import RefusedError
from pipelines.rollout.keys import ROLES
from pipelines.rollout.role_files import RoleFiles

_MAX_BYTES = 512_000


def draft_root(files: RoleFiles, keys: Mapping[str, Iterable[Key]]) -> Metadata[Root]:
    """The next root, unsigned: expiry from now on, and other keys for the roles named."""
    root = files.root()
    root.version += 1
    root.expires = files.expiry("root")
    for role, fresh in keys.items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for key in fresh:
            root.add_key(key, role)
        if len(root.roles[role].keyids) < root.roles[role].threshold:
            raise RefusedError(
                f"{root.roles[role].threshold} keys of the role {role} must sign, and {len(root.roles[role].keyids)} are named"
            )
    return Metadata(root)


def read_draft(path: Path) -> Metadata[Root]:
    """Read a drafted root.

    Raises:
        RefusedError: not root metadata.
    """
    try:
        with path.open("rb") as file:
            document = Metadata.from_bytes(file.read(_MAX_BYTES))
    except (OSError, DeserializationError, RepositoryError) as error:
        raise RefusedError(f"{path}: not root metadata: {error}") from error
    if not isinstance(document.signed, Root):
        raise RefusedError(f"{path}: {type(document.signed).__name__} metadata, not root metadata")
    return document


def sign_draft(document: Metadata[Root], signers: Iterable[Signer]) -> int:
    """Add signatures; how many there are now."""
    for signer in signers:
        document.sign(signer, append=True)
    return len(document.signatures)


def check_draft(files: RoleFiles, document: Metadata[Root]) -> tuple[list[str], list[str]]:
    """Compare a drafted root with the one in force.

    Returns:
        What it changes, in lines to read aloud; and what it lacks before it can be installed.
    """
    old, new = files.root(), document.signed
    changes = [f"version {old.version} -> {new.version}", f"expires {old.expires:%Y-%m-%d} -> {new.expires:%Y-%m-%d}"]
    for role in ROLES:
        before, after = old.roles[role], new.roles[role]
        changes += [f"{role}: without key {keyid}" for keyid in before.keyids if keyid not in after.keyids]
        changes += [f"{role}: with key {keyid}" for keyid in after.keyids if keyid not in before.keyids]
        if before.threshold != after.threshold:
            changes.append(f"{role}: {before.threshold} -> {after.threshold} keys must sign")
    lacks = [] if new.version == old.version + 1 else [f"it is version {new.version}, and the next one is {old.version + 1}"]
    for name, root in (("in force", old), ("drafted", new)):
        result = root.get_verification_result("root", document.signed_bytes, document.signatures)
        if not result.verified:
            lacks.append(f"{len(result.signed)} of the {result.threshold} signatures that the root {name} asks for")
    if new.expires <= files.now():
        lacks.append("it has expired")
    return changes, lacks


def install_root(files: RoleFiles, document: Metadata[Root]) -> Path:
    """Put a signed root in force.

    Raises:
        RefusedError: something is missing that devices ask for.
    """
    _, lacks = check_draft(files, document)
    if lacks:
        raise RefusedError(f"devices would refuse this root: {'; '.join(lacks)}")
    path = files.folder / f"{document.signed.version}.root.json"
    write_atomic(path, document.to_bytes(), mode=0o644)
    return path
