"""A policy: tagging rules that a data scientist writes as YAML and reviews like code. The document only; no evaluation.

A rule says `tag` when its SQL expression is true for a row. `keep`, `sample` and `priority` are for the device: what it
stores, how much of it, and what it gives up last. `inspect` names what computes further columns from a payload. A policy's
version is the hash of its content, so a tag always tells exactly which text gave it.
"""

import hashlib
import re
from typing import Any

import msgspec

from schemas.contract import ColumnType
from schemas.edge_policy import EdgeUpload
from schemas.errors import PolicyDocumentError, SchemaError
from schemas.ids import StreamName, encode_json

_POLICY_ID = re.compile(r"[a-z][a-z0-9-]{0,62}")
_TAG = re.compile(r"[a-z][a-z0-9_]{0,62}(:[a-z0-9_.-]{1,62})?")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INSPECTOR = re.compile(r"[a-z][a-z0-9_-]{0,62}")
MAX_RULES = 1_000
MAX_EDGE_RULES = 50
MAX_EXPRESSION_CHARS = 4_000
MAX_PRIORITY = 1_000_000


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """Give `tag` (a word, or `name:value`) to every row for which the expression `when` is true."""

    tag: str
    when: str
    description: str = ""

    def __post_init__(self) -> None:
        if not _TAG.fullmatch(self.tag):
            raise PolicyDocumentError(f"tag {self.tag[:80]!r} must be a word of a-z, 0-9 and '_', or name:value")
        _check_expression(f"rule for {self.tag}", self.when)

    @property
    def value(self) -> tuple[str, str] | None:
        """Name and value of a value tag such as `weather:fog`; None for a word."""
        name, colon, value = self.tag.partition(":")
        return (name, value) if colon else None


class KeepRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """On the device: a sample for which `when` is true is kept, whatever `sample` says."""

    when: str
    description: str = ""

    def __post_init__(self) -> None:
        _check_expression("keep", self.when)


class SampleRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """On the device: of the samples for which `when` is true the share `rate` is kept, 0 for none, evenly spread.

    With `pressure` only while the spool is filled to that share or more.
    """

    when: str
    rate: float
    pressure: float = 0.0
    description: str = ""

    def __post_init__(self) -> None:
        _check_expression("sample", self.when)
        if not 0 <= self.rate <= 1 or not 0 <= self.pressure <= 1:
            raise PolicyDocumentError(f"sample: rate {self.rate} and pressure {self.pressure} must be 0 to 1")


class PriorityRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """On the device: what a sample is worth when the spool is full; the lowest goes first. Unnamed samples are worth 100."""

    when: str
    priority: int
    description: str = ""

    def __post_init__(self) -> None:
        _check_expression("priority", self.when)
        if not 0 <= self.priority <= MAX_PRIORITY:
            raise PolicyDocumentError(f"priority {self.priority} must be 0 to {MAX_PRIORITY:,}")


class InspectStep(msgspec.Struct, frozen=True, omit_defaults=True):
    """Columns computed for this policy's rules.

    Attributes:
        use: an inspector's name; a user's own is named by `file` and `function`, or is an entry point of this name.
        file: a file next to the policy: Python code, or an ONNX model.
        function: the name of the function or class in it.
        code: the SHA-256 of the file, under which the lake keeps it; put in when the policy is loaded.
        columns: of a user's function: the columns it gives, with their types; of others none.
        options: options of the inspector.
        max_ms: of a user's function: how long one sample may take.
        max_memory_mib: of a user's function: its address space.
    """

    use: str
    file: str = ""
    function: str = ""
    code: str = ""
    columns: dict[str, ColumnType] = {}
    options: dict[str, str | int | float | bool] = {}
    max_ms: int = 1_000
    max_memory_mib: int = 1_024

    def __post_init__(self) -> None:
        if not _INSPECTOR.fullmatch(self.use):
            raise PolicyDocumentError(f"inspector {self.use[:80]!r} must be of a-z, 0-9, '-' and '_'")
        if self.file and not _FILE.fullmatch(self.file):
            raise PolicyDocumentError(f"inspector {self.use}: file {self.file[:80]!r} must be a plain name next to the policy")
        if self.code and not _SHA256.fullmatch(self.code):
            raise PolicyDocumentError(f"inspector {self.use}: code must be a SHA-256")
        if self.file and self.file.endswith(".py") and not (self.function and self.columns):
            raise PolicyDocumentError(f"inspector {self.use}: a Python file needs its function and the columns it gives")
        if not 1 <= self.max_ms <= 600_000 or not 64 <= self.max_memory_mib <= 65_536:
            raise PolicyDocumentError(f"inspector {self.use}: max_ms is 1..600000, max_memory_mib 64..65536")


class Example(msgspec.Struct, frozen=True, omit_defaults=True):
    """A test in the policy itself: a row with these column values, lists among them, must get exactly these tags."""

    row: dict[str, str | int | float | bool | list[str | int | float | bool | None] | None]
    tags: tuple[str, ...] = ()


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rules for the rows of `streams`.

    Raises:
        PolicyDocumentError: an id, stream, rule or example is malformed.
    """

    id: str
    streams: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    owner: str = ""
    description: str = ""
    examples: tuple[Example, ...] = ()
    keep: tuple[KeepRule, ...] = ()
    sample: tuple[SampleRule, ...] = ()
    priority: tuple[PriorityRule, ...] = ()
    inspect: tuple[InspectStep, ...] = ()
    upload: EdgeUpload | None = None

    def __post_init__(self) -> None:
        if not _POLICY_ID.fullmatch(self.id):
            raise PolicyDocumentError(f"policy id {self.id[:80]!r} must be of a-z, 0-9 and '-'")
        if not self.streams or not (self.rules or self.has_edge_part) or len(self.rules) > MAX_RULES:
            raise PolicyDocumentError(f"policy {self.id}: needs at least one stream and 1..{MAX_RULES} rules")
        if len(self.keep) + len(self.sample) + len(self.priority) > MAX_EDGE_RULES:
            raise PolicyDocumentError(f"policy {self.id}: at most {MAX_EDGE_RULES} rules for the device")
        for stream in self.streams:
            StreamName(stream)

    @property
    def has_edge_part(self) -> bool:
        """Whether it says anything to the device."""
        return bool(self.keep or self.sample or self.priority or self.upload)

    @property
    def label(self) -> str:
        """Id and version, as they stand next to each tag."""
        return f"{self.id}@{self.version}"

    @property
    def version(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the content."""
        return hashlib.sha256(encode_json(self)).hexdigest()[:12]


def _check_expression(what: str, text: str) -> None:
    if not 0 < len(text) <= MAX_EXPRESSION_CHARS:
        raise PolicyDocumentError(f"{what}: the expression must have 1..{MAX_EXPRESSION_CHARS} characters")


def policy_from_plain(document: Any) -> Policy:
    """Build a policy from plain dicts and lists (as YAML gives them).

    Raises:
        PolicyDocumentError: not a policy; the message names the field.
    """
    try:
        return msgspec.convert(document, type=Policy)
    except (msgspec.MsgspecError, SchemaError) as error:
        raise PolicyDocumentError(f"not a policy: {error}") from error
