"""Derive the columns of an `inspect` step, and a contract with them. No IO, and no library that reads pixels.

Inspected columns join the contract that a run pins: tables, statistics and rules then treat them as any other column, and a
device may fill one itself; the core computes those that are null. Patterns of the text inspector are for a linear-time engine:
no look-around, no back references.
"""

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from pipelines.errors import ConfigError
from schemas.contract import Column, ColumnType, Contract, PiiClass
from schemas.inspectors import PATTERNS, PICTURE_COLUMNS, VERSIONS
from schemas.policy import InspectStep, Policy

ERRORS = "inspect_errors"
_F64, _I32, _TEXT = ColumnType.FLOAT64, ColumnType.INT32, ColumnType.STRING
_LOCATION = PiiClass.LOCATION

_IMAGE = (
    *PICTURE_COLUMNS,
    Column("image_burst", _TEXT, description="epoch-seq of the first of a device's run of near-duplicates"),
    Column("image_burst_index", _I32, description="0 for the first of a run of near-duplicates"),
)
_EXIF = (
    Column("exif_make", _TEXT),
    Column("exif_model", _TEXT),
    Column("exif_software", _TEXT),
    Column("exif_taken_at", _TEXT, description="as the camera wrote it, without zone"),
    Column("exif_orientation", _I32),
    Column("exif_exposure_s", _F64, unit="s"),
    Column("exif_f_number", _F64),
    Column("exif_iso", _I32),
    Column("exif_latitude_deg", _F64, unit="deg", pii=_LOCATION),
    Column("exif_longitude_deg", _F64, unit="deg", pii=_LOCATION),
)


_OWN = "pattern_"
MAX_PATTERN_CHARS = 500


def step_columns(step: InspectStep) -> tuple[Column, ...]:
    """The columns that a step gives.

    Raises:
        ConfigError: the step's options do not say what its inspector needs.
    """
    if step.columns:
        return tuple(Column(name, type_) for name, type_ in step.columns.items())
    if step.use == "image":
        return _IMAGE
    if step.use == "exif":
        return _EXIF
    if step.use == "text":
        names = [*PATTERNS, *own_patterns(step.options)]
        return tuple(Column(f"text_{name}", _I32, description=f"how often {name} occurs") for name in names)
    if step.use == "onnx":
        return _onnx_columns(step)
    known = ", ".join(VERSIONS)
    raise ConfigError(f"inspector {step.use!r} is not one of {known}; a user's own needs `columns` with the types it gives")


def step_digest(step: InspectStep) -> str:
    """Names what a step computes: the same digest gives the same columns for the same bytes."""
    identity = (
        VERSIONS.get(step.use, 0),
        step.use,
        step.code,
        step.function,
        sorted(step.columns.items()),
        sorted(step.options.items()),
    )
    return hashlib.sha256(msgspec.json.encode(identity)).hexdigest()[:16]


def steps_of(policies: Iterable[Policy], stream: str) -> tuple[InspectStep, ...]:
    """The steps for a stream, each once."""
    found = {step_digest(step): step for policy in policies if stream in policy.streams for step in policy.inspect}
    return tuple(found.values())


def inspected(contract: Contract, policies: Iterable[Policy]) -> Contract:
    """The contract with the columns that the policies' steps add to its stream; the contract itself if there are none.

    Raises:
        ConfigError: two steps give one column, or a step a column that the contract has with another type.
    """
    steps = steps_of(policies, contract.name)
    if not steps:
        return contract
    known = {column.name: column for column in contract.columns}
    # What a user's inspector says of a failure may be what it has read.
    added: dict[str, Column] = {ERRORS: Column(ERRORS, _TEXT, pii=PiiClass.TEXT, description="what an inspector could not do")}
    for step in steps:
        for column in step_columns(step):
            if column.name in added:
                raise ConfigError(f"stream {contract.name}: two inspect steps give column {column.name}; rename one")
            if column.name in known and known[column.name].type is not column.type:
                raise ConfigError(
                    f"inspector {step.use}: contract {contract.name} has {column.name} as {known[column.name].type}; rename it"
                )
            added[column.name] = column
    new = tuple(column for name, column in added.items() if name not in known)
    return msgspec.structs.replace(contract, columns=(*contract.columns, *new)) if new else contract


def _onnx_columns(step: InspectStep) -> tuple[Column, ...]:
    name = str(step.options.get("name", "model"))
    if step.options.get("kind", "classification") == "embedding":
        return (Column(f"{name}_embedding", ColumnType.BINARY, description="little-endian float32"), Column(f"{name}_norm", _F64))
    if step.options.get("kind", "classification") == "detection":
        return (Column(f"{name}_count", _I32), Column(f"{name}_best", _TEXT), Column(f"{name}_score", _F64))
    return (Column(f"{name}_label", _TEXT), Column(f"{name}_score", _F64), Column(f"{name}_margin", _F64))


def own_patterns(options: Mapping[str, object]) -> dict[str, str]:
    """The patterns that a step's options add: `pattern_<name>: <regular expression>`.

    Raises:
        ConfigError: one is not text, or too long.
    """
    found: dict[str, str] = {}
    for key, pattern in options.items():
        if not key.startswith(_OWN):
            continue
        if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN_CHARS:
            raise ConfigError(f"inspector text: {key} must be a regular expression of 1..{MAX_PATTERN_CHARS} characters")
        found[key.removeprefix(_OWN)] = pattern
    return found
