"""Signs documents as the core does, with keys of the test's own; and a device that decides about them without a process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from catchment.runtime.clock import Clock
from edge_agent.documents.gate import CounterFile, DocumentGate, DocumentInbox
from edge_agent.documents.signature import is_signed
from edge_agent.documents.trust import DocumentTrust
from edge_agent.errors import UntrustedDocumentError
from schemas.rollout import MAX_DESIRED_BYTES, Desired, DesiredModels
from schemas.signed_document import (
    Addressees,
    Document,
    DocumentKind,
    DocumentSignature,
    SignedMessage,
    encode_body,
    encode_document,
    encode_message,
    signing_bytes,
)

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
DEVICE = "line-3"


class FakeDirector:
    """Holds one key."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.public_key = self.key.public_key().public_bytes_raw().hex()

    def signature(self, text: str, kind: str = DocumentKind.DESIRED) -> DocumentSignature:
        return DocumentSignature(self.public_key, self.key.sign(signing_bytes(kind, text)).hex())

    def sign_text(self, text: str, kind: str = DocumentKind.DESIRED) -> bytes:
        """A message whose text may be anything."""
        return encode_message(SignedMessage(text, (self.signature(text, kind),)))

    def sign(self, document: Document) -> bytes:
        return self.sign_text(encode_document(document), document.kind)

    def order(self, counter: int, version: int = 1, **more: Any) -> bytes:
        """A desired state for DEVICE."""
        return self.sign(order(counter, version, **more))


def order(counter: int, version: int = 1, **more: Any) -> Document:
    """A desired state for DEVICE, unsigned."""
    models = more.pop("models", (wanted(version),))
    fields = {"to": Addressees(devices=(DEVICE,)), "kind": DocumentKind.DESIRED.value, **more}
    return Document(counter=counter, issued_ms=NOW_MS, body=encode_body(DesiredModels(models)), **fields)


def wanted(version: int, name: str = "defects") -> Desired:
    return Desired(f"{name}-{version}", name, version, f"{name}/{version}.onnx", 1)


class HandClock:
    """A clock moved by hand."""

    def __init__(self, now_ms: int = NOW_MS) -> None:
        self.wall_ms = now_ms
        self.steady_s = 0.0

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_s(self) -> float:
        return self.steady_s

    def sleep(self, seconds: float) -> None:
        self.steady_s += seconds
        self.wall_ms += int(seconds * 1000)


def check_here(signed: bytes, signatures: Sequence[tuple[str, str]]) -> None:
    """The check without its process."""
    if not any(is_signed(key, signature, signed) for key, signature in signatures):
        raise UntrustedDocumentError("the signature is not of a trusted key")


class OrderTaker:
    """A device's part for desired states: whom it trusts, what it noted on disk, what it was handed."""

    def __init__(
        self, folder: Path, *keys: str, device: str = DEVICE, cohorts: Sequence[str] = (), clock: Clock | None = None
    ) -> None:
        self.clock = clock or HandClock()
        self.counter = CounterFile(folder, DocumentKind.DESIRED, keys)
        trust = DocumentTrust(keys, device, frozenset(cohorts))
        self.gate = DocumentGate(
            DocumentKind.DESIRED, DesiredModels, trust, self.counter, self.clock, MAX_DESIRED_BYTES, check_here
        )
        self.inbox = DocumentInbox(DocumentKind.DESIRED, self.gate, self.counter, self.clock, MAX_DESIRED_BYTES)

    def take(self, body: bytes) -> tuple[int, ...] | None:
        """Hand a message in and decide; the versions wanted, None when it was not taken."""
        self.inbox.hand_in(body)
        return self.look()

    def look(self) -> tuple[int, ...] | None:
        models = self.inbox.take()
        return None if models is None else tuple(model.version for model in models.models)

    @property
    def reason(self) -> str:
        return self.inbox.report().reason

    @property
    def refused(self) -> int:
        return self.inbox.report().refused
