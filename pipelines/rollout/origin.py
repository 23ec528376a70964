"""Where a model comes from: the training set, the metrics and the code, signed with it and written into its ONNX file."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipelines.errors import NotFoundError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.rollout.onnx_metadata import read_metadata
from pipelines.training.catalogue import set_folder
from pipelines.training.manifest import open_set_file
from schemas.errors import SchemaError
from schemas.model_origin import ModelOrigin

_PREFIX = "catchment."
_SET, _MANIFEST, _CODE, _METRICS = (f"{_PREFIX}{name}" for name in ("set", "manifest_sha256", "code", "metrics"))
_MAX_METRICS_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class OriginCheck:
    """An origin, and whether the lake at hand knows its set: `same`, `differs`, `absent`; None where no set is named."""

    origin: ModelOrigin
    set_here: str | None


def origin_of_set(lake: Lake, reference: str, code: str = "", metrics: Path | None = None) -> ModelOrigin:
    """The origin of a model that was trained on a set of the lake.

    Args:
        lake: holds the set.
        reference: `name` (its newest version) or `name/version`.
        code: revision of the training code.
        metrics: JSON file with an object of numbers.

    Raises:
        NotFoundError: there is no such set, or no such file.
        RefusedError: the metrics are no object of numbers, or something is too long.
    """
    folder = set_folder(lake, reference)
    name = f"{folder.parent.name}/{folder.name}"
    try:
        return ModelOrigin(name, manifest_digest(folder), code, {} if metrics is None else _metrics(metrics))
    except SchemaError as error:
        raise RefusedError(str(error)) from error


def origin_in(onnx: bytes) -> ModelOrigin | None:
    """The origin that an ONNX file names; None: it names none.

    Raises:
        RefusedError: not an ONNX file, or what it says is malformed.
    """
    found = {key: value for key, value in read_metadata(onnx).items() if key.startswith(_PREFIX)}
    if not found:
        return None
    try:
        metrics = msgspec.json.decode(found.get(_METRICS, "{}"), type=dict[str, float])
        return ModelOrigin(found.get(_SET, ""), found.get(_MANIFEST, ""), found.get(_CODE, ""), metrics)
    except (SchemaError, msgspec.MsgspecError) as error:
        raise RefusedError(f"the ONNX file's origin ({_PREFIX}*) is malformed: {error}") from error


def origin_entries(origin: ModelOrigin) -> dict[str, str]:
    """What is written into an ONNX file."""
    entries = {_SET: origin.training_set, _MANIFEST: origin.manifest_sha256, _CODE: origin.code}
    if origin.metrics:
        entries[_METRICS] = json.dumps(origin.metrics, sort_keys=True)
    return {key: value for key, value in entries.items() if value}


def check_origin(lake: Lake, origin: ModelOrigin) -> OriginCheck:
    """Compare an origin with the set of its name in a lake."""
    if not origin.training_set:
        return OriginCheck(origin, None)
    try:
        digest = manifest_digest(set_folder(lake, origin.training_set))
    except (NotFoundError, RefusedError):
        return OriginCheck(origin, "absent")
    return OriginCheck(origin, "same" if digest == origin.manifest_sha256 else "differs")


def manifest_digest(folder: Path) -> str:
    """SHA-256 of the manifest of a set's version: it stands for every file of the set.

    Raises:
        CorruptLakeError, BadReferenceError: it cannot be read, or is a link.
    """
    with open_set_file(folder, "manifest.json") as file:
        return hashlib.sha256(file.read()).hexdigest()


def _metrics(path: Path) -> dict[str, float]:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_METRICS_BYTES + 1), type=dict[str, float])
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file") from error
    except (OSError, msgspec.MsgspecError) as error:
        raise RefusedError(f'{path}: not a JSON object of numbers, as in {{"accuracy": 0.97}}: {error}') from error
