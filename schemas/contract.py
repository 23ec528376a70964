"""A contract describes the samples of one stream. This is the compiled form of an ODCS document, small enough for a device.

The authored form is Open Data Contract Standard 3 YAML (`schemas/contracts/*.odcs.yaml`, read by `pipelines.contracts`);
the compiled form is JSON, ships next to it, and a test keeps the two equal. `builtin_contract` reads those that ship.

A contract declares as well which values must not leave a device as they are; the device redacts them before storing.
"""

import hashlib
import re
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any, Literal

import msgspec

from schemas.envelope import EVENT_TIME, PAYLOAD, PAYLOAD_SHA256
from schemas.errors import ContractError, SchemaError
from schemas.ids import StreamName, encode_json

HASH_CHARS = 32
MASK = "***"
_TEXT = ("string",)
_COARSE = ("int32", "int64", "float32", "float64", "timestamp")


class Redact(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The redaction of one column.

    Attributes:
        how: drop: null; mask: `***` and the last `keep` characters; hash: 32 hexadecimal digits of HMAC-SHA-256 under the
            device's key, equal for equal texts; coarsen: down to whole steps.
        keep: characters at the end that a mask leaves.
        step: of coarsen: in the column's own unit, seconds for a timestamp.
    """

    how: Literal["drop", "mask", "hash", "coarsen"]
    keep: int = 0
    step: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 64 or (self.keep and self.how != "mask"):
            raise ContractError("redact: keep is of how: mask, 0 to 64")
        if (self.step is not None) != (self.how == "coarsen") or (self.step is not None and not 0 < self.step < 1e15):
            raise ContractError("redact: step, above 0, belongs to how: coarsen and to it alone")

    def problem_with(self, kind: str, *, required: bool, has_list: bool, max_length: int | None) -> str:
        """Return the reason why a column of this kind cannot be redacted so; empty if it can."""
        if self.how == "drop":
            return "a required column cannot be dropped" if required else ""
        if self.how == "coarsen":
            return "" if kind in _COARSE else "coarsen needs a number or a timestamp"
        if kind not in _TEXT or has_list:
            return f"{self.how} needs type string without a list of allowed values"
        needed = HASH_CHARS if self.how == "hash" else len(MASK) + self.keep
        return f"{self.how} makes {needed} characters, above max_length" if needed > (max_length or needed) else ""


class ImageRedact(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The regions of a picture that are made unreadable.

    Attributes:
        how: fill: black; blur: so strongly that nothing below an eighth of the box is left.
        boxes: x, y, width, height as shares (0 to 1) of the picture: the same in every picture.
        column: a string column that tells each picture's own boxes: a JSON list of [x, y, width, height] in pixels, or
            labelme's object with shapes. A picture of which it says nothing (null) cannot be redacted; [] is "none".
    """

    how: Literal["fill", "blur"]
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    column: str = ""

    def __post_init__(self) -> None:
        if not self.boxes and not self.column:
            raise ContractError("payload redact: give boxes, or the column that has them")
        for x, y, width, height in self.boxes:
            if not (0 <= x < 1 and 0 <= y < 1 and 0 < width <= 1 - x + 1e-9 and 0 < height <= 1 - y + 1e-9):
                raise ContractError("payload redact: a box is x, y, width, height as shares of the picture, within it")


MAX_CONTRACT_BYTES = 1024 * 1024
MAX_SOURCE_NAME_CHARS = 1_024
_COLUMN = re.compile(r"[a-z][a-z0-9_]{0,62}")
_VERSION = re.compile(r"\d{1,6}\.\d{1,6}\.\d{1,6}")

# Columns every row of a stream table has next to the contract's; a contract may not use these names.
RESERVED_COLUMNS = frozenset({
    EVENT_TIME, PAYLOAD, PAYLOAD_SHA256, "device", "stream", "epoch", "seq", "received_at", "run", "contract_version",
    "tags", "tag_rules", "payload_shard", "payload_row", "payload_offset", "payload_length",
})  # fmt: skip

NAMES = (
    "agent_heartbeat",
    "camera_frame",
    "can_frame",
    "can_signal",
    "log_line",
    "network_flow",
    "slide",
    "vehicle_telemetry",
)
# Versions that devices in the field may still write; the core always reads them.
_PAST = (
    "camera_frame-1.0.0",
    "can_signal-1.0.0",
    "network_flow-1.0.0",
    "network_flow-1.1.0",
    "slide-1.0.0",
    "vehicle_telemetry-1.0.0",
)


class ColumnType(StrEnum):
    """The types a column may have; each names the Arrow type it becomes."""

    STRING = "string"
    BOOL = "bool"
    INT32 = "int32"
    INT64 = "int64"
    FLOAT32 = "float32"
    FLOAT64 = "float64"
    TIMESTAMP = "timestamp"  # timestamp[us, UTC]
    BINARY = "binary"
    LIST_STRING = "list<string>"
    LIST_BOOL = "list<bool>"
    LIST_INT32 = "list<int32>"
    LIST_INT64 = "list<int64>"
    LIST_FLOAT32 = "list<float32>"
    LIST_FLOAT64 = "list<float64>"
    VECTOR_FLOAT32 = "vector<float32>"  # `length` of the column says how many
    VECTOR_FLOAT64 = "vector<float64>"
    STRUCT = "struct"  # `fields` of the column says what is in it
    LIST_STRUCT = "list<struct>"  # a list of such: boxes, polygons


LIST_TYPES = frozenset(type_ for type_ in ColumnType if type_.startswith("list<"))
VECTOR_TYPES = frozenset({ColumnType.VECTOR_FLOAT32, ColumnType.VECTOR_FLOAT64})
STRUCT_TYPES = frozenset({ColumnType.STRUCT, ColumnType.LIST_STRUCT})
NESTED_TYPES = LIST_TYPES | VECTOR_TYPES | {ColumnType.STRUCT}
NUMERIC_TYPES = frozenset({ColumnType.INT32, ColumnType.INT64, ColumnType.FLOAT32, ColumnType.FLOAT64})


class PiiClass(StrEnum):
    """Classes of personal data in a column. Columns other than NONE keep out of table statistics."""

    NONE = "none"
    DEVICE = "device"
    LOCATION = "location"
    FACE = "face"
    PLATE = "plate"
    VOICE = "voice"
    TEXT = "text"


class Column(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One column: its type, and the bounds a value must keep to be accepted. NaN and infinities are always refused.

    `minimum` and `maximum` are inclusive; `max_length` counts characters (string), bytes (binary) or items (list).
    `length` is a vector's number of items, `fields` the columns of a struct or of a list's structs, `zone` the time zone that
    readers of a timestamp are shown it in: what is kept is always the instant. `source_name` is what the column is called in the
    files and messages that fill it (ODCS: physicalName); empty where that is `name`.
    """

    name: str
    type: ColumnType
    required: bool = False
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    allowed: tuple[str, ...] = ()
    max_length: int | None = None
    pii: PiiClass = PiiClass.NONE
    description: str = ""
    redact: Redact | None = None
    length: int | None = None
    fields: tuple["Column", ...] = ()
    zone: str = ""
    unique: bool = False  # counted in each run, and no reason to refuse: a run sees its own rows only
    source_name: str = ""

    def __post_init__(self) -> None:
        _check_shape(self)
        _check_source_name(self)
        if not _COLUMN.fullmatch(self.name) or self.name in RESERVED_COLUMNS:
            raise ContractError(
                f"column name {self.name[:80]!r} must be of a-z, 0-9 and '_', and not one of the standard columns"
            )
        if (self.minimum is not None or self.maximum is not None) and self.type not in NUMERIC_TYPES:
            raise ContractError(f"column {self.name}: a minimum or maximum needs a numeric type, not {self.type}")
        if self.allowed and self.type is not ColumnType.STRING:
            raise ContractError(f"column {self.name}: a list of allowed values needs type string, not {self.type}")
        if self.max_length is not None and self.type not in {ColumnType.STRING, ColumnType.BINARY} | LIST_TYPES:
            raise ContractError(f"column {self.name}: a maximum length needs type string, binary or a list, not {self.type}")
        if self.redact is not None:
            problem = self.redact.problem_with(
                self.type, required=self.required, has_list=bool(self.allowed), max_length=self.max_length
            )
            if problem:
                raise ContractError(f"column {self.name}: redact: {problem}")


def _check_shape(column: Column) -> None:
    """Check the attributes that only vectors, structs and timestamps have."""
    if (column.length is not None) != (column.type in VECTOR_TYPES) or not 1 <= (column.length or 1) <= 65_536:
        raise ContractError(f"column {column.name[:80]}: a vector, and nothing else, has a length of 1 to 65,536")
    if bool(column.fields) != (column.type in STRUCT_TYPES):
        raise ContractError(f"column {column.name[:80]}: a struct or a list of them, and nothing else, has fields")
    if any(field.type in STRUCT_TYPES for field in column.fields):
        raise ContractError(f"column {column.name[:80]}: a struct in a struct is not in the subset; write its fields out")
    if len({field.name for field in column.fields}) != len(column.fields):
        raise ContractError(f"column {column.name[:80]}: a field's name is used twice")
    if (twice := _repeated_source_name(column.fields)) is not None:
        raise ContractError(f"column {column.name[:80]}: two fields have the source name {twice[:80]!r}; keep one")
    if column.zone and column.type is not ColumnType.TIMESTAMP:
        raise ContractError(f"column {column.name[:80]}: only a timestamp has a time zone")


def _check_source_name(column: Column) -> None:
    if column.source_name != column.source_name.strip() or len(column.source_name) > MAX_SOURCE_NAME_CHARS:
        raise ContractError(
            f"column {column.name[:80]}: a source name has at most {MAX_SOURCE_NAME_CHARS} characters and no blanks around it"
        )


def _repeated_source_name(columns: tuple[Column, ...]) -> str | None:
    named = [column.source_name for column in columns if column.source_name]
    return next((name for name in named if named.count(name) > 1), None)


def item_of(column: Column) -> Column:
    """What a list or vector holds, as a column."""
    return Column("item", ColumnType(column.type.partition("<")[2].rstrip(">")), fields=column.fields)


class PayloadSpec(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The bytes that travel with each sample: which media types, how large at most, whether always there.

    `redact`: regions of a picture that must not leave the device.
    """

    media_types: tuple[str, ...]
    max_bytes: int
    required: bool = True
    redact: ImageRedact | None = None


class ChipSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """Cut the images of a stream: square chips of `size` px, neighbours sharing `overlap` px, at pyramid `level`."""

    name: str
    size: int
    overlap: int = 0
    level: int = 0

    def __post_init__(self) -> None:
        StreamName(self.name)
        if not 16 <= self.size <= 4096 or not 0 <= self.overlap < self.size or not 0 <= self.level < 32:
            raise ContractError(f"chip spec {self.name}: size 16..4096, overlap below size, level 0..31")


class QualityRule(msgspec.Struct, frozen=True):
    """A rule that every row must fulfil, in the expression language; a row for which it is false is rejected."""

    name: str
    expression: str


class Contract(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The form of the samples of stream `name` in contract version `version` (major.minor.patch).

    `event_time_step_s`: event times leave the device cut to whole steps of so many seconds.

    Raises:
        ContractError: the name, version or a column is malformed, or a column name is used twice.
    """

    name: str
    version: str
    columns: tuple[Column, ...]
    payload: PayloadSpec | None = None
    chips: tuple[ChipSpec, ...] = ()
    quality: tuple[QualityRule, ...] = ()
    retention_days: int | None = None
    owner: str = ""
    description: str = ""
    event_time_step_s: int | None = None

    def __post_init__(self) -> None:
        StreamName(self.name)
        if not _VERSION.fullmatch(self.version):
            raise ContractError(f"contract {self.name}: version {self.version[:40]!r} must be major.minor.patch")
        names = [column.name for column in self.columns]
        if len(set(names)) != len(names):
            raise ContractError(f"contract {self.name}: a column name is used twice")
        if (twice := _repeated_source_name(self.columns)) is not None:
            raise ContractError(f"contract {self.name}: two columns have the source name {twice[:80]!r}; keep one")
        if self.chips and self.payload is None:
            raise ContractError(f"contract {self.name}: chips need a payload")
        if self.event_time_step_s is not None and not 0 < self.event_time_step_s <= 366 * 86_400:
            raise ContractError(f"contract {self.name}: event_time_step_s must be within 1 second and a year")
        self._check_boxes_column()

    def _check_boxes_column(self) -> None:
        redact = self.payload.redact if self.payload is not None else None
        if redact is None or not redact.column:
            return
        column = self.column(redact.column)
        if column is None or column.type is not ColumnType.STRING:
            raise ContractError(f"contract {self.name}: payload redact: {redact.column!r} is no string column of it")

    @property
    def has_redaction(self) -> bool:
        """Whether anything of a sample must be changed before it is stored."""
        in_payload = self.payload is not None and self.payload.redact is not None
        in_column = any(inner.redact is not None for column in self.columns for inner in (column, *column.fields))
        return in_payload or self.event_time_step_s is not None or in_column

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form: what a run pins."""
        return hashlib.sha256(encode_contract(self)).hexdigest()

    def column(self, name: str) -> Column | None:
        """The column of that name."""
        return next((column for column in self.columns if column.name == name), None)


def encode_contract(contract: Contract) -> bytes:
    """The canonical JSON form: stable key order, defaults left out."""
    return encode_json(contract)


def decode_contract(body: bytes) -> Contract:
    """Read a compiled contract.

    Raises:
        ContractError: not a contract, or it contradicts itself.
    """
    if len(body) > MAX_CONTRACT_BYTES:
        raise ContractError(f"contract of {len(body)} bytes is above the limit of {MAX_CONTRACT_BYTES}")
    try:
        return msgspec.json.decode(body, type=Contract)
    except (msgspec.MsgspecError, SchemaError) as error:
        raise ContractError(f"not a compiled contract: {error}") from error


def contract_from_plain(document: Any) -> Contract:
    """Build a contract from plain dicts and lists.

    Raises:
        ContractError: not a contract, or it contradicts itself.
    """
    try:
        return msgspec.convert(document, type=Contract)
    except (msgspec.MsgspecError, SchemaError) as error:
        raise ContractError(f"not a contract: {error}") from error


@cache
def builtin_contract(name: str) -> Contract:
    """A contract that ships with Catchment.

    Raises:
        ContractError: there is none of that name.
    """
    if name not in NAMES:
        raise ContractError(
            f"no built-in contract {name[:80]!r}; there are {', '.join(NAMES)}. Give a compiled contract's path instead"
        )
    return decode_contract(resources.files("schemas.contracts").joinpath(f"{name}.json").read_bytes())


@cache
def past_contracts() -> tuple[Contract, ...]:
    """The earlier versions of what ships with Catchment."""
    folder = resources.files("schemas.contracts").joinpath("past")
    return tuple(decode_contract(folder.joinpath(f"{name}.json").read_bytes()) for name in _PAST)
