"""The files that inspect steps name: bound to a policy by their hash, so that its version tells exactly what ran."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from catchment.runtime.atomic_files import sync_folder
from pipelines.errors import ConfigError, CorruptLakeError
from pipelines.lake.lake import Lake
from schemas.policy import InspectStep, Policy

MAX_CODE_BYTES = 512 * 1024 * 1024


def code_path(lake: Lake, digest: str) -> Path:
    """Return the path of a step's file in the lake."""
    return lake.root / "policies" / "code" / digest


def bind_code(policy: Policy, folder: Path) -> Policy:
    """The policy with the hash of each file that its steps name.

    Raises:
        ConfigError: a file cannot be read.
    """
    if not any(step.file for step in policy.inspect):
        return policy
    return msgspec.structs.replace(policy, inspect=tuple(_bound(step, folder) for step in policy.inspect))


def store_code(lake: Lake, policies: Iterable[Policy], folder: Path) -> None:
    """Copy the steps' files from beside the policies into the lake, each once.

    Raises:
        ConfigError: a file cannot be read, or is no longer what the policy was loaded with.
    """
    for step in (step for policy in policies for step in policy.inspect if step.code):
        path = code_path(lake, step.code)
        if lake.local(path).exists():
            continue
        body = _read(folder / step.file)
        if hashlib.sha256(body).hexdigest() != step.code:
            raise ConfigError(f"{folder / step.file}: changed while the policy was applied; apply it again")
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
        lake.put(path, body)


def checked_code(lake: Lake, step: InspectStep) -> Path:
    """The step's file in the lake, its bytes compared with its name.

    Raises:
        CorruptLakeError: it is gone, or holds something else.
    """
    path = lake.local(code_path(lake, step.code))
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptLakeError(f"{path}: inspector {step.use}'s code cannot be read ({error}); apply its policy again") from error
    if found != step.code:
        raise CorruptLakeError(f"{path}: its bytes do not match its name; delete it and apply the policy again")
    return path


def _bound(step: InspectStep, folder: Path) -> InspectStep:
    if not step.file:
        return step
    return msgspec.structs.replace(step, code=hashlib.sha256(_read(folder / step.file)).hexdigest())


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_CODE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CODE_BYTES} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); an inspector's file lies next to its policy") from error
