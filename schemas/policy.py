"""A policy: tagging rules that a data scientist writes as YAML and reviews like code. The document only; no evaluation.

A rule says `tag` when its SQL expression is true for a row. A policy's version is the hash of its content, so a tag
always tells exactly which text gave it.
"""

import hashlib
import re
from typing import Any

import msgspec

from schemas.errors import PolicyDocumentError, SchemaError
from schemas.ids import StreamName

_POLICY_ID = re.compile(r"[a-z][a-z0-9-]{0,62}")
_TAG = re.compile(r"[a-z][a-z0-9_]{0,62}(:[a-z0-9_.-]{1,62})?")
MAX_RULES = 1_000
MAX_EXPRESSION_CHARS = 4_000


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """Give `tag` (a word, or `name:value`) to every row for which the expression `when` is true."""

    tag: str
    when: str
    description: str = ""

    def __post_init__(self) -> None:
        if not _TAG.fullmatch(self.tag):
            raise PolicyDocumentError(f"tag {self.tag[:80]!r} must be a word of a-z, 0-9 and '_', or name:value")
        if not 0 < len(self.when) <= MAX_EXPRESSION_CHARS:
            raise PolicyDocumentError(f"rule for {self.tag}: the expression must have 1..{MAX_EXPRESSION_CHARS} characters")


class Example(msgspec.Struct, frozen=True, omit_defaults=True):
    """A test in the policy itself: a row with these column values must get exactly these tags."""

    row: dict[str, str | int | float | bool | None]
    tags: tuple[str, ...] = ()


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rules for the rows of `streams`.

    Raises:
        PolicyDocumentError: an id, stream, rule or example is malformed.
    """

    id: str
    streams: tuple[str, ...]
    rules: tuple[Rule, ...]
    owner: str = ""
    description: str = ""
    examples: tuple[Example, ...] = ()

    def __post_init__(self) -> None:
        if not _POLICY_ID.fullmatch(self.id):
            raise PolicyDocumentError(f"policy id {self.id[:80]!r} must be of a-z, 0-9 and '-'")
        if not self.streams or not self.rules or len(self.rules) > MAX_RULES:
            raise PolicyDocumentError(f"policy {self.id}: needs at least one stream and 1..{MAX_RULES} rules")
        for stream in self.streams:
            StreamName(stream)

    @property
    def version(self) -> str:
        """The first 12 hexadecimal digits of the SHA-256 of the content."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]


def policy_from_plain(document: Any) -> Policy:
    """Build a policy from plain dicts and lists (as YAML gives them).

    Raises:
        PolicyDocumentError: not a policy; the message names the field.
    """
    try:
        return msgspec.convert(document, type=Policy)
    except (msgspec.MsgspecError, SchemaError) as error:
        raise PolicyDocumentError(f"not a policy: {error}") from error
