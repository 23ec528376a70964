"""One signed form for everything the core orders: which model to run, which rules to apply, and what later kinds add.

A message is `{"document": "<JSON text>", "signatures": [{"key": "<64 hex>", "signature": "<128 hex>"}]}`. What is signed
is the text exactly as it travels, behind a prefix that names the form and the kind (`signing_bytes`): a signature over
one kind never verifies as another, and never as the edge policies of the release before. Reading has two steps, because
nothing may be believed before the signature was checked: `decode_message` takes the message apart, `decode_document`
reads the text. Fields next to `document` and `signatures` are signed by nobody and are ignored.

A reader ignores fields it does not know, unless `critical` names them: then it refuses the document.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from schemas.errors import DocumentError, SchemaError
from schemas.ids import DeviceId, encode_json

MAX_DOCUMENT_BYTES = 1024 * 1024
MAX_SIGNATURES = 4
MAX_ADDRESSEES = 10_000
MAX_CRITICAL = 32
MAX_CRITICAL_CHARS = 128
# Readers in other languages hold numbers as doubles.
MAX_NUMBER = 2**53 - 1
EVERY_DEVICE = "all"
PUBLIC_KEY_HEX = re.compile(r"[0-9a-f]{64}")
_SIGNATURE_HEX = re.compile(r"[0-9a-f]{128}")
_PREFIX = b"catchment signed document 1\n"
_Body = TypeVar("_Body")


class DocumentKind(StrEnum):
    """Kinds of orders. Kinds to come: remote configuration, campaigns, erasures."""

    DESIRED = "desired"
    EDGE_POLICY = "edge-policy"


class Addressees(msgspec.Struct, frozen=True, omit_defaults=True):
    """The addressees of a document: devices by name, cohorts by name, or both.

    Attributes:
        devices: device ids.
        cohorts: names that a device's own configuration gives to it; `all` is every device.

    Raises:
        DocumentError: it names nobody, too many, or a name is malformed.
    """

    devices: tuple[str, ...] = ()
    cohorts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.devices) + len(self.cohorts)
        if not 0 < count <= MAX_ADDRESSEES:
            raise DocumentError(f"a document names 1 to {MAX_ADDRESSEES:,} devices and cohorts, not {count:,}")
        for name in (*self.devices, *self.cohorts):
            DeviceId(name)

    def covers(self, device: str, cohorts: frozenset[str]) -> bool:
        """Whether the document is for this device, which belongs to these cohorts and to `all`."""
        return device in self.devices or any(name == EVERY_DEVICE or name in cohorts for name in self.cohorts)


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """The signed content of a document.

    Attributes:
        kind: what it orders; it is in the signed bytes a second time, as the verifier expects it.
        counter: grows with every document of the kind for a device; a device never goes back to a lower one.
        issued_ms: when it was signed, milliseconds since 1970.
        to: whom it is for.
        body: the order itself, an object of the kind's own form.
        not_before_ms: it must not be applied earlier; 0: at once.
        expires_ms: it must not be taken from then on; None: never. What was taken in time stays in force.
        critical: fields (`name`, `to.name`, `body.name`) that a reader must know; one that does not refuses the document.

    Raises:
        DocumentError: a number is out of bounds, or the times contradict each other.
    """

    kind: str
    counter: int
    issued_ms: int
    to: Addressees
    body: msgspec.Raw
    not_before_ms: int = 0
    expires_ms: int | None = None
    critical: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        numbers = (self.counter - 1, self.issued_ms, self.not_before_ms, self.expires_ms or 0)
        if not all(0 <= number < MAX_NUMBER for number in numbers):
            raise DocumentError("a document's counter is 1 to 2^53-1, its times 0 to 2^53-1")
        if self.expires_ms is not None and self.expires_ms <= max(self.issued_ms, self.not_before_ms):
            raise DocumentError("a document expires before it was issued, or before it is valid")
        if len(self.critical) > MAX_CRITICAL or any(len(name) > MAX_CRITICAL_CHARS for name in self.critical):
            raise DocumentError(f"a document marks at most {MAX_CRITICAL} fields as critical")


class DocumentSignature(msgspec.Struct, frozen=True):
    """One signature: the public key it is said to be of, and the signature itself, in lower-case hexadecimal."""

    key: str
    signature: str

    def __post_init__(self) -> None:
        if not PUBLIC_KEY_HEX.fullmatch(self.key) or not _SIGNATURE_HEX.fullmatch(self.signature):
            raise DocumentError("a signature has a key of 64 and a signature of 128 lower-case hexadecimal digits")


class SignedMessage(msgspec.Struct, frozen=True):
    """The message: the document's text, exactly as it was signed, and its signatures. During a change of keys there are two."""

    document: str
    signatures: tuple[DocumentSignature, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.signatures) <= MAX_SIGNATURES:
            raise DocumentError(f"a document has 1 to {MAX_SIGNATURES} signatures, not {len(self.signatures)}")


def encode_body(body: msgspec.Struct) -> msgspec.Raw:
    """The order's JSON: keys sorted, no white space, so that the same order is always the same bytes."""
    return msgspec.Raw(_canonical(body))


def encode_document(document: Document) -> str:
    """The JSON text to sign: keys sorted, no white space."""
    return _canonical(document).decode()


def signing_bytes(kind: str, text: str) -> bytes:
    """Return the signed bytes: the form, the kind that the verifier expects, and the text."""
    return _PREFIX + kind.encode() + b"\n" + text.encode()


def encode_message(signed: SignedMessage, older: Mapping[str, Any] | None = None) -> bytes:
    """The JSON bytes to publish, retained.

    Args:
        signed: the document.
        older: fields that agents of the release before read; nobody signs them, and who reads documents ignores them.
    """
    return encode_json({**(older or {}), **msgspec.to_builtins(signed)})


def decode_message(body: bytes, max_bytes: int = MAX_DOCUMENT_BYTES) -> SignedMessage:
    """Take a message apart; says nothing about the signatures' truth.

    Raises:
        DocumentError: not a signed message, too large, or a key stands in it twice.
    """
    if len(body) > max_bytes:
        raise DocumentError(f"signed document of {len(body):,} bytes is above the limit of {max_bytes:,}")
    try:
        signed = msgspec.json.decode(body, type=SignedMessage)
        _refuse_ambiguous(body)
        # A lone surrogate has no UTF-8, so nobody can have signed it.
        signed.document.encode()
    except (msgspec.MsgspecError, SchemaError, ValueError, RecursionError) as error:
        raise DocumentError(f"not a signed document: {error}") from error
    return signed


def decode_document(text: str, kind: DocumentKind, body_type: type[msgspec.Struct]) -> Document:
    """Read the signed text of a document that must be of this kind.

    Args:
        text: as it was signed.
        kind: the kind that belongs to where the message came from.
        body_type: the form of the kind's body, for what this reader knows.

    Raises:
        DocumentError: malformed, of another kind, a key stands in it twice, or it needs a reader that knows more.
    """
    try:
        document = msgspec.json.decode(text.encode(), type=Document)
        _refuse_ambiguous(text)
    except (msgspec.MsgspecError, SchemaError, ValueError, RecursionError) as error:
        raise DocumentError(f"not a document: {error}") from error
    if document.kind != kind:
        raise DocumentError(f"the document is of kind {document.kind[:40]!r}, not {kind.value!r}")
    unknown = sorted(set(document.critical) - _known_fields(body_type))
    if unknown:
        raise DocumentError(f"the document needs a newer agent: {', '.join(unknown)[:200]} is critical and unknown here")
    return document


def decode_body(document: Document, body_type: type[_Body]) -> _Body:
    """Read the order in a document.

    Raises:
        DocumentError: not of that form.
    """
    try:
        return msgspec.json.decode(document.body, type=body_type)
    except (msgspec.MsgspecError, SchemaError, ValueError, RecursionError) as error:
        raise DocumentError(f"the body of the {document.kind} document is malformed: {error}") from error


def body_digest(document: Document) -> str:
    """The SHA-256 of the order alone: the same order, signed again with another time or key, has the same."""
    return hashlib.sha256(bytes(document.body)).hexdigest()


def _canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted", enc_hook=_plain)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} is no part of the language")


def _known_fields(body_type: type[msgspec.Struct]) -> frozenset[str]:
    def names(form: type[msgspec.Struct], prefix: str) -> set[str]:
        return {prefix + field.encode_name for field in msgspec.structs.fields(form)}

    return frozenset(names(Document, "") | names(Addressees, "to.") | names(body_type, "body."))


def _refuse_ambiguous(text: str | bytes) -> None:
    """Refuse what two readers may read differently: a key that stands twice, and numbers that JSON does not have."""
    json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise DocumentError(f"the key {name[:80]!r} stands twice in one object")
        found[name] = value
    return found


def _no_constant(name: str) -> Any:
    raise DocumentError(f"{name} is not JSON")
