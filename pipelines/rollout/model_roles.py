"""Which TUF role vouches for which version: one for each model and hundred versions. Pure.

    targets             delegations alone
    <model>.<hundred>   `<model>/<version>.onnx`, and `<model>/<version>.json` with all that is said of it

A device reads two roles for a new version, however many there were. What a model answers to the golden input and what its
answers mean lie in the second file, which may be large; the roles say its length and hash.
"""

import re

from msgspec.structs import replace
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    TargetFile,
    Targets,
)

from schemas.errors import SchemaError
from schemas.ids import encode_json
from schemas.model import (
    MAX_DETAILS_BYTES,
    ModelSpec,
    details_path,
    encode_details,
    model_spec_from_plain,
    model_spec_to_plain,
)

VERSIONS_PER_ROLE = 100
WITHDRAWN = "withdrawn"
_MODEL_FILE = re.compile(r"([a-z][a-z0-9_-]{0,62})/([1-9][0-9]{0,15})\.onnx")
_MAX_LABELS_BYTES = 512


def role_of(model: str, version: int) -> str:
    """The role that vouches for a version."""
    return f"{model}.{version // VERSIONS_PER_ROLE}"


def role_paths(model: str, hundred: int) -> list[str]:
    """The patterns of the target paths that a role may vouch for."""
    return [f"{model}/{hundred}??.*"] if hundred else [f"{model}/?.*", f"{model}/??.*"]


def model_path(model: str, version: int) -> str:
    """Target path of a version's ONNX file."""
    return f"{model}/{version}.onnx"


def parse_model_path(path: str) -> tuple[str, int] | None:
    """Model and version of a target path; None: not an ONNX file."""
    found = _MODEL_FILE.fullmatch(path)
    return None if found is None else (found[1], int(found[2]))


def delegate(targets: Targets, role: str, keys: list[Key], threshold: int) -> bool:
    """Have the targets role hand a role's paths to it; whether that changed anything."""
    model, _, hundred = role.rpartition(".")
    delegations = targets.delegations or Delegations({}, {})
    roles = delegations.roles or {}
    keyids = [key.keyid for key in keys]
    known = roles.get(role)
    if known is not None and sorted(known.keyids) == sorted(keyids) and known.threshold == threshold:
        return False
    roles[role] = DelegatedRole(role, keyids, threshold, terminating=True, paths=role_paths(model, int(hundred)))
    used = {keyid for each in roles.values() for keyid in each.keyids}
    by_id = delegations.keys | {key.keyid: key for key in keys}
    targets.delegations = Delegations({keyid: by_id[keyid] for keyid in sorted(used)}, roles)
    return True


def delegated_roles(targets: Targets) -> list[str]:
    """Names of the roles below targets."""
    return sorted((targets.delegations.roles or {}) if targets.delegations is not None else ())


def withdrawn_versions(role: Targets) -> set[int]:
    """The versions that a role vouched for once and does not any more: their numbers are not given again."""
    found = role.unrecognized_fields.get(WITHDRAWN, [])
    return {number for number in found if isinstance(number, int)} if isinstance(found, list) else set()


def target_files(spec: ModelSpec, onnx: TargetFile) -> tuple[TargetFile, TargetFile, bytes]:
    """What a role says of a version: the entry of the ONNX file, that of its details, and the details themselves.

    Raises:
        SchemaError: the details are larger than a device takes.
    """
    details = encode_details(spec)
    if len(details) > MAX_DETAILS_BYTES:
        raise SchemaError(
            f"its labels and its {len(spec.golden):,} answers to the golden input have {len(details):,} bytes; "
            f"a device takes {MAX_DETAILS_BYTES:,}"
        )
    path = details_path(spec.name, spec.version)
    brief = replace(spec, golden=(), origin=None)
    # Agents of the release before read `catchment` alone. Labels too long for it are in the details, so such an agent
    # refuses the version instead of answering with numbers for labels.
    fits = len(encode_json(spec.labels)) <= _MAX_LABELS_BYTES
    about = model_spec_to_plain(brief) if fits else {"brief": encode_json(replace(brief, labels=())).decode()}
    fields = {**onnx.unrecognized_fields, "custom": {**about, "details": path}}
    entry = TargetFile(onnx.length, onnx.hashes, onnx.path, fields)
    return entry, TargetFile.from_data(path, details, ["sha256"]), details


def brief_spec(entry: TargetFile) -> ModelSpec:
    """What the role itself says of a version: without golden answers, and without labels where they are many.

    Raises:
        SchemaError: not a model's description.
    """
    custom = entry.custom
    if isinstance(custom, dict) and isinstance(custom.get("brief"), str):
        return model_spec_from_plain({"catchment": custom["brief"]})
    return model_spec_from_plain(custom)
